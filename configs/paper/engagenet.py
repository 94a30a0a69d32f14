r"""EngageNet: the model variants.

  python -m vemd_jax.data.prepare engagenet --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.sweep configs/paper/engagenet.py --workdir=SWEEP \
      --paths engagenet=DATA clip=CLIP
  python -m vemd_jax.table SWEEP

CLIP contains the initial weights of stage 1, see configs/stage1.py. For
legal restrictions see configs/engagenet.py.
"""

from vemd_jax.sweep_plan import two_stages

RAW = {'model.head.sr_input': 'raw'}
PROJECTED = {'model.head.sr_input': 'projected'}

SWEEP = two_stages(
    'engagenet',
    (
        ('ve_sd', 've_sd', {}),
        ('ve_md', 've_md', {}),
        ('ve_md_sr raw', 've_md_sr', RAW),
        ('ve_md_sr projected', 've_md_sr', PROJECTED),
    ),
    published='ve_md_sr projected',
)
