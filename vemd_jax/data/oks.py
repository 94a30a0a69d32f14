"""Object keypoint similarity, COCO's measure of how well two poses agree."""

import numpy as np

from vemd_jax import skeletons


def object_keypoint_similarity(
    found: np.ndarray,
    truth: np.ndarray,
    area: np.ndarray,
    sigmas: np.ndarray = skeletons.BODY_SIGMAS,
) -> np.ndarray:
  """Similarity of every found person to every true one.

  The mean over the labelled joints of exp(-d² / (2 · area · (2σ)²)), d being
  the distance in pixels (https://cocodataset.org/#keypoints-eval).

  Args:
    found: [N, K, 3] (x, y, score) in pixels; scores are not used.
    truth: [M, K, 3] (x, y, visibility); joints with visibility 0 do not count.
    area: [M] area of each true person in square pixels.
    sigmas: [K] spread of each joint.

  Returns:
    [N, M] float64 in 0..1; 0 if the true person has no labelled joint.
  """
  found = np.asarray(found, np.float64)
  truth = np.asarray(truth, np.float64)
  squared = np.square(found[:, None, :, :2] - truth[None, :, :, :2]).sum(-1)
  spread = np.asarray(area, np.float64)[:, None] * np.square(
      2 * np.asarray(sigmas, np.float64)
  )  # [M, K]
  labelled = truth[:, :, 2] > 0
  similarity = np.exp(-squared / (2 * spread + np.finfo(np.float64).eps))
  total = (similarity * labelled).sum(-1)
  return total / np.maximum(labelled.sum(-1), 1)


def best_match(
    found: np.ndarray, truth: np.ndarray, area: np.ndarray
) -> np.ndarray:
  """Similarity of each true person to the most similar found person.

  Args:
    found: [N, 17, 3] bodies (x, y, score).
    truth: [M, 17, 3] bodies (x, y, visibility).
    area: [M] square pixels.

  Returns:
    [M] float64 in 0..1; 0 if nobody was found.
  """
  similarity = object_keypoint_similarity(found, truth, area)
  return similarity.max(0, initial=0.0)
