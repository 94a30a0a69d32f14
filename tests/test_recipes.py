"""Every recipe, tiny, on its dataset in the official layout."""

import importlib
import json

import jax
import numpy as np
import pytest

from tests.prepare import official_layouts as layouts
from vemd_jax import metrics, train
from vemd_jax.data import datasets, pipeline
from vemd_jax.prepare import dataset as prepare
from vemd_jax.prepare import index, text

pytestmark = pytest.mark.usefixtures('standard_promotion', 'one_device')

# Options of the preparation that the recipes below need.
OPTIONS = {
    'vgaf': {'audio': True},
    'samsemo': {'audio': True, 'multi_label': True},
    'mer2023': {'audio': True},
}
WITH_TEXT = ('vgaf', 'samsemo', 'mer2023')

# Recipe, options, and the terms of its loss.
HEATMAP = {'body_heatmap', 'face_heatmap'}
QUERY = {'body_query', 'face_query'}
CASES = [
    ('gaf3', '', {'emotion', 'kl', *HEATMAP}),
    ('vgaf', 'audio,ve_sd', {'emotion', 'kl'}),
    ('samsemo', 'audio,text,multi_label,ve_md', {'emotion', 'kl', *HEATMAP}),
    ('dfew', 'person_query', {'emotion', 'kl', 'face_query'}),
    ('mer2023', 'text,ve_sd', {'emotion', 'kl'}),
    ('engagenet', 'reference,ve_md', {'emotion', 'mmd', *HEATMAP}),
    ('coco', '', {'emotion', 'kl', *HEATMAP}),
    ('mer2023_semi', '', {'emotion', 'kl', *HEATMAP}),
    ('gaf3_from_coco', 've_md', {'emotion', 'kl', *HEATMAP}),
    ('mixture', 've_sd', {'emotion', 'kl'}),
    ('stage1', 'dfew', {'emotion'}),
    ('reference', 'projected,st_gcn,person_query', {
        'emotion', 'mmd', *QUERY}),
]  # fmt: skip
# Other options of the same recipes.
MORE = [
    ('gaf3', 've_md,person_query', {'emotion', 'kl', *QUERY}),
    ('coco', 'person_query', {'emotion', 'kl', *QUERY}),
    ('reference', 'heatmap,two_encoders', {'emotion', 'mmd', *HEATMAP}),
    ('reference', 've_sd', {'emotion', 'mmd'}),
]  # fmt: skip


@pytest.fixture(scope='module')
def root_of(tmp_path_factory):
  """Name of a dataset -> the folder where it is prepared, once."""
  roots = {}

  def get(name):
    if name not in roots:
      root = tmp_path_factory.mktemp(name)
      layouts.MAKERS[name](root / 'source')
      options = index.Options(frames=2, **OPTIONS.get(name, {}))
      prepare.prepare(
          name, root / 'source', root / 'out', options, workers=1,
          log=lambda _: None,
      )  # fmt: skip
      roots[name] = root / 'out'
      if name in WITH_TEXT:
        _embed(root)
    return str(roots[name])

  return get


def _embed(root):
  """Embeddings of transcripts for every other sample."""
  rows = (root / 'out' / 'index.jsonl').read_text().splitlines()
  files = [json.loads(row)['file'] for row in rows]
  rng = np.random.default_rng(0)
  given = {f: rng.standard_normal((3, 384), np.float32) for f in files[::2]}
  np.savez(root / 'given.npz', **given)
  text.cache_given(root / 'out', root / 'given.npz')


def recipe(name, words, root_of, **changes):
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config(f'{words},tiny' if words else 'tiny')
  if config.mixture:
    for dataset, data in config.mixture.items():
      data.root = root_of(dataset)
  else:
    config.data.root = root_of(config.data.name)
  # With few samples, neither side of the holdout may be empty.
  if config.data.holdout:
    shares = {'mer2023': 0.32, 'mer2023_semi': 0.4}
    config.data.holdout = shares.get(name, 0.5)
  config.update_from_flattened_dict({
      'batch_size': 2, 'eval.batch_size': 2, 'data.num_threads': 1,
      'data.image_size': 48, **changes,
  })  # fmt: skip
  return config


