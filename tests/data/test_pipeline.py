"""Batches: order, resumption, processes, workers, mixture, padding."""

import json
from types import SimpleNamespace

import cv2
import grain
import numpy as np
import pytest

from vemd_jax import config as config_lib
from vemd_jax.data import pipeline, prepared


def _folder(root, count, splits=('train',), classes=('x', 'y')):
  """Images whose colour encodes their index, each with one body."""
  rows, lines = ['file,split,label'], []
  for split in splits:
    for i in range(count):
      name = f'{split}{i:03d}.png'
      image = np.full((24, 32, 3), 2 * i + 10, np.uint8)
      root.mkdir(exist_ok=True)
      (root / name).write_bytes(cv2.imencode('.png', image)[1].tobytes())
      rows.append(f'{name},{split},{classes[i % len(classes)]}')
      body = [[8.0 + j, 12.0, 1.0] for j in range(17)]
      lines.append(json.dumps({'file': name, 'bodies': [body]}))
  (root / 'labels.csv').write_text('\n'.join(rows))
  (root / 'annotations.jsonl').write_text('\n'.join(lines))
  return root


def _settings(root, **changes):
  data = config_lib.default().data
  data.update(
      name='mine', source='folder', root=str(root), image_size=16,
      max_people=2, num_threads=2,
  )  # fmt: skip
  data.augment.update(
      crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), brightness=0.0,
      contrast=0.0, saturation=0.0, hue=0.0,
  )  # fmt: skip
  data.update(changes)
  return data


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return _folder(tmp_path_factory.mktemp('own') / 'data', 11, ('train', 'val'))


