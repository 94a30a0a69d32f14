"""Turns a record into a sample of fixed shapes: decode, augment, pad, render.

Geometry: pixel centres have integer coordinates, so pixel x covers x - 0.5 to
x + 0.5, and resizing by s maps x to (x + 0.5) s - 0.5, as `cv2.resize` does to
the image. Every frame of a clip gets the same crop, flip and colour change.

In evaluation the whole image is resized to a square, regardless of its aspect
ratio, as in the reference: a centre crop would cut off the people at the sides
of a group photograph. The aspect ratio of training crops is relative to the
image's, so that the largest crop equals the evaluation view.
"""

import dataclasses
import math
from typing import Any

import cv2
import numpy as np

from vemd_jax import skeletons
from vemd_jax.data import heatmaps, video
from vemd_jax.data.decoding import Record, decode
from vemd_jax.data.geometry import (
  flip_matrix,
  random_box,
  resize_crop,
  transform_points,
)

Sample = dict[str, np.ndarray]
# The pipeline has its own threads; those of OpenCV would compete with them.
cv2.setNumThreads(1)
_RGB_TO_YIQ = np.array([
    [0.299, 0.587, 0.114],
    [0.595716, -0.274453, -0.321263],
    [0.211456, -0.522591, 0.311135],
])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


# ---------------------------------------------------------------- colours


def color_matrix(
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    luma: float,
) -> np.ndarray:
  """Brightness, contrast, saturation and hue as one affine map of RGB.

  Args:
    brightness: factor of the values.
    contrast: factor of the distance from the mean luma.
    saturation: factor of the distance from grey.
    hue: rotation of the chroma plane (YIQ), in full turns.
    luma: the image's mean luma, 0..255.

  Returns:
    [3, 4] float64; maps (r, g, b, 1) to the new colour, 0..255.
  """
  angle = 2.0 * math.pi * hue
  c, s = saturation * math.cos(angle), saturation * math.sin(angle)
  turn = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
  matrix = _YIQ_TO_RGB @ turn @ _RGB_TO_YIQ * (brightness * contrast)
  offset = (1.0 - contrast) * brightness * luma
  return np.concatenate([matrix, np.full((3, 1), offset)], 1)


def grayscale(image: np.ndarray) -> np.ndarray:
  """Replaces all three channels by luma: [H, W, 3] uint8 -> the same shape."""
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  return cv2.merge([grey, grey, grey])


# ---------------------------------------------------------------- people


def pad_people(
    people: np.ndarray, max_people: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, int]:
  """Masks points outside the image and pads to a fixed number of people.

  Args:
    people: [n, K, 3] (x, y, score) in pixels of the image.
    max_people: P. If there are more people, the P largest are kept, the
      largest first.
    size: (H, W) of the image.

  Returns:
    keypoints [P, K, 3] float32, with score and coordinates 0 where a point is
    missing or outside; mask [P] bool; the number of people dropped. A person
    without any point in the image is neither kept nor counted.
  """
  x, y, score = np.moveaxis(people.astype(np.float32), -1, 0)
  with np.errstate(invalid='ignore'):
    present = (score >= skeletons.MIN_SCORE) & np.isfinite(x) & np.isfinite(y)
    present &= (x >= -0.5) & (x < size[1]) & (y >= -0.5) & (y < size[0])
  people = np.stack([np.maximum(x, 0), np.maximum(y, 0), score], -1)
  people = np.where(present[..., None], people, np.float32(0))
  seen = present.any(1)
  people, present = people[seen], present[seen]
  dropped = max(0, len(people) - max_people)
  if dropped:
    xy = people[..., :2]
    high = np.where(present[..., None], xy, -np.inf).max(1)
    low = np.where(present[..., None], xy, np.inf).min(1)
    extent = np.hypot(*(high - low).T)
    people = people[np.argsort(-extent, kind='stable')[:max_people]]
  keypoints = np.zeros((max_people, *people.shape[1:]), np.float32)
  keypoints[: len(people)] = people
  return keypoints, np.arange(max_people) < len(people), dropped


def fit_rows(values: np.ndarray, rows: int) -> np.ndarray:
  """Truncates or zero-pads an [n, E] array to [rows, E], float32."""
  result = np.zeros((rows, values.shape[1]), np.float32)
  result[: len(values)] = values[:rows]
  return result


# ---------------------------------------------------------------- transform


@dataclasses.dataclass(frozen=True)
class Augment:
  """Parameters of the random augmentation in training.

  Attributes:
    crop_scale: range of a crop's share of the area.
    crop_ratio: range of a crop's aspect ratio relative to the image's.
    flip: probability of a horizontal flip.
    brightness: largest deviation of the factor from 1.
    contrast: see brightness.
    saturation: see brightness.
    hue: largest rotation, in full turns.
  """

  crop_scale: tuple[float, float] = (1.0, 1.0)
  crop_ratio: tuple[float, float] = (1.0, 1.0)
  flip: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0