@pytest.mark.parametrize(
    'name, words, terms',
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_a_step_of_every_recipe_can_be_traced(
    name, words, terms, root_of, tmp_path
):
  config = recipe(name, words, root_of)
  run = train.set_up(config, tmp_path)
  step = run.train_step
  seen = set()
  for dataset, batch in pipeline.train_batches(run.datasets, 2, seed=0):
    if dataset not in seen:
      batch = {k: v for k, v in batch.items() if k != 'unreadable'}
      _, sums, scalars = jax.eval_shape(
          lambda s, b, n=dataset: step(s, b, n), run.target, batch
      )
      assert set(sums.terms) == terms
      assert scalars['loss'].shape == ()
      labelled = bool(run.classes[dataset])
      assert (sums.confusion is not None) == labelled
    seen.add(dataset)
    if seen == set(run.datasets):
      break
  if 'multi_label' in words:
    assert sums.multi_label.shape == (3, 5)


# Few layers, since compilation dominates the time.
SMALL = {
    'model.parts': ('body',), 'model.encoder.blocks': 1,
    'model.heatmap.stages': 1, 'optim.clip': 0.0, 'pictures.people': 'off',
}  # fmt: skip


def scalars_of(workdir, split):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [r for r in map(json.loads, lines) if r['split'] == split]


@pytest.mark.slow
def test_structure_from_one_dataset_and_labels_from_another(root_of, tmp_path):
  config = recipe('mixture', 've_md', root_of, **{
      'steps': 3, 'seed': 1, 'data.holdout': 0.3, **SMALL,
      'optim.frozen': ('vit', 'encoder_0'),
  })  # fmt: skip
  with config.unlocked():
    del config.mixture.vgaf
    config.mixture.coco.weight = 1.0
  train.train_and_evaluate(config, tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  gaf3, coco = results['val']['gaf3'], results['val']['coco']
  assert sum(map(sum, gaf3['confusion'])) == 3
  # GAF-3.0 is not annotated here, and COCO has no labels.
  assert 'body_heatmap' not in gaf3 and 'accuracy' not in coco
  assert coco['body_heatmap'] > 0 and coco['body_heatmap_mse'] > 0
  rows = scalars_of(tmp_path, 'train')
  assert len(rows) == 3 and all(np.isfinite(r['loss']) for r in rows)


@pytest.mark.slow
def test_sound_and_text_of_some_samples(root_of, tmp_path):
  config = recipe('vgaf', 'audio,text,person_query', root_of, **{
      'steps': 2, 'model.fusion.method': 'attention',
  })  # fmt: skip
  train.train_and_evaluate(config, tmp_path)
  for mask in 'audio_mask', 'text_mask':
    there = [
        bool(b[mask][0])
        for split in ('train', 'holdout')
        for b in pipeline.eval_batches(config.data, split, 1)
    ]
    assert set(there) == {True, False}
  rows = scalars_of(tmp_path, 'train')
  assert len(rows) == 2 and all(np.isfinite(r['loss']) for r in rows)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert sum(map(sum, results['val']['confusion'])) == 1


@pytest.mark.parametrize('name', datasets.DATASETS)
def test_every_split_opens(name, root_of):
  """The splits of a recipe: selection on one, reporting on others."""
  data = recipe(name, '', root_of).data
  facts = datasets.get(name)
  names = {}
  for split in ('train', 'val', 'test', 'holdout'):
    if (split == 'test' and not data.test_split) or (
        split == 'holdout' and not data.holdout
    ):
      continue
    source = pipeline.make_source(data, split)
    names[split] = set(source.files)
    assert len(source) and source.classes == facts.classes
  assert not names['train'] & names['val']
  held_out = facts.choose_split == 'holdout'
  assert ('holdout' in names) == held_out
  if facts.report_splits == ('holdout',):
    assert names['val'] == names['holdout'] and not data.val_split
    return
  if held_out:
    assert not names['holdout'] & (names['train'] | names['val'])
  # The official split is reported, and not used for selection if avoidable.
  reported = facts.report_splits[0]
  assert reported in (data.val_split, data.test_split)
  if name != 'coco':
    assert metrics.metric(facts.metrics[0]) in ('accuracy', 'weighted_f1')


def test_several_labels_of_a_sample(root_of):
  data = recipe('samsemo', 'multi_label', root_of).data
  rows = {
      (*b['label_multi_hot'][0].tolist(), bool(b['label_mask'][0]))
      for split in ('train', 'val', 'test')
      for b in pipeline.eval_batches(data, split, 1)
  }
  # Anger and surprise, without a single label; one label is unaffected.
  assert (0, 0, 0, 1, 1, False) in rows
  assert (0, 1, 0, 0, 0, True) in rows


def test_what_the_preparation_lacks_is_named(root_of):
  data = recipe('gaf3', 'audio', root_of).data
  # Images in a mixture with clips: no sound, and no error.
  batch = next(pipeline.eval_batches(data, 'val', 2))
  assert batch['audio'].shape == (2, 100, 64)
  assert not batch['audio_mask'].any()
  data.multi_label = True
  with pytest.raises(ValueError, match='without --multi_label'):
    pipeline.make_source(data, 'train')


def test_folds_of_dfew_are_different_tests(root_of):
  data = recipe('dfew', '', root_of).data
  tests = []
  for fold in range(1, 6):
    data.fold = fold
    tests.append(set(pipeline.make_source(data, 'val').files))
  # Clip 10 is missing, clip 11 has two labels.
  assert sum(map(len, tests)) == len(set.union(*tests)) == 9
