"""Throughput of the input pipeline on one core, and time per stage.

  python benchmarks/pipeline.py [--samples=200] [--targets=host] [--people=10]

Samples are JPEG files of group scenes, 224 to 640 pixels wide, with ten people:
decoded, cropped, flipped, jittered, resized to 224, and body and face heatmaps
(18 + 83 limbs, 56 x 56) rendered. Times are CPU times of one thread, so that
other load on the machine affects them little.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

import cv2
import grain
import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from vemd_jax import skeletons
from vemd_jax.data import decoding, heatmaps, transforms
from vemd_jax.scenes import group_scenes

_SIZES = (224, 320, 480, 640)
_MAPS = {'image_size': (224, 224), 'heatmap_size': (56, 56), 'sigma': 1.0}
_LIMBS = skeletons.HEATMAP_LIMBS


def make_files(folder: pathlib.Path, people: int, count: int) -> list[dict]:
  """Writes JPEG files of scenes, a quarter of them of each size.

  Args:
    folder: folder to write to.
    people: number of people per image; if fewer are visible, some are copied.
    count: number of files.

  Returns:
    Records with paths instead of frames.
  """
  records = []
  for i in range(count):
    size = _SIZES[i % len(_SIZES)]
    scenes = group_scenes.GroupScenes(
        'benchmark', count, size=size, people=(people, people)
    )
    scene = scenes[i]
    path = folder / f'{i}.jpg'
    bgr = scene['frames'][0][..., ::-1]
    path.write_bytes(
        cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    )
    record = {'path': path, 'file': path.name, 'label': scene['label']}
    for part in ('bodies', 'faces'):
      some = scene[part][0]
      some = some[np.arange(people) % len(some)].copy()
      # All limbs are rendered, including those hidden in the scene.
      some[..., :2] = some[..., :2].clip(0, size - 1)
      some[..., 2] = 1
      record[part] = [some]
    records.append(record)
  return records


def reference_heatmaps(
    keypoints: np.ndarray, limbs: np.ndarray
) -> np.ndarray:
  """The reference's method: a loop over people and limbs on the whole map.

  Args:
    keypoints: [P, K, 3], pixels of a 224 x 224 image.
    limbs: [L, 2] joint numbers.

  Returns:
    [L, 56, 56] float32.
  """
  maps = np.zeros((len(limbs), 56, 56))
  for person in keypoints:
    for limb, (i, j) in enumerate(limbs):
      if person[i, 2] < 0.1 or person[j, 2] < 0.1:
        continue
      a, b = person[i, :2] * 56.0 / 224.0, person[j, :2] * 56.0 / 224.0
      x, y = np.meshgrid(np.arange(56), np.arange(56))
      pixels = np.stack([x, y], -1).astype(np.float64)
      along = b - a
      length = np.linalg.norm(along)
      if length < 1e-3:
        nearest = np.broadcast_to(a, pixels.shape)
      else:
        t = np.dot(pixels - a, along) / length**2
        nearest = a + np.clip(t, 0, 1)[..., None] * along
      distance = np.linalg.norm(pixels - nearest, axis=-1)
      maps[limb] += np.exp(-(distance**2) / 2.0)
  return np.clip(maps, 0, 1).astype(np.float32)


def milliseconds(function: Callable, items: list, rounds: int = 5) -> float:
  """CPU time per call: the mean over items of the best of several rounds."""
  best = np.full(len(items), np.inf)
  for _ in range(rounds):
    for i, item in enumerate(items):
      start = time.thread_time()
      function(item)
      best[i] = min(best[i], time.thread_time() - start)
  return 1e3 * best.mean()


def device_milliseconds(samples: list[dict]) -> float:
  """Wall time of an image's targets on the device, in batches of 32."""
  batch = {
      k: np.stack([samples[i % len(samples)][k] for i in range(32)])
      for k in samples[0]
      if k.endswith(('keypoints', 'mask'))
  }

  @jax.jit
  def render(batch):
    return [
        heatmaps.render_jax(
            batch[f'{part}_keypoints'],
            batch[f'{part}_mask'],
            limbs,
            **_MAPS,
        )
        for part, limbs in _LIMBS.items()
    ]

  batch = jax.device_put(batch)
  jax.block_until_ready(render(batch))
  rounds = 10
  start = time.perf_counter()
  for _ in range(rounds):
    result = render(batch)
  jax.block_until_ready(result)
  return 1e3 * (time.perf_counter() - start) / (32 * rounds)


