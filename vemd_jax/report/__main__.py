"""Writes the report of a run or a comparison of runs: `vemd report W …`."""

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from vemd_jax.report import browser, document


def main(argv: Sequence[str] | None = None) -> int:
  """The command; see `--help`.

  Args:
    argv: arguments; those of the process by default.

  Returns:
    0, or 2 if a workdir is invalid or there is no browser for PDF and PNG.
  """
  parser = argparse.ArgumentParser(
      prog='vemd report',
      description='Writes the report of a run as one self-contained HTML file; '
      'for several runs also their differences, with paired tests.',
      epilog='examples:\n'
      '  vemd report RUN\n'
      '  vemd report RUN RUN2 --out=COMPARED.html --pdf=COMPARED.pdf\n',
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
      'workdirs', nargs='+', metavar='W',
      help='workdir of a run; the others are compared with the first',
  )  # fmt: skip
  parser.add_argument(
      '--out', metavar='FILE',
      help='HTML file (default: report.html in the first workdir, '
      'comparison.html for several)',
  )  # fmt: skip
  parser.add_argument('--pdf', metavar='FILE', help='the same as PDF')
  parser.add_argument('--png', metavar='FILE', help='the same as a picture')
  args = parser.parse_args(argv)
  several = len(args.workdirs) > 1
  name = 'comparison.html' if several else document.NAME
  out = epath.Path(args.out or epath.Path(args.workdirs[0]) / name)
  try:
    document.write(out, args.workdirs)
    print(out)
    if args.pdf or args.png:
      with browser.browse() as page:
        page.open(out)
        page.evaluate(
            "document.querySelectorAll('details').forEach(d => d.open = true)"
        )
        for path, data in (args.pdf, page.pdf), (args.png, page.png):
          if path:
            epath.Path(path).write_bytes(data())
            print(path)
  except (ValueError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
