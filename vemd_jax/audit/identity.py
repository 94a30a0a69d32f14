"""Re-identification: which person a picture shows, from a tap.

The attacker knows pictures of other people, whom the fitting split shows, and
learns from them which directions tell people apart (linear discriminant
analysis). Then it compares pictures of people that it has never seen: each with
one known picture of everyone (closed set), or in pairs (verification).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vemd_jax.audit import measure, probe
from vemd_jax.audit.measure import Measure

# At most this number of pictures of a subject, so that none dominates.
_MOST = 10
CLOSED, VERIFY = 'closed set', 'verification'


class People(NamedTuple):
  """Pictures that the attack compares.

  Attributes:
    fit: [n] number of the subject of each sample to fit on, -1 to leave it out.
    pictures: indices of the compared samples of the test split.
    subjects: [m] number of the subject of each of them.
    known: [m] bool, whether it is the known picture of its subject.
  """

  fit: np.ndarray
  pictures: np.ndarray
  subjects: np.ndarray
  known: np.ndarray


def choose(fit: Sequence[str], test: Sequence[str]) -> People:
  """Selects the pictures to compare.

  Args:
    fit: subject of each sample of the fitting split, '' if unknown.
    test: those of the test split.

  Returns:
    The pictures: up to ten of each subject of the test split that has two or
    more.

  Raises:
    ValueError: if there are too few subjects with two pictures.
  """
  rng = np.random.default_rng(0)
  names, numbers = np.unique(np.asarray(test), return_inverse=True)
  chosen = []
  for number, name in enumerate(names):
    own = np.flatnonzero(numbers == number)
    if name and len(own) > 1:
      chosen.append(rng.permutation(own)[:_MOST])
  if len(chosen) < measure.FEWEST:
    raise ValueError(
        f'{len(chosen)} subjects with two or more pictures in the test split '
        f'are too few for an interval, expected {measure.FEWEST} or more'
    )
  pictures = np.concatenate(chosen)
  known = np.concatenate([np.arange(len(own)) == 0 for own in chosen])
  names, numbers, counts = np.unique(
      np.asarray(fit), return_inverse=True, return_counts=True
  )
  usable = (counts > 1) & (names != '') & ~np.isin(names, np.asarray(test))
  return People(
      fit=np.where(usable[numbers], numbers, -1),
      pictures=pictures,
      subjects=np.repeat(np.arange(len(chosen)), list(map(len, chosen))),
      known=known,
  )


def embedder(
    reduced: probe.Reduced, people: People
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
  """Learns the directions that tell people apart.

  Args:
    reduced: the tap.
    people: the pictures.

  Returns:
    (components [m, k] -> unit vectors [m, e], method).
  """
  from sklearn import discriminant_analysis

  x, _ = reduced.few
  kept = people.fit >= 0
  count = len(np.unique(people.fit[kept]))
  width = x.shape[1]
  if count <= 2 or width < 2:
    return lambda z: _unit(z[:, :width]), 'principal components'
  analysis = discriminant_analysis.LinearDiscriminantAnalysis(
      solver='eigen', shrinkage=0.1, n_components=min(64, count - 1, width)
  )
  analysis.fit(x[kept], people.fit[kept])
  return (
      lambda z: _unit(analysis.transform(z[:, :width])),
      'linear discriminant analysis',
  )


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def attack(
    tap: str, reduced: probe.Reduced, people: People
) -> tuple[list[Measure], tuple[list[float], list[float]]]:
  """Attacks a tap.

  Args:
    tap: its name.
    reduced: its values.
    people: the pictures, from `choose`.

  Returns:
    (measures, rates of false and of true positives of the verification).
  """
  embed, method = embedder(reduced, people)
  vectors = embed(reduced.test[people.pictures])
  measures = [closed_set(tap, vectors, vectors, people, method)]
  more, curve = _verify(tap, vectors, people, method)
  return measures + more, curve


def closed_set(
    tap: str,
    known: np.ndarray,
    asked: np.ndarray,
    people: People,
    method: str,
    attack: str = 'identity',
) -> Measure:
  """Share of pictures whose nearest known picture is of the same person.

  Args:
    tap: name of the tap.
    known: [m, e] unit vectors; those of the known pictures are compared with.
    asked: [m, e] unit vectors; those of the other pictures are asked for.
    people: the pictures.
    method: method of the attacker.
    attack: name of the attack.

  Returns:
    The mean over subjects, so that each has the same weight.
  """
  gallery, others = people.known, ~people.known
  similar = asked[others] @ known[gallery].T
  subjects = people.subjects[others]
  right = people.subjects[gallery][similar.argmax(1)] == subjects
  by_subject = np.array([
      right[subjects == s].mean() for s in np.unique(subjects)
  ])
  value, low, high = measure.bootstrap(
      lambda w: float(np.average(by_subject, weights=w)),
      np.arange(len(by_subject)),
      'subjects',
  )
  return Measure(
      attack, CLOSED, tap, 'rank-1 accuracy', value, low, high,
      1 / len(by_subject), len(by_subject), 'subjects', method,
  )  # fmt: skip


def _verify(tap, vectors, people, method):
  first, second = np.triu_indices(len(vectors), 1)
  scores = np.einsum('ne,ne->n', vectors[first], vectors[second])
  one, other = people.subjects[first], people.subjects[second]
  roc = measure.Roc(scores, one == other)
  count = int(people.subjects.max()) + 1
  units = np.arange(count)

  def pairs(weights):
    # Drawing a subject twice repeats its pairs; pairs of it with its own copy
    # are left out, since they would compare pictures with themselves.
    return np.where(one == other, weights[one], weights[one] * weights[other])

  measures = []
  for metric, chance, function in (
      ('area under ROC', 0.5, roc.area),
      ('equal error rate', 0.5, roc.equal_error),
  ):
    values = measure.bootstrap(
        lambda w, f=function: f(pairs(w)), units, 'subjects'
    )
    measures.append(
        Measure('identity', VERIFY, tap, metric, *values, chance, count,
                'subjects', method)
    )  # fmt: skip
  false, true = roc.curve(np.ones(len(scores)))
  places = np.unique(np.linspace(0, len(false) - 1, 101).astype(int))
  # Few points near 0 would hide what an attacker gets at low false rates.
  places = np.unique(np.concatenate(
      [places, np.searchsorted(false, [0.001, 0.003, 0.01, 0.03])]
  ).clip(0, len(false) - 1))  # fmt: skip
  return measures, (
      [round(float(v), 5) for v in false[places]],
      [round(float(v), 5) for v in true[places]],
  )
