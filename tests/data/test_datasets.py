"""The metadata of the datasets."""

import numpy as np
import pytest

from vemd_jax.data import datasets

# Class orders and label codes as in the datasets' own descriptions.
_LABELS = {
    'gaf3': ['Negative', 'Neutral', 'Positive'],
    'vgaf': ['1', '2', '3'],
    'samsemo': ['happiness', 'neutral', 'sadness', 'anger', 'surprise'],
    'dfew': ['1', '2', '3', '4', '5', '6', '7'],
    'mer2023': ['neutral', 'angry', 'happy', 'sad', 'worried', 'surprise'],
    'engagenet': [
        'Not-Engaged', 'Barely-engaged', 'Engaged', 'Highly-Engaged',
    ],
}  # fmt: skip


@pytest.mark.parametrize('name', _LABELS)
def test_file_labels_give_the_classes_in_order(name):
  facts = datasets.get(name)
  numbers = [datasets.class_of(facts, label) for label in _LABELS[name]]
  assert numbers == list(range(len(facts.classes)))


def test_names_of_coded_labels():
  vgaf, dfew = datasets.get('vgaf'), datasets.get('dfew')
  assert vgaf.classes[datasets.class_of(vgaf, '1')] == 'positive'
  assert vgaf.classes[datasets.class_of(vgaf, '3')] == 'negative'
  assert dfew.classes[datasets.class_of(dfew, '1')] == 'happy'
  assert dfew.classes[datasets.class_of(dfew, '7')] == 'fear'
  engagenet = datasets.get('engagenet')
  assert engagenet.classes[datasets.class_of(engagenet, '3')] == (
      'highly-engaged'
  )
  samsemo = datasets.get('samsemo')
  assert samsemo.classes[datasets.class_of(samsemo, 'disgust')] == 'anger'


@pytest.mark.parametrize(
    'text', ['highly-engaged', ' HIGHLY_ENGAGED', '"Highly Engaged" ', '3.0']
)
def test_spellings_of_a_label(text):
  assert datasets.class_of(datasets.get('engagenet'), text) == 3


@pytest.mark.parametrize(
    ('name', 'text', 'reason'),
    [
        ('engagenet', 'SNP(Subject Not Present)', 'SNP'),
        ('samsemo', 'fear', 'not used'),
        ('vgaf', '0', 'unknown label'),
        ('vgaf', '4', 'unknown label'),
        ('dfew', '0', 'unknown label'),
        ('gaf3', '', 'empty'),
        ('gaf3', '1', 'unknown label'),  # has no meaning without an order
    ],
)
def test_labels_of_no_class_say_why(name, text, reason):
  with pytest.raises(ValueError, match=reason):
    datasets.class_of(datasets.get(name), text)


def test_label_order_replaces_the_table():
  facts = datasets.get('gaf3')
  order = ('positive', 'neutral', 'negative')
  assert [datasets.class_of(facts, t, order) for t in '012'] == [2, 1, 0]
  with pytest.raises(ValueError, match='unknown'):
    datasets.class_of(facts, '3', order)


@pytest.mark.parametrize('name', datasets.DATASETS)
def test_facts_fit_together(name):
  facts = datasets.get(name)
  assert facts.name == name
  assert len(set(facts.classes)) == len(facts.classes)
  assert facts.labels == bool(facts.classes)
  assert set(facts.file_labels.values()) <= set(range(len(facts.classes)))
  # Labels are normalised before the look-up, so keys must be normalised, too.
  for key in (*facts.file_labels, *facts.dropped_labels, *facts.classes):
    assert datasets.normalize_label(key) == key
  splits = {*facts.splits, 'holdout', *(('train', 'test') * bool(facts.folds))}
  assert {facts.choose_split, *facts.report_splits} <= splits
  # Except for structure, the checkpoint is never selected on a reported split.
  if facts.labels:
    assert facts.choose_split not in facts.report_splits
  assert (facts.kind == 'structure') == (not facts.labels)
  assert (facts.media == 'image') == (facts.frames == 1)
  assert datasets.EPOCHS_RANGE[0] <= facts.epochs <= datasets.EPOCHS_RANGE[1]
  assert all(0 < p.value < 100 for p in facts.published)
  counted = [n for n in facts.splits.values() if n is not None]
  assert bool(counted) == bool(facts.counts_source)


def test_reference_settings():
  batch = {n: d.batch_size for n, d in datasets.DATASETS.items()}
  assert batch.pop('gaf3') == 32
  assert batch.pop('vgaf') == 8
  assert set(batch.values()) == {10}
  frames = {n: d.frames for n, d in datasets.DATASETS.items()}
  assert frames == {
      'gaf3': 1, 'vgaf': 5, 'samsemo': 10, 'dfew': 16, 'mer2023': 10,
      'mer2023_semi': 5, 'engagenet': 10, 'coco': 1,
  }  # fmt: skip


def test_unknown_name_lists_the_known():
  with pytest.raises(ValueError, match='gaf3, vgaf'):
    datasets.get('gaf')


def test_holdout_values():
  values = np.array([
      datasets.holdout_value('dfew', f'{i:05}') for i in range(4000)
  ])
  assert values.min() >= 0
  assert values.max() < 1
  # Uniformity by a Kolmogorov-Smirnov test at the 0.1 % level.
  gap = np.abs(np.sort(values) - np.arange(4000) / 4000).max()
  assert gap < 1.95 / np.sqrt(4000)
  # Must never change, since samples would move between the parts. The digits
  # are those of `printf vgaf/10 | b2sum -l 64`.
  expected = (0x7DE1EFF96872CEB0 >> 11) / 2**53
  assert datasets.holdout_value('vgaf', '10') == expected
  assert datasets.holdout_value('dfew', '10') != expected
