r"""Exports a trained run as one file that says nothing but the group's emotion.

  vemd export RUN --out=MODEL.vemd
  vemd export RUN --out=MODEL.vemd --min_people=3 --max_share=0.7 --round=2
  vemd predict --artifact MODEL.vemd PHOTO.jpg

The file has the weights and a function of images (StableHLO, for CPU, CUDA and
TPU, any batch size, any image size) whose outputs are the probabilities of the
group's emotion and whether the model abstains. docs/export.md describes it and
has a program that runs it with JAX alone. The structural decoders are part of
it only if the emotion head (ve_md_sr) or a gate needs them.

Gates:
  --min_people=K  abstains if an image shows fewer than K decoded people
  --max_share=S   abstains if one person takes more than the share S of the
                  area of all decoded people; one person alone takes 1
  --round=N       rounds probabilities to N decimal places
  --average=N     takes N clips (N images for a model of photographs) and
                  returns their mean

With a name that ends in .onnx it writes the function as ONNX instead, for
square images of the model's size.

Exit status: 0; 2 if the arguments are invalid or the run cannot be exported.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from absl import logging

from vemd_jax.artifact import build, onnx
from vemd_jax.inference import trained as trained_lib


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line program; returns the exit status."""
  args = _parse(argv)
  logging.set_verbosity(logging.ERROR)
  gates = build.Gates(
      min_people=args.min_people,
      max_share=args.max_share,
      digits=args.round,
      clips=args.average,
  )
  try:
    trained = trained_lib.load(args.workdir, args.dataset)
    this = build.prepare(trained, gates)
    if args.out.endswith('.onnx'):
      worst = onnx.write(args.out, this)
      print(f'{args.out}: probabilities differ by at most {worst:.1e}')
      return 0
    about = build.write(args.out, this, build.export(this))
  except (ValueError, OSError, ImportError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  print(_summary(pathlib.Path(args.out), about))
  return 0


def _summary(path: pathlib.Path, about: dict) -> str:
  size, gates = about['size'], about['gates']
  decoders = 'without' if about['model']['latent_only'] else 'with'
  lines = [
      f'{path}: {path.stat().st_size / 1e6:.2f} MB, {decoders} structural '
      'decoders, outputs: probabilities, abstain',
      f'parameters  {size["parameters"]:,} of '
      f'{size["parameters_of_full_model"]:,} of the full model',
  ]
  if size['flops'] and size['flops_of_full_model']:
    lines.append(
        f'FLOPs       {size["flops"] / 1e6:,.1f} M, full model '
        f'{size["flops_of_full_model"] / 1e6:,.1f} M'
    )
  lines.append(
      'gates       ' + ', '.join(f'{k} {v}' for k, v in gates.items())
  )
  return '\n'.join(lines)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='vemd export',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('workdir', metavar='RUN', help='workdir of a trained run')
  add('--out', required=True, metavar='FILE', help='file to write')
  add('--dataset', default='', help='emotion head, if the model has several')
  add('--min_people', type=int, default=0, metavar='K', help='default 0, off')
  add('--max_share', type=float, default=1.0, metavar='S',
      help='default 1, off')  # fmt: skip
  add('--round', type=int, metavar='N', help='default: not rounded')
  add('--average', type=int, default=1, metavar='N', help='default 1')
  return parser.parse_args(argv)


if __name__ == '__main__':
  sys.exit(main())