def _numbers(batch):
  """Indices of the images of a batch."""
  values = batch['image'].astype(int).max((1, 2, 3, 4))
  return ((values - 10) // 2).tolist()


def _take(batches, count):
  result = [next(batches) for _ in range(count)]
  batches.close()
  return result


def _train(data, count, batch_size=4, **kwargs):
  kwargs = {'seed': 7, **kwargs}
  return _take(
      pipeline.train_batches({'mine': data}, batch_size, **kwargs), count
  )


def _assert_equal(ours, theirs):
  assert len(ours) == len(theirs)
  for (name, a), (other, b) in zip(ours, theirs):
    assert name == other and a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def _augmented(root, **changes):
  data = _settings(root, **changes)
  data.augment.update(crop_scale=(0.4, 1.0), brightness=0.3, hue=0.1)
  return data


# ---------------------------------------------------------------- training


def test_batch_has_the_agreed_fields(root):
  data = _settings(
      root, frames=2, targets='host', heatmap_size=8, audio_dim=3, vit_dim=0
  )
  ((name, batch),) = _train(data, 1)
  assert name == 'mine'
  shapes = {k: (v.shape, v.dtype.name) for k, v in batch.items()}
  assert shapes == {
      'image': ((4, 2, 16, 16, 3), 'uint8'),
      'label': ((4,), 'int32'),
      'label_mask': ((4,), 'bool'),
      'mask': ((4,), 'bool'),
      'unreadable': ((4,), 'int32'),
      'body_keypoints': ((4, 2, 2, 17, 3), 'float32'),
      'body_mask': ((4, 2, 2), 'bool'),
      'body_annotated': ((4, 2), 'bool'),
      'body_dropped': ((4, 2), 'int32'),
      'body_heatmap': ((4, 2, 8, 8, 18), 'float32'),
      'face_keypoints': ((4, 2, 2, 68, 3), 'float32'),
      'face_mask': ((4, 2, 2), 'bool'),
      'face_annotated': ((4, 2), 'bool'),
      'face_dropped': ((4, 2), 'int32'),
      'face_heatmap': ((4, 2, 8, 8, 83), 'float32'),
  }
  assert batch['mask'].all() and batch['body_annotated'].all()
  assert not batch['face_annotated'].any()
  data.targets = 'device'
  ((_, batch),) = _train(data, 1)
  assert 'body_heatmap' not in batch
  data.update(targets='host', heatmap_size=0)
  with pytest.raises(ValueError, match=r'data.heatmap_size is 0'):
    _train(data, 1)


def test_epochs_are_complete_and_differ(root):
  batches = _train(_settings(root), 11, batch_size=4)  # 44 = 4 epochs of 11.
  order = [n for _, batch in batches for n in _numbers(batch)]
  epochs = [order[i : i + 11] for i in range(0, 44, 11)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(11))
  assert len({tuple(epoch) for epoch in epochs}) == 4
  other = _train(_settings(root), 11, seed=8)
  assert [n for _, b in other for n in _numbers(b)] != order


def test_labels_stay_with_their_images(root):
  for _, batch in _train(_settings(root), 3):
    np.testing.assert_array_equal(
        batch['label'], np.array(_numbers(batch)) % 2
    )
    assert batch['label_mask'].all()


@pytest.mark.parametrize('start', [1, 3, 7])
def test_resumed_is_what_it_would_have_been(root, start):
  data = _augmented(root)
  straight = _train(data, 8)
  _assert_equal(_train(data, 8 - start, start_step=start), straight[start:])


def test_augmentation_differs_between_samples_and_epochs(root):
  data = _augmented(root)
  seen = {}
  for _, batch in _train(data, 11):
    for body in batch['body_keypoints'][:, 0, 0]:
      seen.setdefault(body.tobytes(), 0)
  assert len(seen) > 40  # Of 44.


def test_threads_change_nothing(root):
  one = _train(_augmented(root, num_threads=1), 6)
  _assert_equal(_train(_augmented(root, num_threads=4), 6), one)
  _assert_equal(_train(_augmented(root, num_threads=0), 6), one)


def test_workers_change_nothing(root):
  # Starting a process takes seconds, so only one number of workers is tested.
  straight = _train(_augmented(root), 6)
  data = _augmented(root, num_workers=2)
  _assert_equal(_train(data, 4, start_step=2), straight[2:])


@pytest.mark.slow
@pytest.mark.parametrize('workers', [1, 3])
def test_any_number_of_workers_changes_nothing(root, workers):
  straight = _train(_augmented(root), 8)
  data = _augmented(root, num_workers=workers, cache=True)
  _assert_equal(_train(data, 8), straight)


def test_cache_changes_nothing(root):
  data = _augmented(root)
  _assert_equal(_train(_augmented(root, cache=True), 8), _train(data, 8))


def test_cache_decodes_once(root, monkeypatch):
  data = _settings(root, cache=True, name='decodes once')
  source = pipeline.make_source(data, 'train')
  read = []
  get = type(source._source).__getitem__

  def count(self, index):
    if self is source._source:  # Others may still be prefetched by threads.
      read.append(index)
    return get(self, index)

  monkeypatch.setattr(type(source._source), '__getitem__', count)
  for _ in range(3):
    for i in range(len(source)):
      assert source[i]['frames'][0].shape == (24, 32, 3)
  assert sorted(read) == list(range(11))
  # All evaluations share one source, regardless of their transform.
  data.update(heatmap_size=8, targets='host', max_people=3)
  assert pipeline.make_source(data, 'train') is source


def test_cache_bounds_the_images(tmp_path):
  image = np.full((300, 400, 3), 50, np.uint8)
  (tmp_path / 'a.png').write_bytes(cv2.imencode('.png', image)[1].tobytes())
  (tmp_path / 'labels.csv').write_text('file,split,label\na.png,train,x\n')
  body = [[200.0, 150.0, 1.0]] * 17
  (tmp_path / 'annotations.jsonl').write_text(
      json.dumps({'file': 'a.png', 'bodies': [body]})
  )
  data = _settings(tmp_path, cache=True)
  record = pipeline.make_source(data, 'train')[0]
  assert record['frames'][0].shape == (24, 32, 3)
  np.testing.assert_allclose(
      record['bodies'][0][0, 0], (200.5 * 0.08 - 0.5, 150.5 * 0.08 - 0.5, 1)
  )


def test_changed_files_are_read_again(tmp_path):
  root = _folder(tmp_path / 'data', 3)
  data = _settings(root)
  assert len(pipeline.make_source(data, 'train')) == 3
  _folder(root, 4)
  assert len(pipeline.make_source(data, 'train')) == 4


# Rows of a global batch of 8 for each process, by number of processes; the last
# ones as on a mesh whose order of devices alternates between processes.
ROWS = {
    2: [range(4), range(4, 8)],
    4: [range(0, 2), range(2, 4), range(4, 6), range(6, 8)],
    'alternating': [[0, 1, 4, 5], [2, 3, 6, 7]],
}


def _joined(parts, rows):
  """The global batches, from the rows that each process has read."""
  result = []
  for steps in zip(*parts):
    assert len({name for name, _ in steps}) == 1
    joined = {}
    for key in steps[0][1]:
      shape = (8, *steps[0][1][key].shape[1:])
      joined[key] = np.empty(shape, steps[0][1][key].dtype)
      for (_, batch), own in zip(steps, rows):
        joined[key][list(own)] = batch[key]
    result.append((steps[0][0], joined))
  return result


@pytest.mark.parametrize('processes', ROWS)
def test_processes_read_the_batches_of_one(root, processes):
  """Samples and augmentation, also across the end of an epoch."""
  data = _augmented(root)
  straight = _train(data, 6, batch_size=8)
  parts = [
      _train(data, 4, batch_size=8, rows=rows, start_step=2)
      for rows in ROWS[processes]
  ]
  _assert_equal(_joined(parts, ROWS[processes]), straight[2:])


def test_a_process_decodes_only_its_rows(root, monkeypatch):
  read = []
  source = pipeline.make_source(_settings(root, cache=True), 'train')
  get = type(source).__getitem__

  def count(self, index):
    if self is source:  # Others may still be prefetched by threads.
      read.append(index)
    return get(self, index)

  monkeypatch.setattr(type(source), '__getitem__', count)
  batches = pipeline._batches(
      pipeline._shuffled(source, 'mine', 7), 8, ROWS['alternating'][1]
  )
  for i in range(11):
    assert len(batches[i]['label']) == 4
  assert len(read) == 44


def test_split_smaller_than_a_batch(root):
  ((_, batch),) = _train(_settings(root), 1, batch_size=25)
  counts = np.bincount(_numbers(batch), minlength=11)
  assert counts.min() == 2 and counts.max() == 3
  assert pipeline.steps_per_epoch({'mine': _settings(root)}, 25) == 1


def test_unreadable_samples_do_not_stop_a_run(tmp_path):
  root = _folder(tmp_path / 'data', 6)
  (root / 'train002.png').write_bytes(b'rubbish in test_pipeline')
  ((_, batch),) = _train(_settings(root), 1, batch_size=6)
  assert batch['unreadable'].sum() == 1
  np.testing.assert_array_equal(batch['mask'], batch['unreadable'] == 0)
  np.testing.assert_array_equal(batch['label_mask'], batch['mask'])
  np.testing.assert_array_equal(batch['body_annotated'][:, 0], batch['mask'])


# ---------------------------------------------------------------- mixture


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  base = tmp_path_factory.mktemp('mixture')
  return {
      'large': _settings(_folder(base / 'a', 20), name='large'),
      'small': _settings(_folder(base / 'b', 6), name='small', weight=2.0),
  }


def test_mixture_uses_everything_up(two):
  assert pipeline.batches_per_epoch(two, 4) == {'large': 5, 'small': 3}
  assert pipeline.steps_per_epoch(two, 4) == 8
  batches = _take(pipeline.train_batches(two, 4, seed=0), 24)
  orders = []
  for epoch in range(3):
    part = batches[8 * epoch : 8 * epoch + 8]
    names = [name for name, _ in part]
    assert names.count('large') == 5
    large = [n for name, b in part if name == 'large' for n in _numbers(b)]
    assert sorted(large) == list(range(20))
    orders.append(names)
  # Six samples, of which twelve are drawn per epoch: each one twice.
  small = [n for name, b in batches if name == 'small' for n in _numbers(b)]
  for i in range(0, 36, 6):
    assert sorted(small[i : i + 6]) == list(range(6))
  assert orders[0] != orders[1] or orders[1] != orders[2]


def test_mixture_resumes(two):
  straight = _take(pipeline.train_batches(two, 4, seed=3), 20)
  for start in (1, 7, 8, 13):
    resumed = pipeline.train_batches(two, 4, seed=3, start_step=start)
    _assert_equal(_take(resumed, 20 - start), straight[start:])


@pytest.mark.parametrize('processes', ROWS)
def test_processes_read_the_mixture_of_one(two, processes):
  straight = _take(pipeline.train_batches(two, 8, seed=1), 10)
  parts = [
      _take(pipeline.train_batches(two, 8, seed=1, rows=rows), 10)
      for rows in ROWS[processes]
  ]
  _assert_equal(_joined(parts, ROWS[processes]), straight)


def test_the_order_is_that_of_earlier_versions(root):
  """Recorded when each process still read a shard of its own."""
  order = [n for _, b in _train(_settings(root), 3) for n in _numbers(b)]
  assert order == [3, 8, 0, 6, 5, 2, 9, 7, 10, 4, 1, 5]


# -------------------------------------------------------------- evaluation


@pytest.mark.parametrize('processes', [1, *ROWS])
def test_evaluation_is_complete_and_padded(root, processes):
  data = _augmented(root)
  seen, counts, indices = [], [], []
  for rows in ROWS.get(processes, [None]):
    batches = list(pipeline.eval_batches(data, 'val', 8, rows))
    counts.append(len(batches))
    for batch in batches:
      assert batch['image'].shape[0] == (8 if rows is None else len(rows))
      mask = batch['mask']
      seen += [n for n, m in zip(_numbers(batch), mask) if m]
      indices += batch['index'][mask].tolist()
      assert (batch['index'][~mask] == -1).all()
      for key in ('label_mask', 'body_annotated', 'body_mask', 'image'):
        assert not batch[key][~mask].any()
      assert not batch['unreadable'].any()
  assert set(counts) == {2}
  assert sorted(seen) == list(range(11))
  # The samples lie in the folder in the order of their numbers.
  assert indices == seen


def test_evaluation_does_not_change(root):
  data = _augmented(root)
  first = list(pipeline.eval_batches(data, 'val', 4))
  again = list(pipeline.eval_batches(data, 'val', 4))
  _assert_equal([('', b) for b in first], [('', b) for b in again])
  assert [n for b in first for n in _numbers(b)][:11] == list(range(11))


# ---------------------------------------------------------------- sources


def test_splits(tmp_path):
  root = _folder(tmp_path / 'data', 40, ('train', 'val', 'other'))
  data = _settings(root, test_split='other')
  assert [len(pipeline.make_source(data, s)) for s in ('train', 'val', 'test')
          ] == [40, 40, 40]  # fmt: skip
  data.holdout = 0.3
  train = pipeline.make_source(data, 'train').files
  held = pipeline.make_source(data, 'holdout').files
  assert 4 < len(held) < 20 and len(train) + len(held) == 40
  assert len(pipeline.make_source(data, 'val')) == 40
  data.val_split = ''
  assert pipeline.make_source(data, 'val').files == held
  data.holdout = 0.0
  with pytest.raises(ValueError, match=r'set data.val_split, or data.holdout'):
    pipeline.make_source(data, 'val')
  data.test_split = ''
  with pytest.raises(ValueError, match=r'data.test_split is empty'):
    pipeline.make_source(data, 'test')
  with pytest.raises(ValueError, match=r"split 'dev', expected train"):
    pipeline.make_source(data, 'dev')


def test_group_scenes_source():
  data = _settings('', source='group_scenes', holdout=0.25, frames=2)
  data.group_scenes.update(
      size=32, people=(1, 3), train_samples=8, val_samples=3, test_samples=2
  )
  data.test_split = 'test'
  sizes = {s: len(pipeline.make_source(data, s))
           for s in ('train', 'holdout', 'val', 'test')}  # fmt: skip
  assert sizes == {'train': 6, 'holdout': 2, 'val': 3, 'test': 2}
  assert len(pipeline.make_source(data, 'train').classes) == 3
  ((_, batch),) = _train(data, 1, batch_size=2)
  assert batch['image'].shape == (2, 2, 16, 16, 3) and batch['mask'].all()
  assert batch['body_annotated'].all() and batch['body_mask'].any()
  held = list(pipeline.eval_batches(data, 'holdout', 2))
  whole = pipeline.make_source(data, 'holdout')[1]['file']
  assert whole.endswith('train/000007') and len(held) == 1


def test_prepared_source(monkeypatch, tmp_path):
  asked = []

  class Prepared:
    classes, labels = ('x',), np.zeros(2, np.int32)

    def __init__(self, root, **kwargs):
      asked.append((root, kwargs))

    def __len__(self):
      return 2

  monkeypatch.setattr(prepared, 'PreparedSource', Prepared)
  data = _settings(tmp_path, source='tfds', fold=2, holdout=0.1, frames=3)
  for split in ('train', 'holdout', 'val'):
    assert len(pipeline.make_source(data, split)) == 2
  more = {'fold': 2, 'frames': 3, 'max_unreadable': 0.05, 'text': None}
  assert asked == [
      (str(tmp_path), {'split': 'train', 'holdout': 0.1, **more}),
      (str(tmp_path), {'split': 'holdout', 'holdout': 0.1, **more}),
      (str(tmp_path), {'split': 'val', 'holdout': 0.0, **more}),
  ]
  data.source = 'else'
  with pytest.raises(ValueError, match="data.source is 'else'.* one of"):
    pipeline.make_source(data, 'train')


def test_settings_need_no_config_class(root):
  data = _settings(root)
  plain = SimpleNamespace(**{
      **data.to_dict(),
      'augment': SimpleNamespace(**data.augment.to_dict()),
      'group_scenes': SimpleNamespace(**data.group_scenes.to_dict()),
  })
  _assert_equal(_train(plain, 2), _train(data, 2))


def test_mixture_order_is_a_permutation():
  mixture = pipeline._Mixture([None, None, None], [3, 1, 4], seed=5)
  for epoch in range(4):
    which, turn = mixture.order(epoch)
    pairs = sorted(zip(which.tolist(), turn.tolist()))
    assert pairs == [(d, i) for d, n in enumerate((3, 1, 4)) for i in range(n)]


def test_grain_reads_few_batches_ahead():
  read = grain.MapDataset.range(1000).map(lambda i: seen.append(i) or (0, i))
  seen = []
  batches = pipeline._iterate(read, threads=2, workers=0)
  next(batches)
  batches.close()
  assert len(seen) < 20
