"""Time from the command to the end of the first training step.

  python benchmarks/start.py --config=configs/group_scenes.py
  python benchmarks/start.py --config=configs/gaf3.py \
      --config.data.source=group_scenes --config.model.vit.name=none

Runs the training program twice with the same folder of compiled programs, which
is empty the first time (cold) and filled the second (warm), and prints the
seconds until the program reports step 1.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_STEP = re.compile(r'^step +1/')


def first_step(arguments: list[str], workdir: str, cache: str) -> float:
  """Seconds until the first step of a run is reported.

  Args:
    arguments: arguments of `vemd_jax.main`, without the workdir.
    workdir: workdir, which does not exist yet.
    cache: folder of compiled programs.

  Returns:
    The seconds; the run is ended then.
  """
  start = time.perf_counter()
  process = subprocess.Popen(
      [sys.executable, '-m', 'vemd_jax.main', f'--workdir={workdir}',
       *arguments, '--config.steps=1'],
      cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache},
  )  # fmt: skip
  lines = []
  with process:
    for line in process.stdout:
      lines.append(line)
      if _STEP.match(line):
        seconds = time.perf_counter() - start
        # The evaluation writes programs to the cache, too: let it end.
        process.stdout.read()
        return seconds
  sys.exit('the run ended before its first step:\n' + ''.join(lines[-5:]))


def main() -> None:
  """Measures and prints both."""
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawTextHelpFormatter,
      allow_abbrev=False,
  )
  parser.add_argument('--config', required=True, help='a recipe')
  args, more = parser.parse_known_args()
  with tempfile.TemporaryDirectory() as folder:
    for name in ('cold', 'warm'):
      seconds = first_step(
          [f'--config={args.config}', *more],
          f'{folder}/{name}',
          f'{folder}/cache',
      )
      print(f'{name}  {seconds:.1f} s to the first step', flush=True)


if __name__ == '__main__':
  main()
