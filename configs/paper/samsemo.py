r"""SAMSEMO: the model variants, without and with transcript and audio.

  python -m vemd_jax.data.prepare samsemo --source=DIR --out=DATA --audio
  python -m vemd_jax.data.annotate --data=DATA
  python -m vemd_jax.data.text --data=DATA --model=MINILM
  python -m vemd_jax.sweep configs/paper/samsemo.py --workdir=SWEEP \
      --paths samsemo=DATA clip=CLIP
  python -m vemd_jax.table SWEEP

CLIP contains the initial weights of stage 1, see configs/stage1.py. MINILM
is a sentence encoder, see vemd_jax.prepare.text.
"""

from vemd_jax.sweep_plan import two_stages

RAW = {'model.head.sr_input': 'raw'}
PROJECTED = {'model.head.sr_input': 'projected'}

SWEEP = two_stages(
    'samsemo',
    (
        ('ve_sd', 've_sd', {}),
        ('ve_md', 've_md', {}),
        ('ve_md_sr raw', 've_md_sr', RAW),
        ('ve_md_sr projected', 've_md_sr', PROJECTED),
        ('ve_sd text', 've_sd,text', {}),
        ('ve_md_sr projected text', 've_md_sr,text', PROJECTED),
        ('ve_md_sr projected text audio', 've_md_sr,text,audio', PROJECTED),
    ),
    published='ve_md_sr projected text',
    columns=('accuracy', 'macro_f1'),
)
