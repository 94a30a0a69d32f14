"""Joint names, limb topologies and left-right permutations.

Bodies have the 17 COCO joints, faces the 68 iBUG landmarks. A keypoint is
`(x, y, score)` in pixels of its image; the score is 0 for a joint that is
missing, hidden or outside the image.
"""

import numpy as np

# Joints with a lower score are treated as missing.
MIN_SCORE = 0.1

BODY_JOINTS = (
    'nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear',
    'left_shoulder', 'right_shoulder', 'left_elbow', 'right_elbow',
    'left_wrist', 'right_wrist', 'left_hip', 'right_hip',
    'left_knee', 'right_knee', 'left_ankle', 'right_ankle',
)  # fmt: skip

BODY_LIMBS = np.array([
    (0, 5), (0, 6), (0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9),
    (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14),
    (14, 16),
], np.int32)  # fmt: skip


def _chain(first: int, last: int, closed: bool = False) -> list[tuple]:
  pairs = [(i, i + 1) for i in range(first, last)]
  return pairs + [(last, first)] if closed else pairs


_INNER_MOUTH = _chain(60, 67, closed=True)

# The 20 limbs that PersonQuery decodes for a face: eyelids, brows, mouth.
FACE_QUERY_LIMBS = np.array(
    [(36, 41), (37, 40), (38, 39), (42, 47), (43, 46), (44, 45)]
    + [(17, 19), (19, 21), (22, 24), (24, 26)]
    + _INNER_MOUTH
    + [(51, 56), (50, 57)],
    np.int32,
)

# The 83 limbs of the face heatmaps: the 20 above, then the whole outline. Ten
# pairs occur twice and have separate channels, as in the reference.
FACE_LIMBS = np.concatenate([
    FACE_QUERY_LIMBS,
    np.array(
        _chain(0, 16)
        + _chain(17, 21)
        + _chain(22, 26)
        + _chain(27, 30)
        + _chain(31, 35)
        + _chain(36, 41, closed=True)
        + _chain(42, 47, closed=True)
        + _chain(48, 59, closed=True)
        + _INNER_MOUTH,
        np.int32,
    ),
])

# Permutation of the joints when the image is mirrored: new[i] = old[F[i]].
BODY_FLIP = np.array(
    [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15], np.int32
)
FACE_FLIP = np.array(
    [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30]
    + [35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55]
    + [64, 63, 62, 61, 60, 67, 66, 65],
    np.int32,
)

# Joints whose mean is a person's center; if none of them is visible, the center
# is the mean of the visible joints.
CENTER_JOINTS = {'body': (5, 6), 'face': tuple(range(68))}

# Standard deviation of annotations of a body joint relative to the square root
# of the person's area: the constants of COCO's object keypoint similarity.
BODY_SIGMAS = np.array([
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062,
    0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
], np.float32)  # fmt: skip

NUM_POINTS = {'body': 17, 'face': 68}
FLIPS = {'body': BODY_FLIP, 'face': FACE_FLIP}
HEATMAP_LIMBS = {'body': BODY_LIMBS, 'face': FACE_LIMBS}
QUERY_LIMBS = {'body': BODY_LIMBS, 'face': FACE_QUERY_LIMBS}


def shared_joint(limbs: np.ndarray) -> np.ndarray:
  """Which limbs of a topology share a joint.

  Args:
    limbs: [L, 2] joint numbers.

  Returns:
    [L, L] bool, False on the diagonal.
  """
  same = limbs[:, None, :, None] == limbs[None, :, None, :]
  return same.any((2, 3)) & ~np.eye(len(limbs), dtype=bool)


def limb_visible(keypoints, limbs: np.ndarray, height: int, width: int):
  """Which limbs have both ends present and inside the image.

  Accepts NumPy and JAX arrays.

  Args:
    keypoints: [..., K, 3] (x, y, score), pixels of an image height x width.
    limbs: [L, 2] joint numbers.
    height: image height in pixels.
    width: image width in pixels.

  Returns:
    [..., L] bool.
  """
  x, y, score = keypoints[..., 0], keypoints[..., 1], keypoints[..., 2]
  present = (
      (score >= MIN_SCORE) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
  )
  return present[..., limbs[:, 0]] & present[..., limbs[:, 1]]
