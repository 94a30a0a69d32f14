"""Attacks on made-up taps: what is there is found, what is not is chance."""

import csv

import numpy as np
import pytest

from vemd_jax.audit import (
    attributes,
    identity,
    inversion,
    measure,
    membership,
    probe,
    shadows,
)

pytest.importorskip('sklearn')

PEOPLE, EACH = 24, 4


@pytest.fixture(scope='module')
def made():
  """Samples of a tap with identity, a class and a number, and of noise."""
  rng = np.random.default_rng(0)

  def split(offset):
    subjects = np.repeat(np.arange(PEOPLE), EACH) + offset
    count = len(subjects)
    own = np.random.default_rng(5).normal(size=(2 * PEOPLE, 6))[subjects]
    number = rng.normal(size=count)
    kind = rng.integers(0, 3, count)
    tap = rng.normal(size=(count, 20)) * 0.3
    tap[:, :6] += own
    tap[:, 6] += number
    tap[:, 7:10] += 2 * np.eye(3)[kind]
    noise = rng.normal(size=(count, 20))
    return tap, noise, subjects, number, kind

  fit, test = split(0), split(PEOPLE)
  return {
      'tap': probe.reduce(fit[0], test[0]),
      'noise': probe.reduce(fit[1], test[1]),
      'people': identity.choose(
          *([f's{s}' for s in x[2]] for x in (fit, test))
      ),
      'number': attributes.Attribute('number', (), fit[3], test[3]),
      'kind': attributes.Attribute('kind', ('a', 'b', 'c'), fit[4], test[4]),
  }  # fmt: skip


def test_people_are_found_only_where_they_are(made):
  found, curve = identity.attack('tap', made['tap'], made['people'])
  closed, area, equal = found
  assert closed.chance == 1 / PEOPLE and closed.count == PEOPLE
  assert closed.value > 0.6 and closed.low > closed.chance
  assert area.value > 0.9 and equal.value < 0.15
  assert curve[0][0] == 0 and curve[1][-1] == 1
  found, _ = identity.attack('noise', made['noise'], made['people'])
  closed, area, equal = found
  assert closed.low <= closed.chance and closed.value < 0.2
  assert area.low < 0.5 < area.high and equal.low < 0.5 < equal.high


def test_closed_set_counts_by_hand():
  people = identity.People(
      fit=np.array([]), pictures=np.arange(22),
      subjects=np.repeat(np.arange(11), 2), known=np.tile([True, False], 11),
  )  # fmt: skip
  known = np.repeat(np.eye(11), 2, 0)
  asked = known.copy()
  asked[1] = known[2]  # Subject 0 is taken for subject 1.
  one = identity.closed_set('t', known, asked, people, 'm')
  assert one.value == pytest.approx(10 / 11)


def test_one_person_does_not_dominate():
  test = ['a'] * 200 + [f's{i // 2}' for i in range(40)] + ['', 'alone']
  people = identity.choose(['x', 'x', 'a', 'a', ''], test)
  assert np.bincount(people.subjects).max() == 10
  assert len(people.subjects) == 10 + 40
  assert people.known.sum() == 21
  # A person of the test split is not used to fit.
  assert (people.fit >= 0).tolist() == [True, True, False, False, False]
  with pytest.raises(ValueError, match='1 subjects with two or more'):
    identity.choose(['x'], ['a', 'a', 'b'])


def test_attributes_are_found_only_where_they_are(made):
  for name, chance in (('number', 0.0), ('kind', 1 / 3)):
    there = attributes.attack('tap', made['tap'], made[name])
    assert there.value > 0.5 and there.low > chance == there.chance
    none = attributes.attack('noise', made['noise'], made[name])
    assert none.low < chance + 0.1 and none.value < there.value - 0.2
  few = made['kind']._replace(test=np.full(PEOPLE * EACH, -1))
  with pytest.raises(ValueError, match='too few for an interval'):
    attributes.attack('tap', made['tap'], few)


def test_columns_of_labels_csv_become_attributes(tmp_path):
  rows = [
      (f'{i}.jpg', 'train' if i < 60 else 'val', 'ab'[i % 2], i % 3,
       f'{i * 0.5}', f's{i // 2}', 'one, and "two"' if i % 2 else 'x')
      for i in range(90)
  ]  # fmt: skip
  with open(tmp_path / 'labels.csv', 'w', encoding='utf-16', newline='') as f:
    writer = csv.writer(f, delimiter=';')
    writer.writerow(['File', 'split', 'label', 'n', 'age', 'who', 'place'])
    writer.writerows(rows)
  table = attributes.columns(str(tmp_path))
  assert table['place']['1.jpg'] == 'one, and "two"'
  assert table['who']['89.jpg'] == 's44'
  names = [r[0] for r in rows]
  truth = [{'people': np.full(60, 1.0)}, {'people': np.full(30, 1.0)}]
  found = attributes.find(
      (), table, 'who', (names[:60], truth[0]), (names[60:], truth[1])
  )
  by_name = {a.name: a for a in found}
  # The number of people does not vary, and the names are not attributes.
  assert set(by_name) - {'File'} == {'n', 'age', 'place'}
  assert by_name['n'].classes == ('0', '1', '2')
  assert by_name['n'].fit.tolist() == [i % 3 for i in range(60)]
  assert by_name['age'].classes == () and by_name['age'].test[0] == 30.0
  with pytest.raises(ValueError, match="--attributes has 'sex', expected some"):
    attributes.find(
        ('sex',), table, 'who', (names[:60], truth[0]), (names[60:], truth[1])
    )


