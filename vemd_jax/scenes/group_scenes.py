"""The embedded dataset: synthetic images of groups with an emotion label.

Sample i of a split is a pure function of (seed, split, i). No files are read.
`GroupScenes.describe` samples the parameters of a scene (cheap), `draw` renders
its images and exact keypoints.

The cue determines how the label is expressed:

* `expression`: faces frown, are neutral or smile. Bodies are uninformative.
* `interaction`: people stand in pairs. They face each other, close together,
  with synchronous equal gestures (positive); face the same direction with
  unrelated gestures (neutral); or stand back to back, apart, with opposite
  gestures (negative). The distribution of each single person's attributes,
  position included, is the same in every class.
* `both`: both at once.

Positions would be informative without a countermeasure: the direction that one
of a pair faces correlates with being its left or right member, and the left
member is on average further left in the image. Each row of people is therefore
placed on a closed ring that the frame cuts at a random point, which makes the
position of each person uniform and independent of all other attributes.

Contact sheet: `python -m vemd_jax.data.group_scenes --out=group_scenes.jpg`
"""

import zlib
from typing import NamedTuple

import numpy as np

from vemd_jax.scenes import drawing
from vemd_jax.scenes import figures as looks
from vemd_jax.scenes.figures import People

CLASSES = ('negative', 'neutral', 'positive')
CUES = ('expression', 'interaction', 'both')

# Gestures; the opposite of gesture g is (g + 3) % 6.
UP, WAVE, REACH, CROSSED, HANG, HIPS = range(6)
_NUM_GESTURES = 6
# Angles in degrees by gesture, variant, arm (of a body half turned to the
# camera: the far arm, then the near one): polar angle and azimuth of the upper
# arm, then of the forearm. Raised arms do not cover the person's own face.
_FAR_UP, _NEAR_UP, _DOWN = (
    (112, 40, 160, 45), (112, -28, 160, -28), (14, 20, 12, 60)
)  # fmt: skip
_ARMS = np.deg2rad(np.array([
    [[(130, 40, 156, 45), (130, -28, 156, -28)]] * 2,
    [[_FAR_UP, _DOWN], [_DOWN, _NEAR_UP]],
    [[(58, 72, 84, 82)] * 2] * 2,
    [[(24, 35, 92, 146), (20, 35, 86, 150)]] * 2,
    [[(12, 15, 12, 50)] * 2] * 2,
    [[(44, -12, 42, 168)] * 2] * 2,
], np.float32))  # fmt: skip
# Amplitudes of the arm angles over time.
_SWING = np.deg2rad(np.array([
    [[(10, 0, 8, 0)] * 2] * 2,
    [[(4, 0, 22, 0), (2, 0, 3, 0)], [(2, 0, 3, 0), (4, 0, 22, 0)]],
    [[(7, 0, 10, 0)] * 2] * 2,
    [[(2, 0, 3, 0)] * 2] * 2,
    [[(3, 0, 4, 0)] * 2] * 2,
    [[(2, 0, 2, 0)] * 2] * 2,
], np.float32))  # fmt: skip

# Probabilities of hair styles, patterns and legwear.
_STYLES = (0.30, 0.18, 0.08, 0.10, 0.08, 0.06, 0.07, 0.06, 0.07)
_PATTERNS = (0.30, 0.18, 0.14, 0.10, 0.10, 0.10, 0.08)
_LEGWEAR = (0.62, 0.13, 0.13, 0.12)
_SLEEVES = np.array([0.0, 0.3, 0.45, 1.0])
_ANGER = np.array([0.0, 0.25, 0.75, 1.0])

# Length of the ring on which a row of people stands; the frame shows 1 of it.
_STRIP = 1.08
# Standing height by number of people, from 1 on.
_HEIGHTS = (1.02, 0.98, 0.92, 0.86, 0.84, 0.81, 0.78, 0.74, 0.70, 0.68)
# Probabilities that a pair, or a face, is drawn independently of the label.
_ODD_PAIR, _ODD_FACE = 0.08, 0.06
# Distance within a pair by class, relative to the width available per person.
_DISTANCES = np.array([(1.00, 1.14), (0.84, 0.98), (0.66, 0.80)])


