"""The embedded dataset: images, exact keypoints, what predicts the class."""

import pickle

import numpy as np
import pytest
from scipy import stats

from vemd_jax.scenes import contact_sheet, group_scenes
from vemd_jax.scenes import drawing as drawing_lib
from vemd_jax.scenes import figures as figures_lib
from vemd_jax.scenes.figures import People
from vemd_jax.scenes.group_scenes import GroupScenes
from vemd_jax.skeletons import BODY_FLIP, FACE_FLIP

# Appearance is drawn independently of everything else.
_COLORS = ('skin', 'hair', 'shirt', 'accent', 'bottom', 'shoes')


def _same(a: dict, b: dict) -> bool:
  return all(
      np.array_equal(x, y)
      for key in ('frames', 'bodies', 'faces')
      for x, y in zip(a[key], b[key], strict=True)
  )


def _people(n: int = 1, **fields) -> People:
  """People who stand still in the middle and face the camera."""
  people = GroupScenes('plain', 1, people=(1, 1)).describe(0).people
  people = People(*(np.repeat(field, n, 0) for field in people))
  zero, one = np.zeros(n), np.ones(n)
  rest = {
      'x': 0.5 * one, 'y': 0.95 * one, 'height': 0.8 * one, 'heading': zero,
      'head_yaw': zero, 'head_pitch': zero, 'roll': zero, 'lean': zero,
      'phase': zero, 'rate': zero, 'speed': zero, 'stride': zero,
      'gaze': np.zeros((n, 2)), 'valence': zero, 'opening': zero, 'blink': zero,
      'brows': zero, 'head': one,
      'arms': np.repeat(group_scenes._ARMS[group_scenes.HANG, :1], n, 0),
      'arm_swing': np.zeros((n, 2, 4)), 'legs': np.full((n, 2, 3), 0.05),
      'style': np.full(n, figures_lib.SHORT), 'glasses': zero.astype(bool),
      'beard': zero.astype(bool),
  }  # fmt: skip
  return people._replace(**rest | fields)


@pytest.fixture(scope='module')
def source() -> GroupScenes:
  return GroupScenes('train', 60, size=112)


def test_a_sample_depends_on_seed_split_and_number_only(source):
  first = source[7]
  again = GroupScenes('train', 8, size=112)
  again[3]
  assert _same(first, again[7])
  assert _same(first, pickle.loads(pickle.dumps(source))[7])
  np.random.seed(5)
  assert _same(first, source[7])
  for other in (
      GroupScenes('val', 60, size=112),
      GroupScenes('train', 60, size=112, seed=1),
  ):
    assert not np.array_equal(first['frames'][0], other[7]['frames'][0])
  assert not np.array_equal(first['frames'][0], source[8]['frames'][0])


def test_the_record_has_the_agreed_form(source):
  assert len(source) == 60
  for i in range(0, 60, 5):
    record = source[i]
    (frame,), (bodies,), (faces,) = (
        record[k] for k in ('frames', 'bodies', 'faces')
    )
    assert frame.shape == (112, 112, 3) and frame.dtype == np.uint8
    assert frame.std() > 10
    assert bodies.dtype == faces.dtype == np.float32
    assert bodies.shape[1:] == (17, 3) and faces.shape[1:] == (68, 3)
    assert len(faces) <= len(bodies) <= len(source.describe(i).pair)
    assert record['label'] == source.labels[i]
    assert record['file'] == f'group_scenes/train/{i:06d}'
    for points in (bodies, faces):
      x, y, score = np.moveaxis(points, -1, 0)
      assert set(np.unique(score)) <= {0.0, 1.0}
      assert (score.max(1) == 1).all()
      inside = (x >= 0) & (x < 112) & (y >= 0) & (y < 112)
      assert not score[~inside].any()


def test_many_points_are_seen_and_some_are_not(source):
  bodies = np.concatenate([source[i]['bodies'][0] for i in range(30)])
  faces = np.concatenate([source[i]['faces'][0] for i in range(30)])
  assert 0.5 < bodies[..., 2].mean() < 0.9
  assert 0.5 < faces[..., 2].mean() < 0.95


