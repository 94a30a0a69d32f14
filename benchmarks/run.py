"""Runs all benchmarks that this machine can run, and appends their output.

  python benchmarks/run.py [--only=train_step] [--out=benchmarks/RESULTS.md]
  python benchmarks/run.py --list

On a GPU or TPU the full-size recipes run with the batch sizes of an 80 GB
device, elsewhere small ones; the comparison with PyTorch needs `torch`. The
output of each command is printed and appended to the file, under a heading with
the date, the device and the versions. A command that fails is reported, and the
others go on.

Exit status: 0; 1 if a command failed.
"""

import argparse
import datetime
import importlib.util
import json
import pathlib
import shlex
import subprocess
import sys

_FOLDER = pathlib.Path(__file__).resolve().parent
# In a process of its own: devices may belong to one process at a time.
_FACTS = """
import json, jax
from vemd_jax import writer
print(json.dumps({'backend': jax.default_backend(), **writer.versions()}))
"""
_NO_VIT = '--config.model.vit.name=none'
_GAF3 = ('configs/gaf3.py', 'configs/gaf3.py:person_query')


def commands(accelerator: bool, torch: bool) -> list[str]:
  """The benchmarks, as arguments of Python.

  Args:
    accelerator: whether there is a GPU or a TPU.
    torch: whether PyTorch is installed.

  Returns:
    The commands.
  """
  size = 32 if accelerator else 4
  some = ['pipeline.py', 'matching.py --loop=numpy']
  if accelerator:
    for recipe in _GAF3:
      some += [
          f'train_step.py --config={recipe} --batch=32',
          f'train_step.py --config={recipe} --batch=64 {_NO_VIT}',
      ]
  else:
    some += [
        'train_step.py --config=configs/group_scenes.py',
        *(
            f'train_step.py --config={recipe} --batch=4 --steps=2 {_NO_VIT}'
            for recipe in _GAF3
        ),
    ]
  some += [
      'inference.py --config=configs/group_scenes.py:ve_md',
      f'inference.py --config=configs/gaf3.py:ve_md --batch={size}',
      'start.py --config=configs/group_scenes.py',
  ]
  if torch:
    dtype = 'bfloat16' if accelerator else 'float32'
    some.append('matching.py --loop=torch')
    some += [
        f'torch_baseline.py --decoder={decoder} --batch={size} --dtype={dtype}'
        for decoder in ('heatmap', 'person_query')
    ]
  return [f'benchmarks/{command}' for command in some]


def facts() -> dict:
  """The backend, and `writer.versions`."""
  result = subprocess.run(
      [sys.executable, '-c', _FACTS],
      cwd=_FOLDER.parent, stdout=subprocess.PIPE, text=True, check=True,
  )  # fmt: skip
  return json.loads(result.stdout.splitlines()[-1])


def heading(found: dict) -> str:
  """Date, device and versions, as Markdown."""
  names = ', '.join(
      f'{key} {found[key]}' for key in found if key not in (
          'backend', 'device_kind', 'devices', 'processes'
      )
  )
  return (
      f'## {datetime.date.today()}, {found["devices"]} x '
      f'{found["device_kind"]}\n\nBy `python benchmarks/run.py`: {names}.\n'
  )


def main() -> int:
  """Runs the commands; returns the exit status."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--only', default='', help='commands with these letters')
  parser.add_argument('--list', action='store_true', help='show the commands')
  parser.add_argument('--out', default=str(_FOLDER / 'RESULTS.md'))
  args = parser.parse_args()
  found = facts()
  torch = importlib.util.find_spec('torch') is not None
  wanted = [
      command
      for command in commands(found['backend'] != 'cpu', torch)
      if args.only in command
  ]
  if args.list or not wanted:
    print('\n'.join(wanted) or f'no command contains {args.only!r}')
    return 0 if wanted else 1
  failed = []
  with open(args.out, 'a') as out:
    out.write(f'\n{heading(found)}')
  for command in wanted:
    print(f'$ python {command}', flush=True)
    result = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=_FOLDER.parent, capture_output=True, text=True,
    )  # fmt: skip
    print(result.stdout, flush=True)
    if result.returncode:
      failed.append(command)
      print(f'failed: {result.stderr[-2000:]}', file=sys.stderr, flush=True)
      continue
    with open(args.out, 'a') as out:
      out.write(f'\n```\n$ python {command}\n{result.stdout.rstrip()}\n```\n')
  for command in failed:
    print(f'failed: python {command}', file=sys.stderr)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
