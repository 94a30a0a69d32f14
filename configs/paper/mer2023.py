r"""MER2023-MULTI: the model variants, without and with audio and transcript.

  python -m vemd_jax.data.prepare mer2023 --source=DIR --out=DATA --audio
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.data.text --data=DATA --model=MINILM
  python -m vemd_jax.sweep configs/paper/mer2023.py --workdir=SWEEP \
      --paths mer2023=DATA clip=CLIP
  python -m vemd_jax.table SWEEP

CLIP contains the initial weights of stage 1, see configs/stage1.py. MINILM
is a sentence encoder, see vemd_jax.prepare.text. The published numbers are for
SEMI (test3).
"""

from vemd_jax.sweep_plan import two_stages

RAW = {'model.head.sr_input': 'raw'}
PROJECTED = {'model.head.sr_input': 'projected'}

SWEEP = two_stages(
    'mer2023',
    (
        ('ve_sd', 've_sd', {}),
        ('ve_md', 've_md', {}),
        ('ve_md_sr raw', 've_md_sr', RAW),
        ('ve_md_sr projected', 've_md_sr', PROJECTED),
        ('ve_sd audio text', 've_sd,audio,text', {}),
        ('ve_md_sr projected audio text', 've_md_sr,audio,text', PROJECTED),
    ),
    published='ve_md_sr projected',
)
