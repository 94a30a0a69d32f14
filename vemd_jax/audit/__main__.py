r"""Measures what a trained run reveals about the people in its pictures.

  vemd audit RUN --data=DIR
  vemd audit RUN --data=DIR --attributes=num_people --shadows=4

It attacks each tap of the model (latent, ViT latent, decoded heatmaps or
people, the relations between people, the head's embedding, logits, the rounded
probabilities that an exported model returns), and the pixels of the input as a
baseline:

  identity    whether two pictures show the same person
  attribute   columns of labels.csv; number, position and height of the people
  membership  whether a picture was used for training
  inversion   the picture itself

and measures the utility of the same tap: how well it predicts the emotion. The
attackers are fitted on the training split and tested on the split val, those of
membership on both. Results with 95 % bootstrap intervals: RUN/audit/audit.json
and charts; `vemd report` and `vemd card` include them. Reconstructions of
pictures are written only if config.pictures.people is show.

An attack that fails shows that this attack fails, not that none succeeds.

Exit status: 0; 2 if the run cannot be audited.
"""

import argparse
import sys
from collections.abc import Sequence

from absl import logging

from vemd_jax.audit import measure, perform


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line program; returns the exit status."""
  args = _parse(argv)
  logging.set_verbosity(logging.ERROR)
  options = perform.Options(
      data=args.data or '',
      dataset=args.dataset,
      identity_column=args.identity_column,
      attributes=tuple(a for a in args.attributes.split(',') if a),
      digits=args.round,
      shadows=args.shadows,
      shadow_steps=args.shadow_steps,
      inversion_steps=args.inversion_steps,
  )
  try:
    found = perform.perform(args.workdir, options)
  except (ValueError, OSError, ImportError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  _print(found)
  print(f'{args.workdir}/{measure.NAME}')
  return 0


def _print(found: dict) -> None:
  for one in found['measures']:
    print(
        f'{one.attack:<11} {one.target:<16} {one.metric:<18} {one.tap:<11} '
        f'{one.value:7.3f} [{one.low:.3f}, {one.high:.3f}]  '
        f'chance {one.chance:.3f}  {one.count} {one.unit}'
    )
  for note in found['notes']:
    print(f'note: {note}')


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='vemd audit',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('workdir', metavar='RUN', help='workdir of a trained run')
  add('--data', metavar='DIR', help="data (default: the run's)")
  add('--dataset', default='', help='emotion head, if the model has several')
  add('--identity_column', '--identity-column', metavar='COLUMN',
      help='column of labels.csv with the person (default: subject, if there '
      'is one)')  # fmt: skip
  add('--attributes', default='', metavar='A,B',
      help='attributes to infer (default: all)')  # fmt: skip
  add('--round', type=int, default=2, metavar='N',
      help='decimal places of the exported output, default 2')  # fmt: skip
  add('--shadows', type=int, default=0, metavar='N',
      help='shadow models for LiRA, an even number; default 0, '
      'no LiRA')  # fmt: skip
  add('--shadow_steps', type=int, default=0, metavar='N',
      help='training steps of a shadow model (default: a quarter of the '
      "run's)")  # fmt: skip
  add('--inversion_steps', type=int, default=400, metavar='N',
      help='training steps of a decoder to pictures, default 400; 0 omits the '
      'attack')  # fmt: skip
  return parser.parse_args(argv)


if __name__ == '__main__':
  sys.exit(main())
