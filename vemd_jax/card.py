r"""Writes the model card of a finished run.

  vemd card RUN
  vemd card RUN --out=FOLDER

writes model_card.md, with the header that Hugging Face reads (rename it to
README.md there), model_card.html, and impact_assessment.md, a template of a
data protection impact assessment (GDPR, Article 35) with the technical parts
filled in. They are made of the files in the workdir; what only the controller
knows is marked.

Exit status: 0; 2 if the run has no results or the files cannot be written.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from vemd_jax.model_card import document, run, write


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line program; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='vemd card',
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdir', metavar='RUN', help='workdir of a run')
  parser.add_argument('--out', metavar='FOLDER', help='folder of the files '
      '(default: the workdir)')  # fmt: skip
  args = parser.parse_args(argv)
  folder = pathlib.Path(args.out or args.workdir)
  try:
    facts = run.read(pathlib.Path(args.workdir))
    blocks = write.card(facts)
    contents = {
        'model_card.md': write.metadata(facts) + document.markdown(blocks),
        'model_card.html': document.page(f'Model card: {facts.name}', blocks),
        'impact_assessment.md': document.markdown(write.assessment(facts)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
      (folder / name).write_text(text, encoding='utf-8')
      print(folder / name)
  except (ValueError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
