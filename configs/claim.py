r"""The paper's main claim with error bars: the effect of structure on emotion.

The claim: group emotion depends on the relations between people, so a head that
receives their structure should gain accuracy; with a single face per image,
projecting the structure should act as a noise filter instead of carrying signal
(arXiv 2604.02397).

  python -m vemd_jax.sweep configs/claim.py --seeds=5 --workdir=SWEEP \
      --paths anny_groups=GROUPS faces=FACES
  python -m vemd_jax.table SWEEP

The drawn groups need no files. GROUPS contains the folders `mixed` and
`interaction`, FACES images of single faces, all in the layout of
configs/folder.py; rows whose path is not given are skipped. A run takes 4 to 20
minutes on 2 CPU cores.

Rendered groups and drawn relations are initialized from the run of the same
variant and seed on drawn groups. To compare another model, add a line to
VARIANTS.
"""

from vemd_jax.sweep_plan import Row, Sweep

# Row name, recipe option, config overrides. The first row is the baseline.
VARIANTS = (
    ('ve_sd', 've_sd', {}),
    ('ve_md', 've_md', {}),
    ('ve_md_sr raw', 've_md_sr', {'model.head.sr_input': 'raw'}),
    ('ve_md_sr projected', 've_md_sr', {'model.head.sr_input': 'projected'}),
    ('ve_md_sr relations', 'relations', {}),
    ('ve_md latent 16', 've_md', {'model.latent.dim': 16}),
    ('ve_md latent 256', 've_md', {'model.latent.dim': 256}),
    ('ve_md kl 0', 've_md', {'losses.kl.weight': 0.0}),
    ('ve_md kl 1e-2', 've_md', {'losses.kl.weight': 1e-2}),
)

RENDERED = {
    'data.image_size': 144,
    'data.sigma': 0.6,
    'model.heatmap.widths': (32,),
    'losses.body_heatmap.weight': 1.0,
    'losses.face_heatmap.weight': 1.0,
    'losses.kl.weight': 1e-6,
    'steps': 4000,
}
FACES = {'data.grayscale': True, 'model.parts': ('face',), 'steps': 3000}


def rows(group, recipe, changes, start=''):
  """One row per variant, initialized from its run in the group `start`."""
  made = []
  for name, option, own in VARIANTS:
    overrides = {**changes, **own}
    if start:
      overrides['checkpoint.init_from'] = ('{' + f'{start}/{name}' + '}',)
    made.append(Row(group, name, f'{recipe}{option}', overrides))
  return made


DRAWN = 'drawn groups'
SWEEP = Sweep(
    rows=(
        *rows(DRAWN, 'group_scenes.py:', {}),
        *rows(
            'drawn relations',
            'group_scenes.py:interaction,',
            {'steps': 4500},
            DRAWN,
        ),
        *rows(
            'rendered groups',
            'folder.py:',
            {'data.root': '{anny_groups}/mixed', **RENDERED},
            DRAWN,
        ),
        *rows(
            'rendered relations',
            'folder.py:',
            {'data.root': '{anny_groups}/interaction', **RENDERED},
            DRAWN,
        ),
        *rows('single faces', 'folder.py:', {'data.root': '{faces}', **FACES}),
    ),
    metrics=('accuracy', 'macro_f1'),
)
