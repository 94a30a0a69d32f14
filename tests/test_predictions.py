"""What is stored of each sample, from batches of any order."""

import json
import types

import jax.numpy as jnp
import numpy as np
from scipy import special

from vemd_jax import predictions


def batch(index, label, logits, readable=None):
  outputs = types.SimpleNamespace(logits=jnp.asarray(logits, jnp.float32))
  label = np.array(label)
  return predictions.keep(outputs, {
      'index': jnp.asarray(index), 'label': jnp.asarray(np.maximum(label, 0)),
      'label_mask': jnp.asarray(label >= 0),
      'mask': jnp.asarray(
          np.array(index) >= 0 if readable is None else readable
      ),
      'image': jnp.zeros(3),
  })  # fmt: skip


def example():
  logits = np.random.default_rng(0).normal(size=(6, 3)) * 3
  logits[1] = 9, 0, 0  # Sure and right; the next one sure and wrong.
  logits[2] = 0, 8, 0
  logits[4] = 0, 0, 0.1
  kept = [
      batch([0, 2, 4], [-1, 2, 1], logits[[0, 2, 4]]),
      # As a second process has them, with a filled up place at the end.
      batch([1, 3, -1], [0, 1, -1], logits[[1, 3, 5]], [True, False, False]),
  ]
  return logits, predictions.gather(kept)


def test_gather_sorts_and_leaves_filling_out():
  logits, found = example()
  assert found.index.tolist() == [0, 1, 2, 3, 4]
  assert found.label.tolist() == [-1, 0, 2, 1, 1]
  wanted = special.softmax(logits[:5], axis=1)
  wanted[3] = np.nan  # It could not be read.
  np.testing.assert_allclose(found.probabilities, wanted, rtol=1e-5)


def test_ranked_by_confidence():
  _, found = example()
  ranked = {key: value.tolist() for key, value in found.ranked().items()}
  assert ranked == {'right': [1], 'wrong': [2, 4], 'unsure': [4, 2, 1]}


def test_no_emotion_head():
  outputs = types.SimpleNamespace(logits=None)
  assert predictions.gather([predictions.keep(outputs, {})]) is None


def test_lines_and_back(tmp_path):
  _, found = example()
  source = types.SimpleNamespace(
      files=['a', 'b', 'c', 'd', 'e'], sources=['x', '', 'y', 'y', 'y']
  )
  lines = list(predictions.lines(
      found, split='val', dataset='mine', classes=('n', 'o', 'p'), source=source
  ))  # fmt: skip
  assert [x['file'] for x in lines] == source.files
  assert [x['label'] for x in lines] == [None, 'n', 'p', 'o', 'o']
  assert [x.get('source') for x in lines] == ['x', None, 'y', 'y', 'y']
  assert lines[3]['unreadable'] and 'probabilities' not in lines[3]
  np.testing.assert_allclose(
      lines[1]['probabilities'], found.probabilities[1], atol=1e-6
  )
  text = ''.join(json.dumps(x, allow_nan=False) + '\n' for x in lines)
  (tmp_path / predictions.NAME).write_text(text)
  assert predictions.read(tmp_path) == lines
  assert predictions.read(tmp_path / 'nothing') == []
  nameless = predictions.lines(
      found, split='val', dataset='drawn', classes='nop', source=object()
  )
  assert next(nameless)['file'] == 'drawn/val/000000'
