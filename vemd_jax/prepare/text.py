"""Embeddings of transcripts, cached beside the data.

  python -m vemd_jax.data.text --data=DIR --model=MODELDIR
  python -m vemd_jax.data.text --data=DIR --embeddings=FILE

The first runs a text encoder that the user provides: a folder with
`tokenizer.json` and `model.onnx` (also in `onnx/`), as in Hugging Face
repositories and written by `optimum-cli export onnx --model NAME MODELDIR`
(`pip install 'vemd-jax[annotate]'`). The second imports embeddings that were
computed elsewhere. Both write `DIR/text_cache/`. The same command resumes an
interrupted run.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vemd_jax.data import feature_cache, files
from vemd_jax.prepare import annotators, rows


def load_encoder(
    model: str | pathlib.Path, max_tokens: int = 128, pooling: str = 'tokens'
) -> Callable[[str], np.ndarray]:
  """Loads a text encoder.

  Args:
    model: folder with `tokenizer.json` and `model.onnx` or `onnx/model.onnx`.
    max_tokens: longer texts are truncated, special tokens included.
    pooling: 'tokens' keeps one embedding per token, 'mean' averages them.

  Returns:
    Function from a text to float32 [T, E]; T is 1 with 'mean'.

  Raises:
    FileNotFoundError: the folder lacks a file.
    ValueError: the model has other inputs or outputs than a text encoder.
  """
  tokenizers = annotators.require('tokenizers', 'tokenizers')
  tokenizer_file, model_file = model_files(model)
  tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
  tokenizer.no_padding()
  tokenizer.enable_truncation(max_tokens)
  session = annotators.onnx_session(model_file)
  names = {i.name for i in session.get_inputs()}
  unknown = names - {'input_ids', 'attention_mask', 'token_type_ids'}
  if unknown or 'input_ids' not in names:
    raise ValueError(
        f'{model_file}: inputs {sorted(names)}, expected input_ids, '
        'attention_mask and token_type_ids at most'
    )
  # The name of the token embeddings varies, but they are the first output.
  output = session.get_outputs()[0]
  if len(output.shape) != 3:
    raise ValueError(
        f'{model_file}: output {output.name} {output.shape}, expected '
        '[texts, tokens, E]'
    )

  def encode(text: str) -> np.ndarray:
    tokens = tokenizer.encode(text)
    given = {
        'input_ids': tokens.ids,
        'attention_mask': tokens.attention_mask,
        'token_type_ids': tokens.type_ids,
    }
    arrays = {n: np.array([given[n]], np.int64) for n in names}
    embeddings = session.run([output.name], arrays)[0][0]
    if pooling == 'mean':
      embeddings = embeddings.mean(0, keepdims=True)
    return embeddings.astype(np.float32)

  return encode


def model_files(
    model: str | pathlib.Path,
) -> tuple[pathlib.Path, pathlib.Path]:
  """The two files of a text encoder's folder: tokenizer, model.

  Args:
    model: the folder.

  Returns:
    Paths of `tokenizer.json` and of `model.onnx`.

  Raises:
    FileNotFoundError: a file is missing; the message says how to create it.
  """
  model = pathlib.Path(model)
  tokenizer_file = model / 'tokenizer.json'
  if not tokenizer_file.exists():
    raise FileNotFoundError(f'{tokenizer_file} does not exist')
  for model_file in (model / 'model.onnx', model / 'onnx' / 'model.onnx'):
    if model_file.exists():
      return tokenizer_file, model_file
  raise FileNotFoundError(
      f'{model / "model.onnx"} does not exist; create it with '
      f'optimum-cli export onnx --task feature-extraction --model {model} OUT'
  )


def read_embeddings(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads embeddings that were computed elsewhere.

  Args:
    path: one of
      - `.npz`: an array [T, E] or [E] under the file name of each row;
      - `.jsonl`: {"file": ..., "embedding": [[...], ...] or [...]} a line;
      - a folder with `FILE.npy` for each row, FILE with or without its suffix.

  Returns:
    Name of a row -> float32 [T, E].

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it has another format.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist')
  if path.is_dir():
    found = {
        file.relative_to(path).with_suffix('').as_posix(): (
            files.load_arrays(file)['']
        )
        for file in sorted(path.rglob('*.npy'))
    }
  elif path.suffix == '.npz':
    found = files.load_arrays(path)
  elif path.suffix == '.jsonl':
    found = {}
    # Split at b'\n' only: file names may contain other line separators.
    for number, line in enumerate(files.read_bytes(path).split(b'\n'), 1):
      if not line.strip():
        continue
      try:
        value = json.loads(line)
        with np.errstate(over='ignore'):
          found[value['file']] = np.array(value['embedding'], np.float32)
      except (
          ValueError, KeyError, TypeError, OverflowError, RecursionError
      ) as error:  # fmt: skip
        raise ValueError(
            f'{path} line {number}: expected {{"file", "embedding"}} ({error})'
        ) from error
  else:
    raise ValueError(f'{path}: expected .npz, .jsonl or a folder of .npy')
  result = {}
  for file, array in found.items():
    if array.ndim == 1:
      array = array[None]
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
      raise ValueError(
          f'{path}: {file}: expected floats [T, E] or [E], found '
          f'{array.dtype} {list(array.shape)}'
      )
    if not (array.size and np.isfinite(array).all()):
      raise ValueError(f'{path}: {file}: empty, or not all finite')
    result[file] = array.astype(np.float32)
  widths = {array.shape[1] for array in result.values()}
  if len(widths) > 1:
    raise ValueError(f'{path}: embeddings of several widths {sorted(widths)}')
  return result


def cache_encoded(
    data: str | pathlib.Path,
    model: str | pathlib.Path,
    max_tokens: int = 128,
    pooling: str = 'tokens',
    overwrite: bool = False,
    outside_root: bool = False,
) -> feature_cache.Counts:
  """Encodes the transcripts of the rows that are not cached yet.

  Args:
    data: a folder with `labels.csv` and its column `transcript`, or prepared
      data.
    model: folder of the encoder, see `load_encoder`.
    max_tokens: see `load_encoder`.
    pooling: see `load_encoder`.
    overwrite: starts a new index if the existing one is of another model.
    outside_root: whether labels.csv may name files outside the folder.

  Returns:
    Numbers of rows processed.

  Raises:
    FileNotFoundError: there is no such dataset or model.
    ValueError: the cache was made by another model.
    ImportError: an optional package is missing.
  """
  data = pathlib.Path(data)
  source = rows.Rows(data, outside_root)
  made_with = {
      'model': _digest(model),
      'max_tokens': max_tokens,
      'pooling': pooling,
  }
  encode = load_encoder(model, max_tokens, pooling)
  jobs = []
  for i in range(len(source)):
    record = source[i]
    text = (record.get('transcript') or '').strip()
    if text:
      key = _key(made_with, text.encode())
      jobs.append(
          feature_cache.Job(
              record['file'], key, lambda k=key: k, lambda t=text: encode(t)
          )
      )
    else:
      jobs.append(feature_cache.nothing(record['file']))
  folder = data / feature_cache.FOLDERS['text']
  return feature_cache.fill(
      folder, made_with, jobs, overwrite,
      holds='embeddings of the words that people speak',
  )  # fmt: skip


def cache_given(
    data: str | pathlib.Path,
    embeddings: str | pathlib.Path,
    overwrite: bool = False,
    outside_root: bool = False,
) -> feature_cache.Counts:
  """Caches embeddings that were computed elsewhere.

  Args:
    data: a folder with `labels.csv`, or prepared data.
    embeddings: see `read_embeddings`; rows are looked up by their file name,
      with or without suffix.
    overwrite: starts a new index if the existing one is of a model.
    outside_root: whether labels.csv may name files outside the folder.

  Returns:
    Numbers of rows processed; rows missing in the file have no embedding.

  Raises:
    FileNotFoundError: there is no such dataset or file.
    ValueError: the file has another format, or contains none of the rows.
  """
  data, embeddings = pathlib.Path(data), pathlib.Path(embeddings)
  source = rows.Rows(data, outside_root)
  given = read_embeddings(embeddings)
  made_with = {'model': 'given'}
  jobs = []
  for file in source.files:
    stem = str(pathlib.PurePosixPath(file).with_suffix(''))
    array = given.get(file, given.get(stem))
    if array is None:
      jobs.append(feature_cache.nothing(file))
      continue
    key = _key(made_with, repr(array.shape).encode() + array.tobytes())
    jobs.append(
        feature_cache.Job(file, key, lambda k=key: k, lambda a=array: a)
    )
  if all(job.stamp is None for job in jobs):
    raise ValueError(
        f'{embeddings} contains none of the rows; it has '
        f'{", ".join(list(given)[:3])}, the data {", ".join(source.files[:3])}'
    )
  folder = data / feature_cache.FOLDERS['text']
  return feature_cache.fill(
      folder, made_with, jobs, overwrite,
      holds='embeddings of the words that people speak',
  )  # fmt: skip


def _key(made_with: dict[str, Any], content: bytes) -> str:
  digest = hashlib.sha256(json.dumps(made_with).encode() + b'\0' + content)
  return digest.hexdigest()[:32]


def _digest(model: str | pathlib.Path) -> str:
  """Hash of a model's files; large models store weights in separate files."""
  tokenizer_file, model_file = model_files(model)
  digest = hashlib.sha256()
  for path in (tokenizer_file, *sorted(model_file.parent.glob('model.onnx*'))):
    with path.open('rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()[:16]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='python -m vemd_jax.data.text',
      description='Computes or imports embeddings of transcripts.',
      formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add('--data', required=True, help='folder with labels.csv, or prepared data')
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument('--model', default='', help='folder with tokenizer.json '
      'and model.onnx')  # fmt: skip
  which.add_argument('--embeddings', default='', help='.npz, .jsonl, or folder '
      'of .npy')  # fmt: skip
  add('--max_tokens', type=int, default=128, help='longer texts are truncated')
  add('--pooling', default='tokens', choices=('tokens', 'mean'))
  add('--outside_root', action='store_true', help='accept files outside DATA '
      'in labels.csv')  # fmt: skip
  add('--overwrite', action='store_true', help='replace a cache of another '
      'model')  # fmt: skip
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status."""
  args = _parse(argv)

  def fill() -> feature_cache.Counts:
    if args.max_tokens < 3:
      raise ValueError(f'--max_tokens={args.max_tokens}: expected 3 or more')
    if args.model:
      return cache_encoded(
          args.data,
          args.model,
          args.max_tokens,
          args.pooling,
          args.overwrite,
          args.outside_root,
      )
    return cache_given(
        args.data, args.embeddings, args.overwrite, args.outside_root
    )

  return rows.fill_command(fill, 'text')
