r"""GAF-3.0: the model variants with both decoders, and the frozen ViT alone.

  python -m vemd_jax.data.prepare gaf3 --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.sweep configs/paper/gaf3.py --workdir=SWEEP \
      --paths gaf3=DATA clip=CLIP
  python -m vemd_jax.table SWEEP

CLIP contains the initial weights of stage 1, see configs/stage1.py.
"""

from vemd_jax.sweep_plan import two_stages

RAW = {'model.head.sr_input': 'raw'}
PROJECTED = {'model.head.sr_input': 'projected'}

SWEEP = two_stages(
    'gaf3',
    (
        ('ve_sd', 've_sd', {}),
        ('ve_md', 've_md,heatmap', {}),
        ('ve_md_sr raw', 've_md_sr,heatmap', RAW),
        ('ve_md_sr projected', 've_md_sr,heatmap', PROJECTED),
        ('ve_md person_query', 've_md,person_query', {}),
        ('ve_md_sr person_query raw', 've_md_sr,person_query', RAW),
        ('ve_md_sr person_query projected', 've_md_sr,person_query', PROJECTED),
    ),
    published='ve_md_sr raw',
)