def test_membership_is_found_only_where_it_is():
  rng = np.random.default_rng(0)
  member = np.arange(2000) < 1000
  area, low = membership.threshold('t', rng.normal(size=2000) + member, member)
  # Two normal distributions, one deviation apart: Phi(1 / sqrt 2).
  assert area.value == pytest.approx(0.760, abs=0.03)
  assert area.low < area.value < area.high
  # At a rate of 0.1 %: Phi(1 - 3.09).
  assert low.value == pytest.approx(0.018, abs=0.03)
  area, _ = membership.threshold('t', rng.normal(size=2000), member)
  assert abs(area.value - 0.5) < 0.04
  assert '100 non-members' in membership.note([True] * 5 + [False] * 100)
  assert membership.note([False] * 1000) == ''


def test_a_classifier_tells_members_only_if_the_splits_differ():
  rng = np.random.default_rng(0)
  same = rng.normal(size=(600, 5))
  area, _ = membership.classifier('t', probe.reduce(same[:400], same[400:]))
  assert area.low < 0.5 < area.high
  area, _ = membership.classifier(
      't', probe.reduce(same[:400], same[400:] + [1, 0, 0, 0, 0])
  )
  assert area.low > 0.6


def test_lira_beats_a_threshold_where_pictures_differ_in_difficulty():
  rng = np.random.default_rng(0)
  count, models = 1500, 8
  difficulty = 3 * rng.normal(size=count)
  inside = np.stack([shadows.halves(count, m) for m in range(models)])
  assert (inside.sum(0) == models // 2).all()
  own_member = rng.random(count) < 0.5

  def odds(inside):
    return difficulty + inside + rng.normal(size=inside.shape)

  own = odds(own_member)
  ratio = membership.lira(own, odds(inside), inside)
  lira = membership.measures('t', 'LiRA', ratio, own_member, '')[0]
  plain = membership.threshold('t', own, own_member)[0]
  # With the difficulty known the areas are Phi(1 / sqrt 2) and less.
  assert plain.value < 0.63 < 0.68 < lira.value < 0.78
  with pytest.raises(ValueError, match='with and without'):
    membership.lira(own, odds(inside[:1]), inside[:1])


def test_lira_is_the_ratio_of_two_normal_densities():
  from scipy import stats

  shadow = np.array([[1.0, 5.0], [3.0, 4.0], [0.0, 1.0], [-1.0, 2.0]])
  inside = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], bool)
  own = np.array([2.5, 1.0])
  got = membership.lira(own, shadow, inside)
  # Pooled variances: (1 + 1 + 0.25 + 0.25) / 2 and four times 0.25, over 2.
  densities = [
      stats.norm(shadow[rows].mean(0), np.sqrt(variance)).logpdf(own)
      for rows, variance in (([0, 1], 1.25), ([2, 3], 0.5))
  ]
  np.testing.assert_allclose(got, densities[0] - densities[1])


def test_log_odds_are_finite():
  p = np.array([[1.0, 0.0], [0.2, 0.8]])
  got = membership.log_odds(p, np.array([1, 1]))
  np.testing.assert_allclose(got, [np.log(1e-6), np.log(4)], rtol=1e-4)


def test_psnr_and_ssim_by_hand():
  rng = np.random.default_rng(0)
  one = rng.random((2, 32, 32, 3)).astype(np.float32)
  assert (inversion.ssim(one, one) > 0.9999).all()
  np.testing.assert_allclose(
      inversion.psnr(one, one + np.float32(0.1)), 20, atol=0.01
  )
  # Constant pictures: only the term of the means is left.
  a, b = np.full((1, 32, 32, 3), 0.2), np.full((1, 32, 32, 3), 0.6)
  wanted = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
  np.testing.assert_allclose(inversion.ssim(a, b), wanted, rtol=1e-6)
  assert inversion.ssim(one[:1], one[1:])[0] < 0.1


@pytest.mark.slow
@pytest.mark.usefixtures('standard_promotion')
def test_a_decoder_reconstructs_what_a_tap_holds():
  rng = np.random.default_rng(0)
  values = rng.normal(size=(400, 3)).astype(np.float32)
  x = np.linspace(0, 2, 32, dtype=np.float32)
  waves = 0.5 + 0.15 * sum(
      values[:, i, None, None, None] * np.sin((i + 1) * x)[:, None, None]
      for i in range(3)
  )
  pictures = np.clip(np.broadcast_to(waves, (400, 32, 32, 3)), 0, 1)
  fit, test = pictures[:300], pictures[300:]
  made = inversion.train(values[:300], fit, 150)
  found = inversion.reconstruct(*made, values[300:])
  good = inversion.measures('t', test, found, fit.mean(0))
  assert good[0].value > good[0].chance + 5
  made = inversion.train(rng.normal(size=(300, 3)).astype(np.float32), fit, 150)
  found = inversion.reconstruct(*made, values[300:])
  bad = inversion.measures('t', test, found, fit.mean(0))
  assert bad[0].value < bad[0].chance + 1
  assert measure.Measure._fields[0] == 'attack'
