"""Writes an exportable model as ONNX and checks it with ONNX Runtime."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vemd_jax.artifact.build import Exportable

# Tolerance: largest absolute difference of a probability from the JAX model's.
_TOLERANCE = 1e-5


def write(path: epath.PathLike, this: Exportable) -> float:
  """Writes a model as ONNX.

  The input is uint8 [batch, N, S, S, 3], resized by the caller; the outputs
  `abstain` and `probabilities` are those of the function.

  Args:
    path: the file.
    this: the function.

  Returns:
    The largest difference of a probability from the function's, on random
    images.

  Raises:
    ImportError: if jax2onnx is missing.
    ValueError: if a gate counts people, which jax2onnx cannot convert for any
      batch size; or if the results differ by more than 1e-5.
  """
  if this.gates.counts:
    raise ValueError(
        '--min_people and --max_share cannot be written as ONNX; leave them '
        'out, or choose a name that does not end in .onnx'
    )
  try:
    import jax2onnx
    import onnxruntime
  except ImportError as error:
    raise ImportError(
        f'{error.name} is missing: pip install "vemd-jax[onnx]"'
    ) from error
  frames = this.gates.clips * this.trained.data.frames
  side = this.trained.data.image_size

  def call(image):
    outputs = this.call(this.weights, image)
    return outputs['abstain'], outputs['probabilities']

  path = epath.Path(path)
  part = path.with_name(path.name + '.part')
  shape = 'B', frames, side, side, 3
  with contextlib.redirect_stdout(io.StringIO()):  # jax2onnx prints all layers.
    jax2onnx.to_onnx(
        call,
        inputs=[jax.ShapeDtypeStruct(shape, jnp.uint8)],
        return_mode='file',
        output_path=str(part),
    )
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (3, frames, side, side, 3), np.uint8)
  session = onnxruntime.InferenceSession(str(part))
  (name,) = (i.name for i in session.get_inputs())
  found = session.run(None, {name: image})
  wanted = jax.jit(call)(image)
  worst = float(np.abs(found[1] - np.asarray(wanted[1])).max())
  if worst > _TOLERANCE or (found[0] != np.asarray(wanted[0])).any():
    part.unlink()
    raise ValueError(
        f'ONNX Runtime gives probabilities that differ by {worst:.1e}, '
        f'expected at most {_TOLERANCE:.0e}'
    )
  part.replace(path)
  return worst
