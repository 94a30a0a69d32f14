"""Text embeddings: a typical encoder, imported files, the cache."""

import json

import numpy as np
import pytest

from vemd_jax.data import feature_cache
from vemd_jax.prepare import text

WORDS = ('[UNK]', '[CLS]', '[SEP]', 'good', 'bad', 'day', 'very')
TABLE = np.arange(7 * 4, dtype=np.float32).reshape(7, 4) / 10


def make_model(folder, file='model.onnx', output_rank=3):
  """An encoder that looks up words in a table and adds 100 x the mask."""
  onnx = pytest.importorskip('onnx')
  tokenizers = pytest.importorskip('tokenizers')
  pytest.importorskip('onnxruntime')
  folder.mkdir(exist_ok=True)
  tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(
          {w: i for i, w in enumerate(WORDS)}, unk_token='[UNK]'
      )
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 2)]
  )
  # As Hugging Face's files: padded to a fixed length.
  tokenizer.enable_padding(length=20)
  tokenizer.save(str(folder / 'tokenizer.json'))
  h, types = onnx.helper, onnx.TensorProto
  nodes = [
      h.make_node('Gather', ['table', 'input_ids'], ['words']),
      h.make_node('Cast', ['attention_mask'], ['mask'], to=types.FLOAT),
      h.make_node('Unsqueeze', ['mask', 'last'], ['column']),
      h.make_node('Mul', ['column', 'hundred'], ['shift']),
      h.make_node('Add', ['words', 'shift'], ['tokens']),
      h.make_node('ReduceMean', ['tokens'], ['pooled'], axes=[1], keepdims=0),
  ]
  shape = [None, None, 4] if output_rank == 3 else [None, 4]
  graph = h.make_graph(
      nodes,
      'encoder',
      [
          h.make_tensor_value_info(n, types.INT64, [None, None])
          for n in ('input_ids', 'attention_mask')
      ],
      [
          h.make_tensor_value_info(
              'tokens' if output_rank == 3 else 'pooled', types.FLOAT, shape
          )
      ],
      [
          onnx.numpy_helper.from_array(TABLE, 'table'),
          onnx.numpy_helper.from_array(np.array([2]), 'last'),
          onnx.numpy_helper.from_array(np.array(100, np.float32), 'hundred'),
      ],
  )
  model = h.make_model(graph, opset_imports=[h.make_opsetid('', 17)])
  model.ir_version = 8
  (folder / file).parent.mkdir(exist_ok=True)
  onnx.save(model, str(folder / file))
  return folder


@pytest.fixture
def data(tmp_path):
  root = tmp_path / 'data'
  root.mkdir()
  for name in 'abcd':
    (root / f'{name}.png').write_bytes(b'only its name counts')
  (root / 'labels.csv').write_text(
      'file,split,label,transcript\na.png,train,x,good day\n'
      'b.png,train,x,\nc.png,val,y,"very, very bad"\nd.png,val,y,good day\n'
  )
  return root


def test_encoder_gives_an_embedding_a_token(tmp_path):
  encode = text.load_encoder(make_model(tmp_path / 'model'))
  got = encode('very good')
  assert got.dtype == np.float32
  # No padding: [CLS] very good [SEP].
  np.testing.assert_allclose(got, 100 + TABLE[[1, 6, 3, 2]], rtol=1e-6)
  cut = text.load_encoder(tmp_path / 'model', max_tokens=3)('very good day')
  np.testing.assert_allclose(cut, 100 + TABLE[[1, 6, 2]], rtol=1e-6)
  mean = text.load_encoder(tmp_path / 'model', pooling='mean')('very good')
  np.testing.assert_allclose(
      mean, 100 + TABLE[[1, 6, 3, 2]].mean(0)[None], rtol=1e-6
  )


def test_model_folder_as_hugging_face_has_it(tmp_path):
  make_model(tmp_path / 'model', 'onnx/model.onnx')
  assert text.load_encoder(tmp_path / 'model')('bad').shape == (3, 4)
  pooled = make_model(tmp_path / 'pooled', output_rank=2)
  with pytest.raises(ValueError, match=r'expected \[texts, tokens, E\]'):
    text.load_encoder(pooled)


