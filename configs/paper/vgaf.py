r"""VGAF: the model variants, without and with audio.

  python -m vemd_jax.data.prepare vgaf --source=DIR --out=DATA --audio
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.sweep configs/paper/vgaf.py --workdir=SWEEP \
      --paths vgaf=DATA clip=CLIP
  python -m vemd_jax.table SWEEP

CLIP contains the initial weights of stage 1, see configs/stage1.py.
"""

from vemd_jax.sweep_plan import two_stages

RAW = {'model.head.sr_input': 'raw'}
PROJECTED = {'model.head.sr_input': 'projected'}

SWEEP = two_stages(
    'vgaf',
    (
        ('ve_sd', 've_sd', {}),
        ('ve_md', 've_md', {}),
        ('ve_md_sr raw', 've_md_sr', RAW),
        ('ve_md_sr projected', 've_md_sr', PROJECTED),
        ('ve_sd audio', 've_sd,audio', {}),
        ('ve_md audio', 've_md,audio', {}),
        ('ve_md_sr raw audio', 've_md_sr,audio', RAW),
    ),
    published='ve_md_sr raw audio',
)