class Scene(NamedTuple):
  """Parameters of a scene.

  Attributes:
    label: 0 negative, 1 neutral, 2 positive.
    people: P people in drawing order.
    pair: int [P], index of each person's pair, -1 for single people.
    seed: seed of everything else in the image.
  """

  label: int
  people: People
  pair: np.ndarray
  seed: int


def _mix(values: np.ndarray) -> np.ndarray:
  """Hashes uint64 numbers (splitmix64)."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


_ORDERS = np.array(
    [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], np.int32
)


def _labels(seed: int, split: str, index: np.ndarray) -> np.ndarray:
  """Labels int32 [n]: each block of three contains every class once."""
  index = np.asarray(index, np.uint64)
  start = np.array(
      [(seed * 0x9E3779B1 + zlib.crc32(split.encode())) % 2**64], np.uint64
  )
  block = _mix(_mix(start) ^ (index // np.uint64(3)))
  order = (block % np.uint64(6)).astype(np.int64)
  return _ORDERS[order, (index % np.uint64(3)).astype(np.int64)]


class GroupScenes:
  """Random-access source of drawn scenes.

  Attributes:
    classes: names of the classes.
    labels: int32 [n].
  """

  classes = CLASSES

  def __init__(
      self,
      split: str,
      num_samples: int,
      cue: str = 'both',
      size: int = 224,
      frames: int = 1,
      people: tuple[int, int] = (1, 10),
      zoom: float = 1.0,
      seed: int = 0,
      single_cue: tuple[float, float] = (0.0, 0.0),
  ):
    """Creates the source without drawing anything.

    Args:
      split: any name; splits share no samples.
      num_samples: length.
      cue: 'expression', 'interaction' or 'both'.
      size: side of the images in pixels.
      frames: length of the clips, 1 for images.
      people: minimum and maximum number of people of a scene; at least 2 with
        `interaction`.
      zoom: magnification of people, 1 to 2; from about 1.4 on the frame cuts
        them off at the hips.
      seed: non-negative seed.
      single_cue: shares of scenes drawn with `expression` alone and with
        `interaction` alone, in all 1 at most; only with `both`.

    Raises:
      ValueError: an argument is out of range.
    """
    low, high = people
    most = len(_HEIGHTS)
    if cue not in CUES:
      raise ValueError(f'cue is {cue!r}, expected one of {CUES}')
    if not 1 <= low <= high <= most:
      raise ValueError(
          f'people is {people}, expected 1 <= low <= high <= {most}'
      )
    if cue == 'interaction' and high < 2:
      raise ValueError(f'people is {people}, but interaction needs 2 or more')
    if (
        len(single_cue) != 2
        or min(single_cue) < 0
        or sum(single_cue) > (cue == 'both' and high > 1)
    ):
      raise ValueError(
          f'single_cue is {single_cue} with cue {cue!r} and people {people}, '
          "expected two shares, in all 1 at most with 'both' and 2 people or "
          'more, else 0'
      )
    if not 1 <= zoom <= 2:
      raise ValueError(f'zoom is {zoom}, expected 1 to 2')
    if size < 16 or frames < 1 or num_samples < 0 or seed < 0:
      raise ValueError(
          'expected size >= 16, frames >= 1, num_samples >= 0, seed >= 0, got '
          f'{size}, {frames}, {num_samples}, {seed}'
      )
    self.split, self.cue, self.size, self.frames = split, cue, size, frames
    self.people, self.zoom, self.seed = (low, high), zoom, seed
    self.single_cue = tuple(single_cue)
    self.labels = _labels(seed, split, np.arange(num_samples))

  def __len__(self) -> int:
    return len(self.labels)

  def __repr__(self) -> str:
    # Grain stores this in its checkpoints.
    return (
        f'GroupScenes({self.split!r}, {len(self)}, {self.cue!r}, {self.size}, '
        f'{self.frames}, {self.people}, {self.zoom}, {self.seed}, '
        f'{self.single_cue})'
    )

  def describe(self, index: int) -> Scene:
    """The parameters of sample `index`, without drawing it."""
    if not 0 <= index < len(self):
      raise IndexError(f'{self.split} has {len(self)} samples, not {index}')
    split = zlib.crc32(self.split.encode())
    rng = np.random.default_rng((self.seed, split, index))
    low, high = self.people
    cue = self.cue
    if any(self.single_cue):
      # A generator of its own, so that scenes with both cues are unaffected.
      draw = np.random.default_rng((self.seed, split, index, 1)).random()
      expression, interaction = self.single_cue
      if draw < interaction:
        cue = 'interaction'
      elif draw < interaction + expression:
        cue = 'expression'
    if cue == 'interaction':
      low = max(low, 2)
    count = int(rng.integers(low, high + 1))
    return _describe(int(self.labels[index]), cue, count, self.zoom, rng)

  def draw(self, index: int) -> list[drawing.Drawing]:
    """The drawings of sample `index`, one per frame, with pixel owners."""
    scene = self.describe(index)
    return drawing.draw(scene.people, scene.seed, self.size, self.frames)

  def __getitem__(self, index: int) -> dict:
    drawings = self.draw(index)
    # Only people with a visible keypoint.
    return {
        'frames': [d.image for d in drawings],
        'label': int(self.labels[index]),
        'bodies': [d.bodies[d.bodies[..., 2].any(1)] for d in drawings],
        'faces': [d.faces[d.faces[..., 2].any(1)] for d in drawings],
        'file': f'group_scenes/{self.split}/{index:06d}',
    }


def _rows(n: int) -> list[int]:
  """Number of people in each row, the back row first."""
  if n <= 4:
    return [n]
  back = 2 * round(n / 4)
  return [back, n - back]


def _place(count: int, relations, rng):
  """Positions in the frame, pairs within the row, and who is the left one.

  Args:
    count: people in the row.
    relations: class of each pair.
    rng: source of randomness.

  Returns:
    x [count], pair [count], left bool [count].
  """
  if count == 1:
    return rng.uniform(0.3, 0.7, 1), np.array([-1]), np.array([False])
  room = _STRIP / count
  pairs = count // 2
  # A single pair must not be close across the other side of the ring as well.
  tight = 0.74 if count == 2 else 1.0
  low, high = _DISTANCES[relations].T
  apart = rng.uniform(low, high) * room * tight
  middle = room * (2 * np.arange(pairs) + 1) + rng.uniform(-0.1, 0.1) * room
  x = np.stack([middle - apart / 2, middle + apart / 2], 1).ravel()
  pair = np.repeat(np.arange(pairs), 2)
  left = np.tile([True, False], pairs)
  if count % 2:
    x = np.append(x, _STRIP - room / 2)
    pair, left = np.append(pair, -1), np.append(left, False)
  # Cut the ring at a random point.
  x = (x + rng.uniform(0, _STRIP)) % _STRIP
  return x - (_STRIP - 1) / 2, pair, left


def _couple(stance: dict, left, right, relation, rng) -> None:
  """Couples the right member of each pair to the left one, in place.

  Every rule preserves the marginal distribution of the right member: mirrored,
  opposite and phase-shifted uniform values are uniform, and correlated normal
  values are normal.

  Args:
    stance: attributes of each person, drawn independently.
    left, right: [pairs] indices of people.
    relation: [pairs] class of each pair.
    rng: source of randomness.
  """
  negative, neutral, positive = (relation == c for c in (0, 1, 2))

  def follow(name, if_negative, if_positive):
    value = stance[name]
    own = value[right]
    value[right] = np.where(
        positive, if_positive, np.where(negative, if_negative, own)
    )

  # Positive pairs face each other, negative ones stand back to back.
  side = stance['side']
  side[left] = np.where(neutral, side[left], np.where(positive, 1, -1))
  side[right] = np.where(neutral, side[left], -side[left])
  gesture = stance['gesture'][left]
  follow('gesture', (gesture + 3) % _NUM_GESTURES, gesture)
  # Mirrored pairs both use the arm near the camera, or both the far one.
  follow('variant', stance['variant'][right], stance['variant'][left])
  beat = stance['phase'][left] + rng.normal(0, 0.25, len(left))
  follow('phase', beat + np.pi, beat)
  stance['phase'] %= 2 * np.pi
  follow('rate', stance['rate'][right], stance['rate'][left])
  share = np.where(positive, 0.8, 0.0)[:, None, None]
  bend = stance['bend']
  bend[right] = share * bend[left] + np.sqrt(1 - share**2) * bend[right]


def _describe(label: int, cue: str, n: int, zoom: float, rng) -> Scene:
  """Draws the parameters of a scene of n people."""
  x, pair, left, row, relations = [], [], [], [], []
  for number, count in enumerate(_rows(n)):
    # With the cue `expression` people are not coupled.
    relation = np.full(count // 2, 1 if cue == 'expression' else label)
    if cue != 'expression':
      odd = rng.random(count // 2) < _ODD_PAIR
      relation = np.where(odd, rng.integers(0, 3, count // 2), relation)
    place, mates, is_left = _place(count, relation, rng)
    before = sum(map(len, relations))
    x.append(place)
    pair.append(np.where(mates >= 0, mates + before, -1))
    left.append(is_left)
    row.append(np.full(count, number))
    relations.append(relation)
  x, pair, left, row, relations = map(
      np.concatenate, (x, pair, left, row, relations)
  )
  stance = {
      'side': np.where(rng.random(n) < 0.5, -1, 1),
      'gesture': rng.integers(0, _NUM_GESTURES, n),
      'variant': rng.integers(0, 2, n),
      'phase': rng.uniform(0, 2 * np.pi, n),
      'rate': rng.uniform(3.0, 5.5, n),
      'bend': rng.standard_normal((n, 2, 4)),
  }
  if cue != 'expression':
    lefts = np.flatnonzero(left)
    rights = np.flatnonzero((pair >= 0) & ~left)
    _couple(stance, lefts, rights, relations, rng)
  people = _people(label, cue, x, row, stance, zoom, rng)
  # Shuffle, so that the order of the people is uninformative, too.
  order = rng.permutation(n)
  people = People(*(field[order] for field in people))
  return Scene(label, people, pair[order], int(rng.integers(2**31)))


def _people(
    label: int, cue: str, x, row, stance: dict, zoom: float, rng
) -> People:
  """Draws the attributes that do not depend on other people."""
  n = len(x)
  uniform, normal = rng.uniform, rng.standard_normal
  # The back row stands higher up and looks smaller.
  scale = _HEIGHTS[n - 1] * uniform(0.9, 1.1)
  # Zooming keeps the heads in place and moves the feet out of the frame.
  margin, scale = 0.1 * scale, zoom * scale
  height = scale * uniform(0.88, 1.06, n)
  if row.any():
    height = np.where(row == 0, 0.9 * height, height)
    back, front = uniform((0.04, 0.35), (0.09, 0.41))
    y = scale + np.where(row == 0, back - 0.07 * scale, front)
  else:
    y = np.full(n, uniform(0.07, 0.14) + margin + 0.95 * scale)
  # Most people are half turned, a few turn their back.
  most = (0, 60) if cue == 'expression' else (28, 80)
  turn = uniform(*most, n)
  turn = np.where(rng.random(n) < 0.06, uniform(100, 150, n), turn)
  heading = np.deg2rad(stance['side'] * turn)
  gesture, variant = stance['gesture'], stance['variant']
  arms, swing = _ARMS[gesture, variant], _SWING[gesture, variant]
  # The left arm is the far one of people who face the image's right.
  turned = (stance['side'] > 0)[:, None, None]
  arms = np.where(turned, arms, arms[:, ::-1])
  swing = np.where(turned, swing, swing[:, ::-1])
  walks = rng.random(n) < 0.15
  stride, speed = uniform((0.15, 0.01), (0.35, 0.03), (n, 2)).T
  talks = rng.random(n) < 0.25
  return People(
      x=x,
      y=y + uniform(-0.02, 0.02, n),
      height=height,
      head=uniform(0.95, 1.12, n),
      heading=heading,
      head_yaw=heading * uniform(0.25, 0.7, n) + 0.12 * normal(n),
      head_pitch=0.10 * normal(n),
      roll=0.09 * normal(n),
      lean=0.03 * normal(n),
      stoop=uniform(-0.02, 0.10, n),
      gesture=gesture,
      arms=arms + stance['bend'] * np.deg2rad(7.5),
      arm_swing=swing * uniform(0.7, 1.2, (n, 1, 1)),
      legs=uniform((0.02, -0.08, 0.0), (0.16, 0.12, 0.15), (n, 2, 3)),
      stride=np.where(walks, stride, 0.0),
      speed=np.where(walks, stance['side'] * speed, 0.0),
      phase=stance['phase'],
      rate=stance['rate'],
      valence=_valence(label, cue, n, rng),
      anger=_ANGER[rng.integers(0, 4, n)],
      opening=np.where(talks, uniform(0.15, 0.8, n), uniform(0, 0.1, n)),
      blink=np.where(rng.random(n) < 0.06, 1.0, uniform(0, 0.15, n)),
      brows=uniform(-0.2, 0.6, n),
      gaze=uniform((-0.06, -0.03), (0.06, 0.03), (n, 2)),
      **_appearance(n, rng),
  )


def _draw_of(rng, shares, n: int) -> np.ndarray:
  """Draws n indices with given probabilities, faster than `rng.choice`."""
  return np.searchsorted(np.cumsum(shares)[:-1], rng.random(n), 'right')


def _appearance(n: int, rng) -> dict:
  """Draws the appearance of n people: the last fields of People."""
  tints = iter(rng.uniform(-10, 10, (6, n, 3)))
  picks = iter(rng.random((6, n)))

  def color(palette):
    colors = palette[(next(picks) * len(palette)).astype(int)]
    return np.clip(colors + next(tints), 0, 255)

  style, legwear = _draw_of(rng, _STYLES, n), _draw_of(rng, _LEGWEAR, n)
  long_hair = np.isin(style, (looks.LONG, looks.BUN, looks.TAIL, looks.SCARF))
  return {
      'skin': color(looks.SKIN),
      'hair': color(looks.HAIR),
      'shirt': color(looks.CLOTH),
      'accent': color(looks.CLOTH),
      'bottom': color(looks.TROUSERS),
      'shoes': color(looks.SHOES),
      'style': style,
      'pattern': _draw_of(rng, _PATTERNS, n),
      'sleeve': _SLEEVES[_draw_of(rng, (0.08, 0.22, 0.15, 0.55), n)],
      'legwear': legwear,
      'glasses': rng.random(n) < 0.14,
      'beard': (rng.random(n) < 0.35) & ~long_hair & (legwear < looks.SKIRT),
      'build': rng.uniform(0.88, 1.16, n),
      'fringe': rng.uniform(-0.06, 0.12, n),
  }


def _valence(label: int, cue: str, n: int, rng) -> np.ndarray:
  """Expressions [n] in -1..1."""
  groups = np.array([-0.85, 0.0, 0.85])
  odd = rng.random(n) < (1.0 if cue == 'interaction' else _ODD_FACE)
  kind = np.where(odd, rng.integers(0, 3, n), label)
  mood = 0.0 if cue == 'interaction' else rng.normal(0, 0.06)
  return np.clip(groups[kind] + mood + rng.normal(0, 0.14, n), -1, 1)
