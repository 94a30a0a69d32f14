"""Finds near-duplicate images, and splits samples without separating them.

If copies of a photograph (resized, recompressed, mirrored, cropped by a few per
cent) or neighbouring frames of a video are in both train and val, the
validation accuracy also measures memorisation.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

# Largest distance of near duplicates in bits. Hashes of unrelated images differ
# in 128 of 256 bits on average.
_BITS = 72
# Smallest correlation of the thumbnails, which excludes hash collisions.
_CORRELATION = 0.9
_SIDE = 32
# Images with a smaller standard deviation (of 255) are uniform: their hash is
# noise.
_FLAT = 2.0


class Fingerprint(NamedTuple):
  """Features by which images are compared.

  Attributes:
    hashes: [2, 4] uint64, perceptual hashes of the image and its mirror image.
    thumbnail: [32, 32] uint8, greyscale.
  """

  hashes: np.ndarray
  thumbnail: np.ndarray


def fingerprint(image: np.ndarray) -> Fingerprint:
  """Computes the fingerprint of an image.

  Args:
    image: uint8 [H, W, 3].

  Returns:
    The fingerprint. A hash compares the 16 x 16 lowest frequencies of the
    cosine transform with their median, as in pHash (http://phash.org).
  """
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(grey, (2 * _SIDE, 2 * _SIDE), interpolation=cv2.INTER_AREA)
  hashes = []
  for picture in small, small[:, ::-1]:
    low = cv2.dct(np.ascontiguousarray(picture, np.float32))[:16, :16].ravel()
    hashes.append(np.packbits(low > np.median(low)).view(np.uint64))
  thumbnail = cv2.resize(small, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  return Fingerprint(np.stack(hashes), thumbnail)


def pairs(fingerprints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
  """Finds near duplicates.

  Args:
    fingerprints: fingerprints of n images.

  Returns:
    Sorted pairs (i, j), i < j, of indices of near duplicates.
  """
  if not fingerprints:
    return []
  hashes = np.stack([f.hashes for f in fingerprints])
  found = []
  block = 256
  for start in range(0, len(hashes), block):
    rows = hashes[start : start + block, 0]
    for mirror in 0, 1:
      # The relation is symmetric, so earlier images are skipped.
      others = hashes[start:, mirror]
      distance = np.zeros((len(rows), len(others)), np.uint16)
      for a, b in zip(rows.T, others.T):  # Words of 64 bits.
        distance += np.bitwise_count(a[:, None] ^ b)
      for i, j in np.argwhere(distance <= _BITS):
        if i < j:
          found.append((start + int(i), start + int(j), bool(mirror)))
  return sorted({
      (i, j)
      for i, j, mirror in found
      if _alike(fingerprints[i], fingerprints[j], mirror)
  })


def _alike(one: Fingerprint, other: Fingerprint, mirror: bool) -> bool:
  a = one.thumbnail.astype(np.float32)
  b = other.thumbnail.astype(np.float32)
  if mirror:
    b = b[:, ::-1]
  if min(a.std(), b.std()) < _FLAT:
    return max(a.std(), b.std()) < _FLAT and abs(a.mean() - b.mean()) < 8
  return float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) >= _CORRELATION


def groups(count: int, together: Iterable[tuple[int, int]]) -> np.ndarray:
  """Connected components of a graph.

  Args:
    count: number of vertices n.
    together: edges, pairs of vertices.

  Returns:
    [n] int, for each vertex the smallest vertex of its component.
  """
  parent = np.arange(count)

  def root(i):
    while parent[i] != i:
      parent[i] = parent[parent[i]]
      i = parent[i]
    return i

  for i, j in together:
    a, b = root(i), root(j)
    parent[max(a, b)] = min(a, b)
  return np.array([root(i) for i in range(count)], int)


def split(
    names: Sequence[str],
    labels: Sequence[str],
    group: np.ndarray,
    shares: Mapping[str, float],
) -> list[str]:
  """Assigns samples to splits without separating the samples of a group.

  The split is stratified by class as far as the groups allow, and every split
  gets at least one group of each class if the class has enough of them. The
  result depends on the names only, not on their order.

  Args:
    names: names of the n samples.
    labels: classes of the samples.
    group: [n], see `groups`.
    shares: split -> its share of the samples; the shares sum to 1.

  Returns:
    The split of each sample.
  """
  members: dict[int, list[int]] = {}
  for i, g in enumerate(group):
    members.setdefault(int(g), []).append(i)

  def order(item):
    # Large groups are assigned first, so that small ones can balance classes.
    first = min(names[i] for i in item)
    digest = hashlib.sha256(first.encode('utf-8', 'surrogatepass')).digest()
    return -len(item), digest

  need = {
      (s, c): share * labels.count(c)
      for s, share in shares.items()
      for c in set(labels)
  }
  assigned: dict[str, list[list[int]]] = {s: [] for s in shares}
  for item in sorted(members.values(), key=order):
    # The split with the largest deficit in the group's classes.
    best = max(
        shares, key=lambda s: (sum(need[s, labels[i]] for i in item), s)
    )
    assigned[best].append(item)
    for i in item:
      need[best, labels[i]] -= 1
  _give_each_split_every_class(assigned, labels)
  result = [''] * len(names)
  for s, items in assigned.items():
    for item in items:
      for i in item:
        result[i] = s
  return result


def _give_each_split_every_class(assigned, labels):
  """Moves the smallest groups of a class to splits that lack the class."""
  for s, items in assigned.items():
    for name in sorted(set(labels)):
      if any(labels[i] == name for item in items for i in item):
        continue

      def having(other, name=name):
        return [
            item
            for item in assigned[other]
            if any(labels[i] == name for i in item)
        ]

      donors = [o for o in assigned if o != s and len(having(o)) > 1]
      if donors:
        donor = max(donors, key=lambda o: len(having(o)))
        item = min(having(donor), key=len)
        assigned[donor].remove(item)
        items.append(item)
