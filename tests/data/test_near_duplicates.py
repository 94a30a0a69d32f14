"""Copies are found whatever was done to them, and stay in one split."""

import collections
import itertools

import cv2
import numpy as np
import pytest

from vemd_jax.data import near_duplicates


def picture(seed, size=(120, 160)):
  """Smooth noise, another for each seed."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (9, 12, 3), np.uint8)
  return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def saved_again(image):
  return cv2.imdecode(cv2.imencode('.jpg', image, [1, 30])[1], cv2.IMREAD_COLOR)


CHANGES = {
    'itself': lambda image: image,
    'smaller': lambda image: cv2.resize(image, (70, 50)),
    'of another shape': lambda image: cv2.resize(image, (100, 100)),
    'saved again': saved_again,
    'brighter': lambda image: cv2.convertScaleAbs(image, alpha=0.8, beta=40),
    'in grey': lambda image: np.repeat(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, -1
    ),
    'mirrored': lambda image: np.ascontiguousarray(image[:, ::-1]),
    'cropped': lambda image: image[2:-2, 2:-2],
    'mirrored, smaller and saved again': lambda image: saved_again(
        cv2.resize(np.ascontiguousarray(image[:, ::-1]), (80, 60))
    ),
}


@pytest.mark.parametrize('change', CHANGES)
def test_copies_are_found_among_others(change):
  images = [picture(seed) for seed in range(40)]
  images.insert(11, CHANGES[change](images[25]))
  prints = [near_duplicates.fingerprint(image) for image in images]
  assert near_duplicates.pairs(prints) == [(11, 26)]


def test_pictures_of_one_colour_are_alike_only_in_that_colour():
  greys = 0, 255, 3, 128
  prints = [
      near_duplicates.fingerprint(np.full((40, 40, 3), grey, np.uint8))
      for grey in greys
  ]
  prints.append(near_duplicates.fingerprint(picture(0)))
  assert near_duplicates.pairs(prints) == [(0, 2)]
  assert near_duplicates.pairs([]) == []


def test_pairs_across_blocks():
  """More pictures than are compared at a time."""
  base = near_duplicates.fingerprint(picture(0))
  rng = np.random.default_rng(0)
  prints = [
      base._replace(hashes=rng.integers(0, 2**63, (2, 4), np.uint64))
      for _ in range(700)
  ]
  for i in 3, 255, 256, 699:
    prints[i] = base
  expected = list(itertools.combinations((3, 255, 256, 699), 2))
  assert near_duplicates.pairs(prints) == expected


def test_groups_are_what_pairs_connect():
  assert near_duplicates.groups(
      7, [(5, 6), (1, 3), (3, 5), (0, 2)]
  ).tolist() == [0, 1, 0, 1, 4, 1, 1]
  assert near_duplicates.groups(3, [(1, 2), (0, 2)]).tolist() == [0, 0, 0]
  assert near_duplicates.groups(0, []).tolist() == []


SHARES = {'train': 0.7, 'val': 0.2, 'test': 0.1}


def random_samples(seed, count=300):
  rng = np.random.default_rng(seed)
  labels = rng.choice(['a', 'b', 'c'], count, p=[0.6, 0.3, 0.1]).tolist()
  numbers = np.arange(count)
  pairs = rng.choice(numbers, (60, 2), replace=False)
  group = near_duplicates.groups(count, [tuple(sorted(p)) for p in pairs])
  return [f'{i}.jpg' for i in numbers], labels, group


@pytest.mark.parametrize('seed', range(3))
def test_split_keeps_groups_and_shares(seed):
  names, labels, group = random_samples(seed)
  splits = near_duplicates.split(names, labels, group, SHARES)
  for g in set(group.tolist()):
    assert len({s for s, other in zip(splits, group) if other == g}) == 1
  for label in 'abc':
    counts = collections.Counter(
        s for s, other in zip(splits, labels) if other == label
    )
    for split, share in SHARES.items():
      wanted = share * labels.count(label)
      assert abs(counts[split] - wanted) <= 2, (label, counts)


def test_split_depends_on_names_not_on_their_order():
  names, labels, group = random_samples(0)
  first = dict(zip(names, near_duplicates.split(names, labels, group, SHARES)))
  order = np.random.default_rng(1).permutation(len(names))
  # The groups' numbers are others then, and mean the same.
  again = near_duplicates.split(
      [names[i] for i in order], [labels[i] for i in order],
      1000 - group[order], SHARES,
  )  # fmt: skip
  assert dict(zip([names[i] for i in order], again)) == first


def test_rare_classes_are_in_every_split():
  labels = ['often'] * 40 + ['rare'] * 2 + ['once']
  names = [f'{i}' for i in range(43)]
  splits = near_duplicates.split(
      names, labels, np.arange(43), {'train': 0.9, 'val': 0.1}
  )
  assert sorted(splits[40:42]) == ['train', 'val']
  assert splits[42] == 'train'
  # One group cannot be divided.
  group = np.array([*range(40), 40, 40, 42])
  splits = near_duplicates.split(
      names, labels, group, {'train': 0.9, 'val': 0.1}
  )
  assert splits[40] == splits[41]