@dataclasses.dataclass(frozen=True)
class Transform:
  """Makes samples: `(record)` in evaluation, `(record, rng)` in training.

  Attributes:
    image_size: side of the square image, in pixels.
    frames: T.
    max_people: P.
    max_ignore: R, largest number of regions without labels; a frame with more
      of them counts as not annotated. 0 omits them.
    labels: whether the labels are used.
    bodies: whether the bodies are used.
    faces: whether the faces are used.
    gray: whether the colours are removed.
    nobody: whether an annotation without people means that nobody is present;
      otherwise it counts as not annotated.
    heatmap_size: side of the heatmaps rendered here; 0 renders none.
    sigma: width of a limb in heatmap pixels.
    audio: (frames, bins) of the audio, (0, 0) for none.
    text: (tokens, width) of the text embedding, (0, 0) for none.
    vit_dim: width of the frozen features, 0 for none.
    multi_label: number of classes if samples may have several, else 0.
    augment: augmentation, applied if a generator is given.
  """

  image_size: int = 224
  frames: int = 1
  max_people: int = 10
  max_ignore: int = 0
  labels: bool = True
  bodies: bool = True
  faces: bool = True
  gray: bool = False
  nobody: bool = False
  heatmap_size: int = 0
  sigma: float = 1.0
  audio: tuple[int, int] = (0, 0)
  text: tuple[int, int] = (0, 0)
  vit_dim: int = 0
  multi_label: int = 0
  augment: Augment = dataclasses.field(default_factory=Augment)

  def __call__(
      self, record: Record, rng: np.random.Generator | None = None
  ) -> Sample:
    """Transforms a record.

    Args:
      record: see `decode`; further fields: `label`, `file`, `audio`,
        `text_embedding`, `vit_features`, `label_multi_hot` [C].
      rng: generator of the augmentation; None in evaluation.

    Returns:
      The fields of a batch without the leading dimension.
    """
    sample = self.blank()
    if not record:
      return sample
    # The smallest crop determines the resolution needed of a large image.
    need = self.image_size
    if rng is not None:
      narrow, wide = self.augment.crop_ratio
      need /= math.sqrt(self.augment.crop_scale[0] * min(narrow, 1 / wide))
    record = decode(record, self.frames, math.ceil(need))
    if not record['frames']:
      sample['unreadable'] = np.int32(1)
      return sample
    sample['mask'] = np.bool_(True)
    if self.labels and record.get('label', -1) >= 0:
      sample['label'] = np.int32(record['label'])
      sample['label_mask'] = np.bool_(True)
    if self.multi_label and self.labels and 'label_multi_hot' in record:
      sample['label_multi_hot'][:] = record['label_multi_hot']
    self._optional(sample, record)

    flip = rng is not None and bool(rng.random() < self.augment.flip)
    matrices = self._images(sample['image'], record['frames'], flip, rng)
    for part, people in (('body', 'bodies'), ('face', 'faces')):
      if getattr(self, people):
        order = skeletons.FLIPS[part] if flip else None
        self._people(sample, part, record[people], matrices, order)
    if self.max_ignore:
      self._ignore(sample, record['ignore'], matrices)
    return sample

  def blank(self) -> Sample:
    """A sample that is masked out: all zero, every mask False."""
    t, p, side = self.frames, self.max_people, self.image_size
    sample = {
        'image': np.zeros((t, side, side, 3), np.uint8),
        'label': np.int32(0),
        'label_mask': np.bool_(False),
        'mask': np.bool_(False),
        'unreadable': np.int32(0),
    }
    for part, joints in skeletons.NUM_POINTS.items():
      sample[f'{part}_keypoints'] = np.zeros((t, p, joints, 3), np.float32)
      sample[f'{part}_mask'] = np.zeros((t, p), bool)
      sample[f'{part}_annotated'] = np.zeros(t, bool)
      sample[f'{part}_dropped'] = np.zeros(t, np.int32)
      if self.heatmap_size:
        h, limbs = self.heatmap_size, len(skeletons.HEATMAP_LIMBS[part])
        sample[f'{part}_heatmap'] = np.zeros((t, h, h, limbs), np.float32)
    if self.max_ignore:
      sample['ignore_boxes'] = np.zeros((t, self.max_ignore, 4), np.float32)
    if self.audio[0]:
      sample['audio'] = np.zeros(self.audio, np.float32)
      sample['audio_mask'] = np.bool_(False)
    if self.text[0]:
      sample['text_embedding'] = np.zeros(self.text, np.float32)
      sample['text_mask'] = np.bool_(False)
    if self.vit_dim:
      sample['vit_features'] = np.zeros((t, self.vit_dim), np.float32)
    if self.multi_label:
      sample['label_multi_hot'] = np.zeros(self.multi_label, np.int32)
    return sample

  def _images(self, out, frames, flip, rng) -> list[np.ndarray]:
    """Writes the images; returns the affine map of each for its keypoints."""
    side, augment = self.image_size, self.augment
    box = None
    if rng is not None:
      height, width = frames[0].shape[:2]
      box = random_box(
          (height, width), augment.crop_scale, augment.crop_ratio, rng
      )
      changes = [
          rng.uniform(-x, x)
          for x in (
              augment.brightness,
              augment.contrast,
              0.0 if self.gray else augment.saturation,
              0.0 if self.gray else augment.hue,
          )
      ]
    color = None
    matrices = []
    for i, frame in enumerate(frames):
      height, width = frame.shape[:2]
      inside = (0, 0, width, height)
      if box is not None:
        inside = _share(box, frames[0].shape, frame.shape)
      image, matrix = resize_crop(frame, inside, side)
      if flip:
        image = cv2.flip(image, 1)
        matrix = flip_matrix(matrix, side)
      if self.gray:
        image = grayscale(image)
      if rng is not None and any(changes):
        if color is None:
          luma = float(np.dot(cv2.mean(image)[:3], _RGB_TO_YIQ[0]))
          b, c, s, h = changes
          color = color_matrix(1 + b, 1 + c, 1 + s, h, luma)
        image = cv2.transform(image, color)
      out[i] = image
      matrices.append(matrix)
    return matrices

  def _people(self, sample, part, frames, matrices, order) -> None:
    """Fills in the people of one part, and their heatmaps."""
    side = self.image_size
    for i, (people, matrix) in enumerate(zip(frames, matrices)):
      if people is None or not (len(people) or self.nobody):
        continue
      sample[f'{part}_annotated'][i] = True
      if len(people):
        (
            sample[f'{part}_keypoints'][i],
            sample[f'{part}_mask'][i],
            sample[f'{part}_dropped'][i],
        ) = pad_people(
            transform_points(people, matrix, order),
            self.max_people,
            (side, side),
        )
    if self.heatmap_size:
      sample[f'{part}_heatmap'] = heatmaps.render(
          sample[f'{part}_keypoints'],
          sample[f'{part}_mask'],
          skeletons.HEATMAP_LIMBS[part],
          image_size=(side, side),
          heatmap_size=(self.heatmap_size, self.heatmap_size),
          sigma=self.sigma,
      )

  def _ignore(self, sample, frames, matrices) -> None:
    """Fills in the regions without labels, (x1, y1, x2, y2) each."""
    for i, (regions, matrix) in enumerate(zip(frames, matrices)):
      if regions is None or not len(regions):
        continue
      corners = transform_points(regions, matrix)[..., :2]
      boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
      boxes = np.clip(boxes, 0, self.image_size)
      boxes = boxes[(boxes[:, :2] < boxes[:, 2:]).all(1)]
      if len(boxes) > self.max_ignore:
        for part in skeletons.NUM_POINTS:
          sample[f'{part}_annotated'][i] = False
      else:
        sample['ignore_boxes'][i, : len(boxes)] = boxes

  def _optional(self, sample, record) -> None:
    """Fills in audio, text and frozen features if they exist."""
    for key, mask, (rows, width) in (
        ('audio', 'audio_mask', self.audio),
        ('text_embedding', 'text_mask', self.text),
    ):
      values = record.get(key)
      if not rows or values is None or not len(values):
        continue
      _check_width(record, key, values, width)
      sample[key] = fit_rows(values, rows)
      sample[mask] = np.bool_(True)
    if self.vit_dim:
      values = record.get('vit_features')
      if values is None:
        raise ValueError(
            f'{record.get("file", "a sample")}: no vit_features, expected '
            f'[{self.frames}, {self.vit_dim}]; see vemd_jax.cache_features'
        )
      _check_width(record, 'vit_features', values, self.vit_dim)
      chosen = video.spread(len(values), self.frames)
      sample['vit_features'] = np.asarray(values, np.float32)[chosen]


def images_only(data: Any) -> Transform:
  """The evaluation transform of images only: no labels, no people.

  Args:
    data: `config.data`.

  Returns:
    The transform. Prediction and cached features share it, so that both see
    the same pixels.
  """
  return Transform(
      image_size=data.image_size,
      frames=data.frames,
      labels=False,
      bodies=False,
      faces=False,
      gray=data.grayscale,
  )


def _check_width(record, key, values, width) -> None:
  if values.ndim != 2 or values.shape[1] != width:
    raise ValueError(
        f'{record.get("file", "a sample")}: {key} has shape {values.shape}, '
        f'expected [n, {width}]'
    )


def _share(box, size, other) -> tuple[int, int, int, int]:
  """Maps a box in an image of shape `size` to an image of shape `other`."""
  if size == other:
    return box
  sx, sy = other[1] / size[1], other[0] / size[0]
  left = min(int(box[0] * sx), other[1] - 1)
  top = min(int(box[1] * sy), other[0] - 1)
  width = min(max(1, round(box[2] * sx)), other[1] - left)
  height = min(max(1, round(box[3] * sy)), other[0] - top)
  return left, top, width, height