def test_labels_are_balanced_and_need_no_drawing():
  source = GroupScenes('train', 30_000)
  assert np.bincount(source.labels).tolist() == [10_000] * 3
  assert source.labels.dtype == np.int32
  assert source.labels[:9].tolist() != source.labels[9:18].tolist()
  # The same for any length; other splits and seeds differ.
  np.testing.assert_array_equal(
      source.labels[:50], GroupScenes('train', 50).labels
  )
  for split, seed in (('val', 0), ('train', 1)):
    other = GroupScenes(split, 30_000, seed=seed)
    assert abs(np.mean(source.labels == other.labels) - 1 / 3) < 0.02


def test_numbers_of_people():
  source = GroupScenes('n', 150)
  counts = {len(source.describe(i).pair) for i in range(150)}
  assert counts == set(range(1, 11))
  source = GroupScenes('n', 60, 'interaction', people=(1, 3))
  assert {len(source.describe(i).pair) for i in range(60)} == {2, 3}


@pytest.mark.parametrize('i', range(0, 12))
def test_seen_joints_lie_on_their_owners_pixels(i):
  """Removing a person changes the image at that person's visible joints."""
  source = GroupScenes('owners', 12, size=160, people=(2, 6))
  scene = source.describe(i)
  (full,) = source.draw(i)
  for k in range(len(scene.pair)):
    others = [n for n in range(len(scene.pair)) if n != k]
    people = People(*(field[others] for field in scene.people))
    (without,) = drawing_lib.draw(people, scene.seed, 160)
    changed = (without.image != full.image).any(-1)
    seen = full.bodies[k][full.bodies[k, :, 2] > 0, :2]
    # And the owner map names the person.
    owner, _, inside = drawing_lib.owner_at(full.owners, seen)
    assert inside.all() and (owner == k).all()
    x, y = np.clip(np.rint(seen), 0, 159).astype(int).T
    # A person behind may happen to have the same colour.
    assert changed[y, x].mean() > 0.8 if len(seen) > 4 else True
    # Hidden joints of others may become visible, none becomes hidden.
    before, after = full.bodies[others, :, 2], without.bodies[..., 2]
    assert (after >= before).all()


def test_somebody_in_front_hides_joints():
  alone = _people(y=np.array([0.90]))
  (one,) = drawing_lib.draw(alone, 4, 128)
  assert one.bodies[0, :, 2].mean() > 0.9
  assert one.faces[0, :, 2].mean() > 0.9
  two = _people(2, y=np.array([0.90, 0.95]))
  (pair,) = drawing_lib.draw(two, 4, 128)
  assert pair.bodies[0, :, 2].mean() < 0.3
  assert pair.faces[0, :, 2].mean() < 0.5
  np.testing.assert_array_equal(pair.bodies[0, :, :2], one.bodies[0, :, :2])
  assert pair.bodies[1, :, 2].mean() > 0.9
  # The person who stands lower is in front, regardless of the order.
  (swapped,) = drawing_lib.draw(
      People(*(field[::-1] for field in two)), 4, 128
  )
  np.testing.assert_array_equal(swapped.bodies[::-1], pair.bodies)


def test_key_points_scale_with_the_picture():
  small = GroupScenes('s', 3, size=96).draw(2)[0]
  large = GroupScenes('s', 3, size=192).draw(2)[0]
  np.testing.assert_allclose(small.bodies[..., :2] * 2, large.bodies[..., :2])
  np.testing.assert_allclose(
      small.faces[..., :2] * 2, large.faces[..., :2], rtol=1e-5
  )
  assert np.mean(small.bodies[..., 2] == large.bodies[..., 2]) > 0.95
  # The images show the same, up to noise.
  halved = large.image.reshape(96, 2, 96, 2, 3).mean((1, 3))
  assert np.abs(halved - small.image).mean() < 8


