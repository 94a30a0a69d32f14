r"""The authors' settings to the letter, their faults included, on GAF-3.0.

For weights that were trained with their code (vemd_jax.models.torch_import),
and to see what each repair is worth. Every switch: deterministic latent, MMD
over rows with the ViT latent in it, no presence, the plain heatmap head attends
over the batch, one optimiser state a dataset, their augmentation. The published
number is 90.06 % accuracy (arXiv 2604.02397, abstract; split not stated).

  python -m vemd_jax.main --config=configs/reference.py:heatmap \
      --config.data.root=GAF3 --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: heatmap, person_query; ve_sd, ve_md, ve_md_sr; projected (the structure
through LayerNorm, Linear, ReLU); two_encoders; st_gcn; tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('gaf3')
  config.model.head.sr_input = 'raw'
  # Last but for tiny: it looks at what the other options have chosen.
  return config_lib.finish(
      config,
      f'{options},reference',
      {
          'projected': lambda c: c.model.head.update(sr_input='projected'),
          'two_encoders': lambda c: c.model.update(num_encoders=2),
          'st_gcn': lambda c: c.model.person_query.update(st_gcn='reference'),
      },
  )
