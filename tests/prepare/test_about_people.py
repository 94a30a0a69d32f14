"""Prepared data and caches say what they hold about people."""

import types

import numpy as np

from vemd_jax.data import feature_cache
from vemd_jax.prepare import index, report


def test_prepared_data_list_the_fields_that_are_filled():
  sample = types.SimpleNamespace(
      bodies=((0.0,) * 51,), faces=None, transcript=''
  )
  options = index.Options(frames=1, hash_names=True, audio=True)
  found = report._about_people(options, [sample])
  assert set(found) == {'frames', 'file', 'bodies', 'audio', 'note'}
  assert 'hashed' in found['file'] and '640' in found['frames']
  sample.transcript, sample.bodies = 'hello', None
  found = report._about_people(index.Options(frames=1), [sample])
  assert set(found) == {'frames', 'file', 'transcript', 'note'}
  assert 'hashed' not in found['file']


def test_a_cache_says_what_it_holds(tmp_path):
  job = feature_cache.Job(
      'a.jpg', 1, lambda: 'ab', lambda: np.zeros((1, 2), np.float32)
  )
  feature_cache.fill(tmp_path / 'c', {}, [job], holds='features of voices')
  text = (tmp_path / 'c' / 'README.md').read_text()
  assert 'features of voices' in text and 'protect' in text
  assert (tmp_path / 'c' / 'ab.npz').exists()
