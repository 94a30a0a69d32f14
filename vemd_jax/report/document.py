"""Writes the report of runs."""

from collections.abc import Sequence

from etils import epath

from vemd_jax import workdir as workdir_lib
from vemd_jax.report import comparison, markup, page, runs

NAME = 'report.html'

_MEANING = (
    'What the model calls a group’s emotion is what its labellers saw in '
    'pictures like its training pictures. It is not what anybody feels, and '
    'nothing here is about a single person.'
)


def write(path: epath.PathLike, workdirs: Sequence[epath.PathLike]) -> None:
  """Writes the report of one run, or a comparison of several.

  Args:
    path: path of the HTML file.
    workdirs: output folders of the runs; the others are compared with the
      first.

  Raises:
    FileNotFoundError: if a folder is not the workdir of a run.
    ValueError: if a file of a run is damaged.
  """
  reports = [runs.read(workdir) for workdir in workdirs]
  if len({r.name for r in reports}) < len(reports):
    for report, workdir in zip(reports, workdirs):
      report.name = str(workdir)
  names = ', '.join(r.name for r in reports)
  body = f'<h1>{markup.text(names)}</h1>{markup.note(_MEANING)}'
  if len(reports) == 1:
    body += page.run(reports[0])
  else:
    body += comparison.compare(reports)
    for report in reports:
      body += markup.folded(report.name, page.run(report), 'run')
  workdir_lib.write(path, markup.page(f'Report: {names}', body))
