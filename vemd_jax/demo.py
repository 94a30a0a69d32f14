r"""Serves a local web page to try a trained model.

  vemd demo RUN
  vemd demo RUN --port=9000 --max_megabytes=50

Open the printed address in a browser, and drop photographs or videos on the
page or use the camera. Files are processed in memory, and are not stored or
sent anywhere. By default only this machine can reach the page.
"""

import argparse
import pathlib
import socket
import sys
from collections.abc import Sequence

from absl import logging

from vemd_jax import inference

_LOCAL = ('127.0.0.1', 'localhost', '::1')


def main(argv: Sequence[str] | None = None, load=inference.load) -> int:
  """Runs the command line program; see `--help`.

  Args:
    argv: arguments; by default those of the process.
    load: `(workdir, dataset) -> Model`.

  Returns:
    Exit status: 0, or 2 if the server could not be started.
  """
  args = _parse(argv)
  logging.set_verbosity(logging.ERROR)
  try:
    # A port in use is reported before the model is loaded.
    with _listen(args.host, args.port) as listener:
      _serve(args, listener, load)
  except (ValueError, OSError, ImportError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  return 0


def _serve(args: argparse.Namespace, listener: socket.socket, load) -> None:
  try:
    import uvicorn

    from vemd_jax.web import app, judge
  except ImportError as error:
    raise ImportError(
        f'{error.name} is missing: pip install "vemd-jax[demo]"'
    ) from error
  model = load(args.workdir, args.dataset)
  about = {
      'model': pathlib.Path(args.workdir).resolve().name,
      'step': model.step,
      'classes': list(model.classes),
      'decodes': model.decodes,
      'max_megabytes': args.max_megabytes,
      'max_seconds': args.max_seconds,
  }
  application = app.make_app(
      judge.Judge(model, max_seconds=args.max_seconds),
      about,
      hosts=_hosts(args.host),
      max_bytes=round(args.max_megabytes * 1e6),
  )
  host, port = listener.getsockname()[:2]
  host = f'[{host}]' if ':' in host else host
  print(f'http://{host}:{port}  (Ctrl-C stops it)', flush=True)
  if args.host not in _LOCAL:
    print(
        'other machines can reach this page; it has no password',
        file=sys.stderr,
    )
  config = uvicorn.Config(application, log_level='warning', access_log=False)
  uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  listener = socket.socket(family)
  listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    listener.bind((host, port))
  except OSError as error:
    listener.close()
    raise OSError(
        f'--host={host} --port={port}: {error.strerror or error}; --port=0 '
        'selects a free port'
    ) from error
  return listener


def _hosts(host: str) -> Sequence[str]:
  """Names of the host in requests, for a server bound to `host`."""
  if host in _LOCAL:
    return '127.0.0.1', 'localhost', '[::1]'
  return ('*',)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='vemd demo',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('workdir', metavar='RUN', help='workdir of a trained model')
  add('--dataset', default='', help='emotion head, if the model has '
      'several')  # fmt: skip
  add('--host', default='127.0.0.1', help='address to listen on (default '
      '127.0.0.1, this machine only; 0.0.0.0 for all networks)')  # fmt: skip
  add('--port', type=int, default=8080, help='default 8080; 0 '
      'selects a free port')  # fmt: skip
  add('--max_megabytes', type=float, default=200.0, help='largest '
      'file (default 200)')  # fmt: skip
  add('--max_seconds', type=float, default=60.0, help='the part of a '
      'video that is processed (default 60)')  # fmt: skip
  return parser.parse_args(argv)


if __name__ == '__main__':
  sys.exit(main())