def test_left_is_the_persons_own():
  people = _people(3, heading=np.array([0.0, np.pi, np.pi / 2]))
  people = people._replace(head_yaw=people.heading)
  (drawing,) = drawing_lib.draw(people, 0, 200)
  eye, shoulder, elbow, wrist, hip, knee = 1, 5, 7, 9, 11, 13
  facing, back, side = drawing.bodies
  for left in (eye, shoulder, elbow, wrist, hip, knee):
    assert facing[left, 0] > facing[left + 1, 0] + 3
    assert back[left, 0] < back[left + 1, 0] - 3
  # Facing the image's right, the left arm is the far one.
  figures = figures_lib.pose(people)
  left, right = figures_lib.ELBOW
  assert figures.depth[2, left] < figures.depth[2, right]
  assert side[0, 0] > side[4, 0] + 5
  # Symmetric, as the skeletons say.
  mirrored = facing[BODY_FLIP] * [-1, 1, 1] + [200, 0, 0]
  np.testing.assert_allclose(mirrored[5:], facing[5:], atol=0.6)
  # No face is visible from behind.
  (turned,) = drawing_lib.draw(
      _people(heading=np.array([3.1]), head_yaw=np.array([3.1])), 0, 200
  )
  assert not turned.faces[..., 2].any() and not turned.bodies[0, :3, 2].any()


def test_faces_follow_the_landmark_order():
  for valence, opening in ((0.0, 0.0), (1.0, 0.5), (-1.0, 0.0)):
    people = _people(valence=np.array([valence]), opening=np.array([opening]))
    face = figures_lib.expression(people)[0]
    mirrored = face[FACE_FLIP] * [-1, 1, 1]
    np.testing.assert_allclose(mirrored, face, atol=1e-6)
  x, y = figures_lib.expression(_people())[0, :, :2].T
  assert (np.diff(x[1:16]) > 0).all() and y[8] == y[:17].max()
  # From the image's left: right brow, left brow, right eye, left eye.
  assert x[21] < x[22] and x[36] < x[39] < x[42] < x[45]
  assert y[17:27].max() < y[36:48].min() and (np.diff(y[27:31]) > 0).all()
  assert y[31:36].max() < y[48:68].min() and y[48:68].max() < y[8]
  assert y[37] < y[41] and y[44] < y[46] and y[51] < y[57] and y[62] < y[66]


def test_expressions_move_the_face():
  valence = np.array([-1.0, -1.0, 0.0, 1.0])
  people = _people(4, valence=valence, anger=np.array([0.0, 1.0, 0.0, 0.0]))
  sad, angry, rest, smile = figures_lib.expression(people)

  def corners(face):  # how far the mouth's corners are above its middle
    return face[[51, 57], 1].mean() - face[[48, 54], 1].mean()

  assert corners(smile) > corners(rest) + 0.15
  assert corners(sad) < corners(rest) - 0.15
  assert corners(angry) < corners(rest) - 0.08
  # Sad brows rise at the nose, angry ones fall.
  assert sad[21, 1] < rest[21, 1] - 0.1 and angry[21, 1] > rest[21, 1] + 0.1
  jaw = figures_lib.expression(_people(opening=np.array([1.0])))[0]
  assert jaw[66, 1] - jaw[62, 1] > rest[66, 1] - rest[62, 1] + 0.15
  shut = figures_lib.expression(_people(blink=np.array([1.0])))[0]
  assert abs(shut[41, 1] - shut[37, 1]) < 0.05
  assert rest[41, 1] - rest[37, 1] > 0.15


def test_a_turned_head_hides_its_far_side():
  people = _people(head_yaw=np.array([1.2]))
  (drawing,) = drawing_lib.draw(people, 0, 256)
  score = drawing.faces[0, :, 2]
  # Looking to the image's right: the far side is the person's left.
  assert not score[13:17].any() and not score[45]
  assert score[1:7].all() and score[36:38].all()
  # Turning narrows the face.
  (front,) = drawing_lib.draw(_people(), 0, 256)
  width = np.ptp(drawing.faces[0, 36:48, 0])
  assert width < 0.6 * np.ptp(front.faces[0, 36:48, 0])


