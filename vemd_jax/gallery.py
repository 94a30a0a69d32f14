"""Pictures of right and wrong predictions, for the report of a run."""

import json
from collections.abc import Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vemd_jax import canvas, sharding, viz
from vemd_jax.data import decoding, pipeline, sources
from vemd_jax.predictions import Predictions
from vemd_jax.run import Run

FOLDER = 'gallery'
# Longer side of an image, in pixels.
_SIDE = 256


def pictures(
    run: Run,
    variables: Any,
    step: int,
    said: Mapping[str, Mapping[str, Predictions | None]],
) -> list[dict[str, Any]]:
  """Draws the most confident right and wrong samples, and the least confident.

  Args:
    run: the run, from `run.set_up`.
    variables: variables for `model.apply`.
    step: number of training steps done.
    said: split -> dataset -> predictions.

  Returns:
    Entries with `split`, `dataset`, `kind` (right, wrong, unsure), `file`,
    `label`, `predicted`, `probability` and `picture` uint8 [H, W, 3]: the image
    and, beside it, the decoded structure. Empty if config.pictures.people is
    off, or with several processes.
  """
  settings = run.config.pictures
  if settings.people == 'off' or jax.process_count() > 1:
    return []
  entries = []
  for split, by_dataset in said.items():
    for name, found in by_dataset.items():
      if found is None:
        continue
      chosen = [
          (kind, position)
          for kind, ranked in found.ranked().items()
          for position in ranked[: settings.gallery]
      ]
      shown = _draw(run, variables, step, split, name, sorted(
          {int(found.index[position]) for _, position in chosen}
      ))  # fmt: skip
      classes = run.classes[name]
      for kind, position in chosen:
        probabilities = found.probabilities[position]
        file, picture = shown[int(found.index[position])]
        entries.append({
            'split': split,
            'dataset': name,
            'kind': kind,
            'file': file,
            'label': classes[found.label[position]],
            'predicted': classes[int(probabilities.argmax())],
            'probability': round(float(probabilities.max()), 6),
            'picture': picture,
        })
  return entries


def _draw(
    run: Run,
    variables: Any,
    step: int,
    split: str,
    name: str,
    indices: list[int],
) -> dict[int, tuple[str, np.ndarray]]:
  """Sample index -> (file, picture)."""
  data = run.datasets[name]
  source = sources.make_source(data, split)
  transform = pipeline.make_transform(data, train=False)
  size = run.config.eval.batch_size
  step_array = jax.device_put(
      jnp.asarray(step, jnp.int32), sharding.replicated(run.mesh)
  )
  blur = run.config.pictures.people == 'blur'
  result = {}
  for start in range(0, len(indices), size):
    part = indices[start : start + size]
    records = [source[index] for index in part]
    samples = [
        # The same keys as in evaluation, to reuse its compiled program.
        {**transform(record), 'index': np.int32(-1)}
        for record in records + [{}] * (size - len(part))
    ]
    batch = {key: np.stack([s[key] for s in samples]) for key in samples[0]}
    _, outputs, _ = run.eval_step(
        variables, sharding.put_batch(batch, run.mesh), step_array, name
    )
    outputs = jax.device_get(outputs.replace(latents=(), vit_latent=None))
    for i, (index, record) in enumerate(zip(part, records)):
      middle = data.frames // 2
      record = decoding.decode(record, data.frames, max_side=_SIDE)
      image = record['frames'][middle]
      if blur:
        people = record['bodies'][middle], record['faces'][middle]
        image = viz.hide_people(image, *people)
      shown = [image]
      structure = viz.decoded_structure(outputs, i, middle)
      if structure:
        seen_at = (data.image_size, data.image_size)
        gap = np.full((image.shape[0], 2, 3), canvas.PAPER, np.uint8)
        shown += [gap, viz.overlay_structure(image, structure, seen_at)]
      file = record.get('file', f'{split} {index}')
      result[index] = file, np.concatenate(shown, axis=1)
  return result


def store(workdir: epath.Path, entries: list[dict[str, Any]]) -> None:
  """Writes the pictures and gallery.json, replacing earlier ones.

  Args:
    workdir: output folder of the run.
    entries: entries from `pictures`.
  """
  folder = workdir / FOLDER
  if folder.exists():
    folder.rmtree()
  if not entries:
    return
  folder.mkdir()
  listed = []
  for number, entry in enumerate(entries):
    name = f'{entry["split"]}_{entry["kind"]}_{number:03d}.jpg'
    data = cv2.imencode('.jpg', entry['picture'][..., ::-1])[1]
    (folder / name).write_bytes(data.tobytes())
    listed.append({**entry, 'picture': name})
  (folder / 'gallery.json').write_text(json.dumps(listed, indent=2) + '\n')


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Reads the entries of a gallery, with `picture` as bytes of a JPEG file."""
  folder = epath.Path(workdir) / FOLDER
  path = folder / 'gallery.json'
  if not path.exists():
    return []
  return [
      {**entry, 'picture': (folder / entry['picture']).read_bytes()}
      for entry in json.loads(path.read_text())
  ]
