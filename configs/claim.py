r"""The paper's claim, with error bars: what structure does for a group's mood.

In groups the mood lies between people, and a head that sees their structure
should gain; with one face in a picture a projected structure should filter
noise instead of carrying signal (arXiv 2604.02397).

  python -m vemd_jax.sweep configs/claim.py --seeds=5 --workdir=SWEEP \
      --paths anny_groups=GROUPS faces=FACES
  python -m vemd_jax.table SWEEP

The drawn groups need no files. GROUPS contains the folders `mixed` and
`interaction`, FACES pictures of single faces, all in the layout of
configs/folder.py; rows whose path is not given are left out. A run takes 4 to
20 minutes on 2 CPU cores.

Rendered groups and drawn relations start from the run on drawn groups of the
same variant and seed. To compare another model, add a line to VARIANTS.
"""

from vemd_jax.sweep_plan import Row, Sweep

# Name, option of the recipe, changes. The others are compared with the first.
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
  """A row for each variant, from its run in the group `start`."""
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
