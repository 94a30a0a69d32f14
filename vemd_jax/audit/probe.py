"""Attackers on feature vectors, from scikit-learn.

They are fitted on one split and tested on another. Which of several attackers
is used is decided on a held-out fifth of the first split, never on the second.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from vemd_jax.audit import measure

# Principal components that attackers read, and the reconstructing decoder.
_COMPONENTS, MOST_COMPONENTS = 128, 256
# The decoder of reconstructions reads more of them; both are limited by the
# number of samples.
_SEED = 0


class Reduced(NamedTuple):
  """A tap as whitened principal components of the fitting split.

  Attributes:
    fit: [n, k] float32.
    test: [m, k] float32.
    reduce: [.., d] -> [.., k], the map.
  """

  fit: np.ndarray
  test: np.ndarray
  reduce: Any

  @property
  def few(self) -> tuple[np.ndarray, np.ndarray]:
    """(fit, test) with the components that classifiers read."""
    return self.fit[:, :_COMPONENTS], self.test[:, :_COMPONENTS]


def require() -> None:
  """Checks that scikit-learn is installed.

  Raises:
    ImportError: if it is not; says how to install it.
  """
  try:
    import sklearn  # noqa: F401
  except ImportError as error:
    raise ImportError(
        'the attacks need scikit-learn: pip install -e ".[audit]"'
    ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """An attacker that has not converged is a weaker one, and no error."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield


def reduce(fit: np.ndarray, test: np.ndarray) -> Reduced:
  """Standardizes a tap and projects it on its principal components.

  Args:
    fit: [n, d].
    test: [m, d].

  Returns:
    The components.
  """
  from sklearn import decomposition, pipeline, preprocessing

  # Constant columns, such as limbs that are never decoded, say nothing.
  varies = fit.std(0) > 1e-7
  if not varies.any():
    varies[:1] = True
  count = min(MOST_COMPONENTS, int(varies.sum()), len(fit) - 1)
  chain = pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      decomposition.PCA(count, whiten=True, random_state=_SEED),
  )

  def apply(x):
    return chain.transform(x[:, varies]).astype(np.float32)

  with _quiet():
    chain.fit(fit[:, varies])
    # Components without variance would be divided by nearly 0.
    return Reduced(apply(fit), apply(test), apply)


def classify(
    reduced: Reduced, fit: np.ndarray, test: np.ndarray, count: int
) -> tuple[tuple[float, float, float], str]:
  """Infers classes.

  Args:
    reduced: the tap.
    fit: [n] int classes of the fitting split, -1 where unknown.
    test: [m] int of the test split.
    count: number of classes.

  Returns:
    (balanced accuracy and its interval, method).

  Raises:
    ValueError: if there are too few samples.
  """
  from sklearn import linear_model, neural_network

  makers = {
      'logistic regression': lambda: linear_model.LogisticRegression(
          class_weight='balanced', C=0.01, max_iter=300
      ),
      'neural network': lambda: neural_network.MLPClassifier(
          (128,), alpha=1e-2, early_stopping=True, max_iter=60,
          random_state=_SEED,
      ),
  }  # fmt: skip

  def score(true, predicted, weights):
    recalls = [
        np.average(predicted[true == c] == c, weights=weights[true == c])
        for c in range(count)
        if weights[true == c].sum()
    ]
    return float(np.mean(recalls))

  x, y, z, t = _known(reduced, fit, test, fit >= 0, test >= 0)
  predicted, method = _best(makers, x, y, z, score)
  interval = measure.bootstrap(
      lambda w: score(t, predicted, w), np.arange(len(t)), 'samples'
  )
  return interval, method


def regress(
    reduced: Reduced, fit: np.ndarray, test: np.ndarray
) -> tuple[tuple[float, float, float], str]:
  """Infers a number.

  Args:
    reduced: the tap.
    fit: [n] values of the fitting split, NaN where unknown.
    test: [m] values of the test split.

  Returns:
    (share of the variance that is explained, R², and its interval, method).

  Raises:
    ValueError: if there are too few samples.
  """
  from sklearn import linear_model, neural_network

  makers = {
      'ridge regression': lambda: linear_model.RidgeCV(np.logspace(0, 4, 9)),
      'neural network': lambda: neural_network.MLPRegressor(
          (128,), alpha=1e-2, early_stopping=True, max_iter=60,
          random_state=_SEED,
      ),
  }  # fmt: skip

  def score(true, predicted, weights):
    center = np.average(true, weights=weights)
    spread = np.average((true - center) ** 2, weights=weights)
    error = np.average((true - predicted) ** 2, weights=weights)
    return float(1 - error / spread) if spread else float('nan')

  x, y, z, t = _known(
      reduced, fit, test, np.isfinite(fit), np.isfinite(test)
  )
  mean, spread = y.mean(), y.std() or 1.0
  predicted, method = _best(makers, x, (y - mean) / spread, z, score)
  predicted = predicted * spread + mean
  interval = measure.bootstrap(
      lambda w: score(t, predicted, w), np.arange(len(t)), 'samples'
  )
  return interval, method


def _known(reduced, fit, test, known, known_test):
  x, z = reduced.few
  if min(known.sum(), known_test.sum()) < 2 * measure.FEWEST:
    raise ValueError(
        f'{int(known.sum())} samples to fit and {int(known_test.sum())} to '
        f'test are too few for an interval, expected {2 * measure.FEWEST} or '
        'more'
    )
  return x[known], fit[known], z[known_test], test[known_test]


def _best(makers, x, y, z, score):
  """Predictions for z of the attacker that is better on a fifth of x."""
  order = np.random.default_rng(_SEED).permutation(len(x))
  held, rest = order[: len(x) // 5], order[len(x) // 5 :]
  found = {}
  with _quiet():
    for name, make in makers.items():
      try:
        predicted = make().fit(x[rest], y[rest]).predict(x[held])
      except ValueError:  # A class with a single sample, for early stopping.
        continue
      found[name] = score(y[held], predicted, np.ones(len(held)))
    if not found:
      raise ValueError('the samples to fit are of a single class')
    method = max(found, key=found.get)
    return makers[method]().fit(x, y).predict(z), method
