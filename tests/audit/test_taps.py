"""What the taps hold, against the outputs that the model computes from them."""

import jax
import numpy as np

from configs import group_scenes
from tests.models import vemd_cases
from vemd_jax.audit import taps
from vemd_jax.inference.trained import Trained
from vemd_jax.models.vemd import VEMD


def test_the_relations_are_what_the_head_reads():
  config = group_scenes.get_config('tiny,relations')
  model = VEMD(**config.model.to_dict(), classes=(('group_scenes', 3),))
  example = vemd_cases.batch(3, 1, config.data.image_size)
  variables = vemd_cases.make(model, example, 'group_scenes')
  trained = Trained(
      config, config.data, 'group_scenes', ('a', 'b', 'c'), model, variables, 0
  )
  tapped = jax.device_get(taps.make_taps(trained, None)(example['image']))
  outputs = jax.jit(trained.apply)(variables, example['image'])
  head = jax.device_get(variables['params']['head_group_scenes'])
  width = tapped['relations'].shape[1] // 2
  for i, part in enumerate(('body', 'face')):
    vector = tapped['relations'][:, i * width : (i + 1) * width]
    assert np.ptp(vector, 0).max() > 0
    dense = head[f'{part}_relations']
    np.testing.assert_allclose(
        vector @ dense['kernel'] + dense['bias'],
        outputs.sources[:, 1 + i],
        atol=1e-4,
    )
  np.testing.assert_allclose(
      tapped['exported'], jax.nn.softmax(tapped['logits']), atol=1e-5
  )
  hidden = head['logits']
  np.testing.assert_allclose(
      tapped['embedding'] @ hidden['kernel'] + hidden['bias'],
      outputs.sources[:, 0],
      atol=1e-4,
  )
