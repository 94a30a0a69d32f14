r"""EngageNet: engagement in clips of 10 seconds, 4 classes.

No published result of VE-MD was found; the best ones found are an accuracy of
0.747 on test and 0.713 on validation; TCCT-Net has 0.6891 on validation.

The EU AI Act, Article 5(1)(f), prohibits inferring emotions in workplaces and
educational institutions (medical and safety uses aside); see the README.

  python -m vemd_jax.data.prepare engagenet --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.main --config=configs/stage1.py:engagenet \
      --config.data.root=DATA --workdir=STAGE1
  python -m vemd_jax.main --config=configs/engagenet.py \
      --config.data.root=DATA --config.checkpoint.init_from="('STAGE1',)" \
      --workdir=W

Options: ve_sd, ve_md, ve_md_sr; heatmap, person_query; reference (the authors'
exact settings); cached (reads the ViT features that vemd_jax.cache_features has
stored with the same arguments); tiny.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.for_dataset('engagenet')
  config.model.head.sr_input = 'projected'
  return config_lib.finish(config, options)