def test_motion_is_smooth_and_key_points_follow():
  source = GroupScenes('clips', 12, size=96, frames=8)
  for i in range(0, 12, 3):
    drawings = source.draw(i)
    assert len(drawings) == 8
    height = source.describe(i).people.height * 96
    bodies = np.stack([d.bodies[..., :2] for d in drawings])
    step = np.linalg.norm(np.diff(bodies, axis=0), axis=-1)
    assert (step.max((0, 2)) < 0.08 * height).all()
    assert (step.sum((0, 2)) > 0.01 * height).all()
    faces = np.stack([d.faces[..., :2] for d in drawings])
    step = np.linalg.norm(np.diff(faces, axis=0), axis=-1)
    assert (step.max((0, 2)) < 0.05 * height).all()
    # The image changes, but most of it does not.
    first, second = drawings[0].image, drawings[1].image
    change = np.abs(first.astype(int) - second).mean()
    assert 0 < change < 20
  record = source[0]
  assert len(record['frames']) == len(record['bodies']) == 8
  assert _same(record, source[0])


def _features(people: People, k: int, without=()) -> np.ndarray:
  """All attributes of person k."""
  return np.concatenate([
      np.ravel(value[k]).astype(np.float64)
      for name, value in people._asdict().items()
      if name not in _COLORS + without
  ])


@pytest.fixture(scope='module')
def scenes():
  """Labels and descriptions by cue."""
  out = {}
  for cue, people in (('interaction', (2, 6)), ('expression', (1, 6))):
    source = GroupScenes('many', 2400, cue, people=people)
    out[cue] = source.labels, [source.describe(i) for i in range(2400)]
  return out


@pytest.mark.parametrize('cue', ['interaction', 'expression'])
def test_a_single_person_does_not_tell_the_class(scenes, cue):
  ensemble = pytest.importorskip('sklearn.ensemble')
  labels, described = scenes[cue]
  # With the cue `expression`, bodies must be uninformative.
  without = ('valence',) if cue == 'expression' else ()
  features = [
      np.stack([
          _features(scene.people, k, without) for k in range(len(scene.pair))
      ])
      for scene in described
  ]
  # One person of each scene: the samples are independent.
  first = np.stack([people[0] for people in features])
  smallest = 1.0
  for column in first.T:
    a, b, c = (column[labels == n] for n in range(3))
    for one, two in ((a, b), (a, c), (b, c)):
      test = stats.ks_2samp(one, two, method='asymp')
      smallest = min(smallest, test.pvalue)
  assert smallest > 0.01 / (3 * first.shape[1])
  # Train on the people of half of the scenes, test on the other half.
  model = ensemble.RandomForestClassifier(
      60, min_samples_leaf=20, max_features=0.3, random_state=0
  )
  known, rest = features[:1200], features[1200:]
  model.fit(
      np.concatenate(known), np.repeat(labels[:1200], [len(f) for f in known])
  )
  guess = model.predict(np.concatenate(rest))
  truth = np.repeat(labels[1200:], [len(f) for f in rest])
  # Chance has a standard deviation below 0.01.
  assert np.mean(guess == truth) < 1 / 3 + 0.03


def test_relations_tell_the_class(scenes):
  ensemble = pytest.importorskip('sklearn.ensemble')
  labels, described = scenes['interaction']
  rows, targets = [], []
  for label, scene in zip(labels, described, strict=True):
    people = scene.people
    a, b = np.flatnonzero(scene.pair == 0)
    a, b = (a, b) if people.x[a] < people.x[b] else (b, a)
    step = people.gesture[b] - people.gesture[a]
    rows.append([
        people.x[b] - people.x[a], people.heading[a], people.heading[b],
        step == 0, abs(step) == 3, np.cos(people.phase[a] - people.phase[b]),
        len(scene.pair),
    ])  # fmt: skip
    targets.append(label)
  rows, targets = np.array(rows, float), np.array(targets)
  model = ensemble.RandomForestClassifier(60, random_state=0)
  model.fit(rows[:1200], targets[:1200])
  assert model.score(rows[1200:], targets[1200:]) > 0.85


def test_pairs_relate_as_described(scenes):
  labels, described = scenes['interaction']
  same, facing = np.zeros(3), np.zeros(3)
  for label, scene in zip(labels, described, strict=True):
    people = scene.people
    a, b = np.flatnonzero(scene.pair == 0)
    same[label] += people.gesture[a] == people.gesture[b]
    near = abs(people.x[a] - people.x[b]) < group_scenes._STRIP / 2
    a, b = (a, b) if people.x[a] < people.x[b] else (b, a)
    looks_at = (people.heading[a] > 0) & (people.heading[b] < 0)
    facing[label] += near & looks_at
  negative, neutral, positive = same / 800
  assert positive > 0.9 and negative < 0.08 and abs(neutral - 1 / 6) < 0.06
  # The frame cuts some pairs apart.
  negative, neutral, positive = facing / 800
  assert positive > 0.55 and negative < 0.05 and neutral < 0.05


