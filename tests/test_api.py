"""The public API: the README's Python blocks and their guarantees."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import folder

README = pathlib.Path(__file__).parents[1] / 'README.md'

pytestmark = pytest.mark.usefixtures('standard_promotion')


def block(first: str) -> str:
  """The README's Python block that contains this text."""
  (code,) = [
      code
      for code in re.findall(r'```python\n(.*?)```', README.read_text(), re.S)
      if first in code
  ]
  return code


@pytest.fixture(scope='module')
def names():
  """What the README's block on experiments defines."""
  code = block('vemd_jax.build').replace('get_config()', "get_config('tiny')")
  names = {}
  with jax.numpy_dtype_promotion('standard'):
    exec(code, names)
  return names


def test_the_readme_builds_an_experiment(names):
  assert float(names['value']) > 0
  gradients = names['gradients']['params']
  assert set(gradients) == set(names['experiment'].variables['params'])
  norms = {k: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(v))
           for k, v in gradients.items()}  # fmt: skip
  assert min(norms.values()) > 0, norms
  logits = names['outputs'].logits
  assert logits.shape == (len(names['experiment'].batch['label']), 3)


def test_the_loss_is_pure_and_falls(names):
  variables, batch, step = names['variables'], names['batch'], names['step']
  key = jax.random.key(0)
  first, gradients = step(variables, batch, key)
  assert step(variables, batch, key)[0] == first
  moved = jax.tree.map(lambda x, g: x - 1e-3 * g, variables, gradients)
  assert step(moved, batch, key)[0] < first


def test_the_readme_loads_a_run(tiny_run, monkeypatch):
  monkeypatch.chdir(tiny_run.parents[1])
  code = block('vemd_jax.load').replace('runs/', f'{tiny_run.parent.name}/')
  image = np.full((50, 70, 3), 90, np.uint8)
  names = {'image': image}
  exec(code, names)
  model, probabilities = names['model'], names['probabilities']
  assert model.classes == ('negative', 'neutral', 'positive')
  np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
  same, outputs = model.outputs(model.prepare([image])[None])
  np.testing.assert_allclose(same, probabilities, rtol=1e-5)
  assert outputs.body.heatmap_logits.ndim == 6
  # The function is pure: its gradient by the image exists and is not 0.
  gradient = jax.grad(lambda x: model.probabilities(x)[0, 0])(
      jnp.asarray(model.prepare([image])[None], jnp.float32)
  )
  assert float(jnp.abs(gradient).max()) > 0


def test_from_takes_over_sizes_and_weights(tiny_run):
  config = folder.get_config(f'from={tiny_run},ve_sd')
  assert config.model.encoder.width == 4 and config.model.variant == 've_sd'
  assert config.data.image_size == 96 and config.data.name == 'folder'
  assert config.checkpoint.init_from == (str(tiny_run),)
  with pytest.raises(FileNotFoundError, match='nowhere'):
    folder.get_config('from=/nowhere')