def test_missing_model_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'tokenizer.json does not'):
    text.model_files(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(FileNotFoundError, match=r'optimum-cli export onnx'):
    text.model_files(tmp_path)


def test_cache_of_encoded_transcripts(data, tmp_path, monkeypatch):
  model = make_model(tmp_path / 'model')
  counts = text.cache_encoded(data, model)
  assert (counts.done, counts.kept, counts.empty) == (4, 0, 1)
  find = feature_cache.look_up(data, 'text')
  # Half precision at 100.
  np.testing.assert_allclose(
      find('a.png'), 100 + TABLE[[1, 3, 5, 2]], atol=0.1
  )
  np.testing.assert_array_equal(find('a.png'), find('d.png'))
  assert find('b.png') is None
  assert find('c.png').shape == (6, 4)  # The comma is an unknown word.
  assert len(list((data / 'text_cache').glob('*.npz'))) == 2
  # Only a changed transcript is encoded again.
  labels = (data / 'labels.csv').read_text()
  (data / 'labels.csv').write_text(labels.replace('x,\n', 'x,bad\n'))
  counts = text.cache_encoded(data, model)
  assert (counts.done, counts.kept) == (1, 3)
  np.testing.assert_allclose(
      feature_cache.look_up(data, 'text')('b.png'),
      100 + TABLE[[1, 4, 2]],
      atol=0.1,
  )
  with pytest.raises(ValueError, match=r'"pooling": "tokens".*not with'):
    text.cache_encoded(data, model, pooling='mean')
  text.cache_encoded(data, model, pooling='mean', overwrite=True)
  assert feature_cache.look_up(data, 'text')('a.png').shape == (1, 4)


def _write(path, form, arrays):
  if form == 'npz':
    np.savez(path.with_suffix('.npz'), **arrays)
    return path.with_suffix('.npz')
  if form == 'jsonl':
    path = path.with_suffix('.jsonl')
    path.write_text(
        ''.join(
            json.dumps({'file': k, 'embedding': v.tolist()}) + '\n'
            for k, v in arrays.items()
        )
    )
    return path
  path.mkdir()
  for name, array in arrays.items():
    np.save(path / f'{name}.npy', array)
  return path


@pytest.mark.parametrize('form', ['npz', 'jsonl', 'folder'])
def test_given_embeddings(data, tmp_path, form):
  arrays = {
      'a.png': np.array([[1, 2, 3], [4, 5, 6]], np.float32),
      'c': np.array([7, 8, 9], np.float32),  # one vector, no suffix
      'other': np.zeros(3, np.float32),
  }
  given = _write(tmp_path / 'given', form, arrays)
  counts = text.cache_given(data, given)
  assert (counts.done, counts.empty) == (4, 2)
  find = feature_cache.look_up(data, 'text')
  np.testing.assert_array_equal(find('a.png'), arrays['a.png'])
  np.testing.assert_array_equal(find('c.png'), [[7, 8, 9]])
  assert find('b.png') is None and find('d.png') is None
  assert text.cache_given(data, given).kept == 4
  # Changed embeddings replace the old ones.
  arrays['c'] = np.array([0, 8, 9], np.float32)
  again = _write(tmp_path / 'again', form, arrays)
  assert text.cache_given(data, again).done == 1
  find = feature_cache.look_up(data, 'text')
  np.testing.assert_array_equal(find('c.png'), [[0, 8, 9]])


def test_given_embeddings_of_a_wrong_form(data, tmp_path):
  for arrays, message in (
      ({'a.png': np.zeros((1, 2, 3), np.float32)}, r'expected floats \[T, E\]'),
      ({'a.png': np.zeros(3), 'b.png': np.zeros(4)}, 'several widths'),
      ({'z.png': np.zeros(3)}, 'contains none of the rows'),
  ):
    np.savez(tmp_path / 'given.npz', **arrays)
    with pytest.raises(ValueError, match=message):
      text.cache_given(data, tmp_path / 'given.npz')
  (tmp_path / 'given.jsonl').write_text('{"file": "a.png"}\n')
  with pytest.raises(ValueError, match=r'given.jsonl line 1: expected'):
    text.cache_given(data, tmp_path / 'given.jsonl')
  with pytest.raises(FileNotFoundError, match=r'gone.npz does not exist'):
    text.cache_given(data, tmp_path / 'gone.npz')


def test_command_line(data, tmp_path, capsys):
  np.savez(tmp_path / 'given.npz', **{'a.png': np.zeros(3, np.float32)})
  arguments = [f'--data={data}', f'--embeddings={tmp_path / "given.npz"}']
  assert text.main(arguments) == 0
  assert '3 of them without text' in capsys.readouterr().out
  assert text.main([f'--data={data}', f'--model={tmp_path}']) == 1
  error = capsys.readouterr().err.strip()
  assert 'tokenizer.json does not exist' in error and '\n' not in error