def test_faces_tell_the_class(scenes):
  labels, described = scenes['expression']
  mood = np.array([scene.people.valence.mean() for scene in described])
  guess = np.digitize(mood, [-0.4, 0.4])
  assert np.mean(guess == labels) > 0.9
  # With the cue `interaction` they are uninformative, even jointly.
  labels, described = scenes['interaction']
  mood = np.array([scene.people.valence.mean() for scene in described])
  for one, two in ((0, 1), (0, 2), (1, 2)):
    test = stats.ks_2samp(
        mood[labels == one], mood[labels == two], method='asymp'
    )
    assert test.pvalue > 0.003
  # With both cues they agree.
  source = GroupScenes('b', 300)
  mood = [source.describe(i).people.valence.mean() for i in range(300)]
  assert np.mean(np.digitize(mood, [-0.4, 0.4]) == source.labels) > 0.85


def test_zoom_enlarges_people_and_keeps_heads_in_the_frame():
  plain = GroupScenes('zoom', 200, people=(2, 4))
  near = GroupScenes('zoom', 200, people=(2, 4), zoom=1.5)
  for i in range(200):
    one, two = plain.describe(i).people, near.describe(i).people
    np.testing.assert_allclose(two.height, 1.5 * one.height)
    np.testing.assert_array_equal(two.x, one.x)
    np.testing.assert_array_equal(two.valence, one.valence)
  noses, ankles = [], []
  for source in (plain, near):
    bodies = np.concatenate([source[i]['bodies'][0] for i in range(40)])
    noses.append((bodies[:, 0, 2] > 0).mean())
    ankles.append((bodies[:, 15:, 2] > 0).mean())
  assert noses[1] > 0.8 * noses[0]
  assert ankles[0] > 0.2 and ankles[1] < 0.02


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'cue': 'mood'}, "cue is 'mood'"),
        ({'people': (0, 3)}, 'people'),
        ({'people': (3, 11)}, 'people'),
        ({'cue': 'interaction', 'people': (1, 1)}, 'interaction needs 2'),
        ({'zoom': 0.5}, 'zoom'),
        ({'size': 4}, 'size'),
        ({'frames': 0}, 'frames'),
    ],
)
def test_wrong_settings_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    GroupScenes('train', 3, **settings)


def test_wrong_numbers_are_named(source):
  with pytest.raises(IndexError, match='60 samples, not 60'):
    source[60]


def test_contact_sheet():
  sheet = contact_sheet.contact_sheet(columns=2, side=64)
  assert sheet.shape == (3 * 68, 26 + 2 * 68, 3) and sheet.std() > 20


def test_some_scenes_have_a_single_cue():
  plain = GroupScenes('s', 300, people=(2, 4))
  mixed = GroupScenes('s', 300, people=(2, 4), single_cue=(0.2, 0.4))
  np.testing.assert_array_equal(mixed.labels, plain.labels)
  single = {
      cue: GroupScenes('s', 300, cue, people=(2, 4))
      for cue in ('expression', 'interaction')
  }

  def valence(source, i):
    return source.describe(i).people.valence

  counts = {'both': 0, 'expression': 0, 'interaction': 0}
  for i in range(300):
    (cue,) = {
        name
        for name, other in {'both': plain, **single}.items()
        if np.array_equal(valence(mixed, i), valence(other, i))
        and np.array_equal(
            mixed.describe(i).people.x, other.describe(i).people.x
        )
    }
    counts[cue] += 1
  assert 90 < counts['both'] < 150
  assert 40 < counts['expression'] < 80
  assert 90 < counts['interaction'] < 150
  for cue, share in (
      ('both', (0.6, 0.5)), ('both', (-0.1, 0.5)), ('both', (0.5,)),
      ('expression', (0.5, 0.0)),
  ):  # fmt: skip
    with pytest.raises(ValueError, match='single_cue is'):
      GroupScenes('s', 3, cue, single_cue=share)
