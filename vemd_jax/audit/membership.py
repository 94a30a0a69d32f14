"""Membership inference: whether a picture was in the training split.

Three attackers: a classifier of the tap's values, which knows for half of the
pictures whether they are members; a threshold of the loss; and LiRA
(arXiv 2112.03570), which compares the confidence with that of shadow models
trained with and without the picture.
"""

from collections.abc import Sequence

import numpy as np

from vemd_jax.audit import measure, probe
from vemd_jax.audit.measure import Measure

RATE = 0.001
_METRICS = ('area under ROC', 'TPR at 0.1 % FPR')


def classifier(tap: str, reduced: probe.Reduced) -> list[Measure]:
  """Tells members from others by the values at a tap.

  For the raw pixels, which do not depend on the model, it shows how much the
  two splits differ by themselves: only what exceeds it is due to the model.

  Args:
    tap: name of the tap.
    reduced: its values; `fit` are members and `test` are not.

  Returns:
    The measures, on the half of the pictures that the attacker does not know.
  """
  from sklearn import linear_model

  few = reduced.few
  x = np.concatenate(few)
  member = np.arange(len(x)) < len(few[0])
  known = np.random.default_rng(0).random(len(x)) < 0.5
  if min(member[known].sum(), (~member)[known].sum()) < 2:
    raise ValueError('too few samples for an attack on membership')
  model = linear_model.LogisticRegression(
      class_weight='balanced', C=0.01, max_iter=300
  ).fit(x[known], member[known])
  scores = model.decision_function(x[~known])
  return measures(
      tap, 'classifier', scores, member[~known], 'logistic regression'
  )


def threshold(
    tap: str, confidence: np.ndarray, member: np.ndarray
) -> list[Measure]:
  """Takes pictures for members whose confidence is high.

  Args:
    tap: name of the tap.
    confidence: [n] log odds of the true class.
    member: [n] bool.

  Returns:
    The measures.
  """
  return measures(tap, 'threshold', confidence, member, 'loss')


def measures(
    tap: str,
    target: str,
    scores: np.ndarray,
    member: np.ndarray,
    method: str,
) -> list[Measure]:
  """Area under the ROC, and rate of true positives at few false ones.

  Args:
    tap: name of the tap.
    target: name of the attack.
    scores: [n], higher for members.
    member: [n] bool.
    method: method of the attacker.

  Returns:
    The measures.

  Raises:
    ValueError: if there are too few samples.
  """
  roc = measure.Roc(scores, member)
  units = np.arange(len(scores))
  functions = roc.area, lambda w: roc.true_at(w, RATE)
  return [
      Measure(
          'membership', target, tap, metric,
          *measure.bootstrap(function, units, 'samples'),
          chance, int((~member).sum()), 'non-members', method,
      )
      for metric, chance, function in zip(_METRICS, (0.5, RATE), functions)
  ]  # fmt: skip


def log_odds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Log odds of the true class, which are nearly normal for LiRA.

  Args:
    probabilities: [n, C].
    labels: [n] int.

  Returns:
    [n], finite: probabilities are limited to 1e-6 .. 1 - 1e-6.
  """
  p = probabilities[np.arange(len(labels)), labels].astype(np.float64)
  p = np.clip(p, 1e-6, 1 - 1e-6)
  return np.log(p) - np.log1p(-p)


def lira(
    own: np.ndarray, shadows: np.ndarray, inside: np.ndarray
) -> np.ndarray:
  """Likelihood ratio of membership, from shadow models.

  Args:
    own: [n] log odds of the audited model.
    shadows: [m, n] log odds of the shadow models.
    inside: [m, n] bool, whether a shadow model was trained with the picture;
      at least one is and one is not, for each picture.

  Returns:
    [n] log likelihood ratio. The variances are those of all pictures together,
    since a few shadow models do not give one for each.

  Raises:
    ValueError: if a picture lacks shadow models with or without it.
  """
  if not (inside.any(0) & ~inside.all(0)).all():
    raise ValueError(
        'each picture needs shadow models with and without it; expected an '
        'even number of shadow models'
    )
  result = np.zeros(len(own))
  for side, sign in ((inside, 1), (~inside, -1)):
    counts = side.sum(0)
    mean = np.where(side, shadows, 0).sum(0) / counts
    residual = np.where(side, shadows - mean, 0)
    # With one shadow model on each side there are no residuals; the spread
    # over all pictures is the best that is known.
    freedom = (counts - 1).sum()
    variance = (
        (residual**2).sum() / freedom if freedom else shadows[side].var()
    )
    variance = max(float(variance), 1e-6)
    result += sign * (
        -0.5 * (own - mean) ** 2 / variance - 0.5 * np.log(variance)
    )
  return result


def note(member: Sequence[bool]) -> str:
  """What the number of non-members allows to say about low rates; '' if all."""
  others = int((~np.asarray(member)).sum())
  if others * RATE >= 1:
    return ''
  return (
      f'Membership: with {others} non-members, a false positive rate of 0.1 % '
      'means none, which is compatible with a rate of up to '
      f'{3 / max(others, 1):.1%} (95 %).'
  )
