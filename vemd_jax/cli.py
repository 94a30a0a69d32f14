"""The command line program `vemd`, with every program as a subcommand."""

import runpy
import sys
from collections.abc import Sequence

# Command -> (module, description, example).
COMMANDS = {
    'train': (
        'vemd_jax.main',
        'train and evaluate a recipe, or resume a run',
        'vemd train --config=configs/group_scenes.py --workdir=RUN',
    ),
    'aot': (
        'vemd_jax.aot',
        'tell what a recipe needs on a TPU slice, compiled without one',
        'vemd aot --config=configs/gaf3.py --topology=v5e:16x16',
    ),
    'predict': (
        'vemd_jax.predict',
        'predict the group emotion of photographs, folders or videos',
        'vemd predict --workdir=RUN PHOTO.jpg',
    ),
    'export': (
        'vemd_jax.export',
        'export a trained run as one file with only the group as output',
        'vemd export RUN --out=MODEL.vemd',
    ),
    'demo': (
        'vemd_jax.demo',
        'serve a local web page to try a trained run',
        'vemd demo RUN',
    ),
    'new': (
        'vemd_jax.prepare.new',
        'write labels.csv for a folder with one folder of images per class',
        'vemd new DIR',
    ),
    'check': (
        'vemd_jax.prepare.check',
        'check a labelled folder before training',
        'vemd check DIR',
    ),
    'report': (
        'vemd_jax.report',
        'write the report of a run, or compare runs',
        'vemd report RUN RUN2',
    ),
    'explain': (
        'vemd_jax.explain',
        'show the regions that the prediction of a photograph depends on',
        'vemd explain RUN PHOTO.jpg',
    ),
    'annotate': (
        'vemd_jax.data.annotate',
        'detect bodies and faces in your own images',
        'vemd annotate --data=DIR --preview=PREVIEW',
    ),
    'prepare': (
        'vemd_jax.data.prepare',
        'convert a dataset from its official layout for training',
        'vemd prepare gaf3 --source=GAF3.0_Original --out=DATA',
    ),
    'cache': (
        'vemd_jax.cache_features',
        "cache the frozen ViT's features of a dataset",
        'vemd cache --config=configs/gaf3.py --config.data.root=DATA',
    ),
    'audio': (
        'vemd_jax.data.audio',
        'cache the spectrograms of a video dataset',
        'vemd audio --data=DIR',
    ),
    'text': (
        'vemd_jax.data.text',
        'cache the embeddings of transcripts',
        'vemd text --data=DIR --model=MINILM',
    ),
    'import': (
        'vemd_jax.models.torch_import',
        'convert PyTorch weights to a folder for config.checkpoint.init_from',
        'vemd import CHECKPOINT --config=configs/reference.py:heatmap '
        '--out=WEIGHTS',
    ),
    'sweep': (
        'vemd_jax.sweep',
        'train the rows of a table with several seeds',
        'vemd sweep configs/claim.py --seeds=5 --workdir=SWEEP',
    ),
    'table': (
        'vemd_jax.table',
        'make the table of a sweep, or the mean of several runs',
        'vemd table SWEEP',
    ),
    'audit': (
        'vemd_jax.audit',
        'measure what a run reveals about the people in its pictures',
        'vemd audit RUN --data=DIR',
    ),
    'card': (
        'vemd_jax.card',
        'write the model card of a run',
        'vemd card RUN',
    ),
    'scrub': (
        'vemd_jax.scrub',
        'remove everything that shows a person from a workdir',
        'vemd scrub RUN --dry_run',
    ),
    'scenes': (
        'vemd_jax.data.group_scenes',
        'draw a contact sheet of samples of the embedded dataset',
        'vemd scenes --out=SHEET.jpg',
    ),
}


def usage() -> str:
  """The help text that `vemd` prints without a command."""
  width = max(map(len, COMMANDS))
  lines = [
      'usage: vemd COMMAND [ARGUMENTS]',
      '',
      'Group emotion recognition with VE-MD. Commands:',
      '',
      *(f'  {name:{width}}  {what}' for name, (_, what, _) in COMMANDS.items()),
      '',
      'vemd COMMAND --help shows the arguments of a command. Examples:',
      '',
      *(f'  {example}' for _, _, example in COMMANDS.values()),
  ]
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command.

  Args:
    argv: command and its arguments; by default those of the process.

  Returns:
    Exit status: 0 after the help or a command that returns, 2 for an unknown
    command. Most commands exit the process themselves.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ('-h', '--help', 'help'):
    print(usage())
    return 0
  name, *arguments = argv
  if name not in COMMANDS:
    print(
        f'error: vemd has no command {name!r}, expected one of '
        f'{", ".join(COMMANDS)}',
        file=sys.stderr,
    )
    return 2
  module = COMMANDS[name][0]
  # As `python -m` does: puts the working directory on the path, since recipes
  # import each other from it.
  sys.path.insert(0, '')
  sys.argv = [name, *arguments]
  runpy.run_module(module, run_name='__main__', alter_sys=True)
  return 0


if __name__ == '__main__':
  sys.exit(main())
