r"""The authors' exact settings on GAF-3.0, including the bugs of their code.

For weights that were trained with their code (vemd_jax.models.torch_import),
and for ablations of the individual fixes. The settings: deterministic latent,
MMD over rows that includes the ViT latent, no presence logits, attention over
the batch in the plain heatmap head, one optimizer state per dataset, and their
augmentation. Published: 90.06 % accuracy (arXiv 2604.02397, abstract; split not
stated).

  python -m vemd_jax.main --config=configs/reference.py:heatmap \
      --config.data.root=GAF3 --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: heatmap, person_query; ve_sd, ve_md, ve_md_sr; projected (projects the
structure by LayerNorm, Linear, ReLU); two_encoders; st_gcn; tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('gaf3')
  config.model.head.sr_input = 'raw'
  # Applied after all other options except tiny, since it depends on them.
  return config_lib.finish(
      config,
      f'{options},reference',
      {
          'projected': lambda c: c.model.head.update(sr_input='projected'),
          'two_encoders': lambda c: c.model.update(num_encoders=2),
          'st_gcn': lambda c: c.model.person_query.update(st_gcn='reference'),
      },
  )