def main() -> None:
  """Measures and prints the tables."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--samples', type=int, default=200)
  parser.add_argument('--people', type=int, default=10)
  parser.add_argument('--targets', choices=('host', 'device'), default='host')
  args = parser.parse_args()
  transform = transforms.Transform(
      max_people=args.people,
      heatmap_size=56 if args.targets == 'host' else 0,
      augment=transforms.Augment(
          crop_scale=(0.5, 1.0),
          crop_ratio=(0.75, 1.33),
          flip=0.5,
          brightness=0.2,
          contrast=0.2,
          saturation=0.2,
          hue=0.02,
      ),
  )
  plain = transforms.Transform(
      max_people=args.people, augment=transform.augment
  )
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as folder:
    records = make_files(pathlib.Path(folder), args.people, args.samples)

    def read(record):
      return {**record, 'frames': [record['path'].read_bytes()]}

    reading = milliseconds(read, records)
    files = [read(record) for record in records]
    decode = milliseconds(lambda r: decoding.decode(r, 1), files)
    decoded = [decoding.decode(r, 1) for r in files]
    augmenting = milliseconds(lambda r: plain(r, rng), decoded)
    samples = [plain(r, rng) for r in decoded]
    dropping = sum(int(s['body_mask'].sum()) for s in samples) / len(samples)

    def targets(sample):
      for part, limbs in _LIMBS.items():
        heatmaps.render(
            sample[f'{part}_keypoints'], sample[f'{part}_mask'], limbs, **_MAPS
        )

    rendering = milliseconds(targets, samples)
    whole = milliseconds(lambda r: transform(read(r), rng), records)
    some = [transform(r, rng) for r in decoded[:32]]
    batches = grain.MapDataset.source(some).batch(len(some))
    batching = milliseconds(lambda i: batches[i], [0]) / len(some)
    total = whole + batching

  # For the comparison, targets of uncropped images with all people in them.
  full = [
      transforms.Transform(max_people=args.people)(record)
      for record in decoded
  ]
  host = milliseconds(targets, full)
  loop = milliseconds(
      lambda s: [
          reference_heatmaps(s[f'{part}_keypoints'][0], limbs)
          for part, limbs in _LIMBS.items()
      ],
      full[:8],
      rounds=2,
  )
  device = device_milliseconds(
      [{k: v[0] for k, v in s.items() if np.ndim(v)} for s in full]
  )

  stages = {
      'read the file': reading,
      'decode JPEG': decode,
      'crop, resize, flip, colours, people': augmenting,
  }
  if args.targets == 'host':
    stages['heatmaps'] = rendering
  stages['rest'] = max(0.0, whole - sum(stages.values()))
  stages['batch of 32'] = batching
  print(f'{args.samples} samples, {args.people} people before the crop, '
        f'{dropping:.1f} after it\n')  # fmt: skip
  print(f'{"stage":40}{"ms/sample":>12}{"share":>8}')
  for stage, value in stages.items():
    print(f'{stage:40}{value:12.3f}{value / total:8.0%}')
  print(f'{"all":40}{total:12.3f}{1e3 / total:8.0f} samples/s per core\n')
  print(f'{"targets, 18 + 83 limbs, all people":40}{"ms/sample":>12}')
  backend = jax.devices()[0].device_kind
  for way, value in (
      ('the reference\'s loop', loop),
      ('host', host),
      (f'device ({backend}, batch of 32)', device),
  ):
    print(f'{way:40}{value:12.3f}{loop / value:8.0f} x')
  slowest = max(stages, key=stages.get)
  print(f'\nSlowest stage: {slowest}.')


if __name__ == '__main__':
  main()
