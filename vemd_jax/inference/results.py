"""Results of prediction as text, JSON lines, CSV and Parquet."""

import csv
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vemd_jax.data import jsonl
from vemd_jax.inference.model import Prediction

SUFFIXES = ('.csv', '.jsonl', '.parquet')

# Label of files and clips for which an exported model abstains.
ABSTAINED = 'abstained'

# Rows per row group of a Parquet file, which are held in memory.
_GROUP = 10_000


def result(
    file: str, classes: Sequence[str], predictions: Sequence[Prediction]
) -> dict[str, Any]:
  """The result for one file, with a timeline if it is a video.

  Args:
    file: name of the file.
    classes: names of the C classes.
    predictions: the prediction of a photograph, or those of a video's clips in
      order.

  Returns:
    The object of a JSON line. A video's probabilities are the mean over its
    clips, without those for which the model abstains.
  """
  found = np.array([p.probabilities for p in predictions])
  known = ~np.isnan(found).any(1)
  mean = found[known].mean(0) if known.any() else found[0]
  answer = {'file': file, **_answer(classes, mean)}
  if predictions[0].clip.seconds is not None:
    answer['timeline'] = [
        {
            'seconds': round(p.clip.seconds, 3),
            **_answer(classes, p.probabilities),
        }
        for p in predictions
    ]
  return answer


def _answer(
    classes: Sequence[str], probabilities: np.ndarray
) -> dict[str, Any]:
  if np.isnan(probabilities).any():
    return {'label': ABSTAINED, 'probabilities': {}}
  return {
      'label': classes[int(np.argmax(probabilities))],
      'probabilities': {
          name: round(float(p), 6) for name, p in zip(classes, probabilities)
      },
  }


class Results:
  """A results file that can be resumed after an interruption.

  Results are appended as JSON lines: to the file itself or, for CSV and
  Parquet, to `NAME.csv.jsonl` beside it, from which `finish` writes the file.
  Both are kept, so that the same command later predicts only new files.

  Attributes:
    done: names of the files that have a result.
  """

  def __init__(
      self,
      path: pathlib.Path,
      classes: Sequence[str],
      made_with: dict[str, Any],
      overwrite: bool = False,
  ):
    """Opens the file and reads which files are done.

    Args:
      path: the file to write; its suffix is one of `SUFFIXES`.
      classes: names of the C classes.
      made_with: settings that the results depend on, as plain JSON values.
      overwrite: starts a new file if the existing one was made with other
        settings.

    Raises:
      ValueError: for another suffix, or a file made with other settings.
      ImportError: if pyarrow is missing for Parquet.
    """
    self._path, self._classes = path, classes
    if path.suffix not in SUFFIXES:
      raise ValueError(
          f'--out={path}: expected a name that ends in {", ".join(SUFFIXES)}'
      )
    if path.suffix == '.parquet':
      _pyarrow()
    self._lines = path
    if path.suffix != '.jsonl':
      self._lines = path.with_name(path.name + '.jsonl')
    jsonl.begin(self._lines, made_with, overwrite)
    self.done = self._take_up()
    self._file = jsonl.open_to_append(self._lines)

  def _take_up(self) -> set[str]:
    """Names of the files that are done; removes lines of unreadable files."""
    done, failed = set(), False
    if not self._lines.exists():
      return done
    for line in jsonl.lines(self._lines):
      failed |= 'error' in line
      if 'error' not in line:
        done.add(line['file'])
    if failed:
      part = self._lines.with_name(self._lines.name + '.part')
      with jsonl.open_to_append(part) as file:
        file.truncate(0)
        for line in jsonl.lines(self._lines):
          if 'error' not in line:
            jsonl.append(file, line)
      part.replace(self._lines)
    return done

  def add(self, answer: dict[str, Any]) -> None:
    """Appends the result of a file, or an object with `file` and `error`."""
    jsonl.append(self._file, answer)

  def close(self) -> None:
    """Closes the file of JSON lines."""
    self._file.close()

  def finish(self) -> None:
    """Writes the CSV or Parquet file from the JSON lines."""
    self.close()
    if self._path == self._lines:
      return
    part = self._path.with_name(self._path.name + '.part')
    write = _write_csv if self._path.suffix == '.csv' else _write_parquet
    write(part, self._classes, self._rows())
    part.replace(self._path)

  def _rows(self) -> Iterator[list[Any]]:
    for answer in jsonl.lines(self._lines):
      yield self._row(answer['file'], answer)
      for moment in answer.get('timeline', ()):
        yield self._row(answer['file'], moment)

  def _row(self, file: str, answer: dict[str, Any]) -> list[Any]:
    probabilities = answer.get('probabilities', {})
    return [
        file,
        answer.get('seconds'),
        answer.get('label'),
        *(probabilities.get(name) for name in self._classes),
        answer.get('error'),
    ]


def columns(classes: Sequence[str]) -> list[str]:
  """Columns of the CSV or Parquet file.

  Args:
    classes: names of the C classes.

  Returns:
    Names of columns. `seconds` is set in rows of a video's clips and empty in
    rows of files; `error` is set if the file could not be read.
  """
  return ['file', 'seconds', 'label', *(f'p_{c}' for c in classes), 'error']


def _write_csv(
    path: pathlib.Path, classes: Sequence[str], rows: Iterable[list[Any]]
) -> None:
  with path.open('w', encoding='utf-8', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(columns(classes))
    writer.writerows(rows)


def _write_parquet(
    path: pathlib.Path, classes: Sequence[str], rows: Iterable[list[Any]]
) -> None:
  arrow, parquet = _pyarrow()
  text, number = arrow.string(), arrow.float64()
  types = [text, number, text, *(number for _ in classes), text]
  schema = arrow.schema(list(zip(columns(classes), types)))
  group: list[list[Any]] = []

  with parquet.ParquetWriter(path, schema) as writer:

    def flush():
      arrays = [
          arrow.array([row[i] for row in group], kind)
          for i, kind in enumerate(types)
      ]
      writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
      group.clear()

    for row in rows:
      group.append(row)
      if len(group) == _GROUP:
        flush()
    flush()


def _pyarrow():
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ImportError(
        'a .parquet file needs pyarrow: pip install "vemd-jax[parquet]"'
    ) from error
  return pyarrow, pyarrow.parquet


class Table:
  """Prints results as a table, one row at a time."""

  def __init__(self, files: Sequence[str], classes: Sequence[str]):
    self._name = max(10, *map(len, files))
    self._label = max(len(ABSTAINED), *map(len, classes))
    self._columns = [max(len(name), 6) for name in classes]
    self._row('file', 'group', classes)

  def add(self, answer: dict[str, Any]) -> None:
    """Prints the rows of a result."""
    self._row(answer['file'], answer['label'], _cells(answer))
    for moment in answer.get('timeline', ()):
      name = f'{moment["seconds"]:.1f} s'.rjust(10)
      self._row(name, moment['label'], _cells(moment))

  def _row(self, name: str, label: str, cells: Iterable[str]) -> None:
    cells = '  '.join(c.rjust(w) for c, w in zip(cells, self._columns))
    print(
        f'{name:{self._name}}  {label:{self._label}}  {cells}', flush=True
    )


def _cells(answer: dict[str, Any]) -> list[str]:
  return [f'{p:.4f}' for p in answer['probabilities'].values()]


def print_json(answer: dict[str, Any]) -> None:
  """Prints a result as one line."""
  print(json.dumps(answer), flush=True)
