r"""DFEW: the model variants, each averaged over the five folds.

  python -m vemd_jax.data.prepare dfew --source=DIR --out=DATA
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.sweep configs/paper/dfew.py --workdir=SWEEP \
      --paths dfew=DATA clip=CLIP
  python -m vemd_jax.table SWEEP

CLIP contains the initial weights of stage 1, see configs/stage1.py. Stage
1 is trained for each fold, because the ViT of another fold was trained on its
test clips.
"""

from vemd_jax.sweep_plan import two_stages

RAW = {'model.head.sr_input': 'raw'}
PROJECTED = {'model.head.sr_input': 'projected'}

SWEEP = two_stages(
    'dfew',
    (
        ('ve_sd', 've_sd', {}),
        ('ve_md', 've_md', {}),
        ('ve_md_sr raw', 've_md_sr', RAW),
        ('ve_md_sr projected', 've_md_sr', PROJECTED),
    ),
    published='ve_md_sr projected',
    seeds=1,
)
