r"""What each part of the relation model adds: with it, without it, and seeds.

  python -m vemd_jax.sweep configs/ablations.py --workdir=SWEEP
  python -m vemd_jax.table SWEEP

Drawn groups whose class depends on relations alone, bodies alone, a short
training from scratch; no checkpoint is selected, and no files are needed. The
first row of each group is the recipe, in the others one thing is changed. A run
takes 5 to 8 minutes on a CPU core.
"""

from vemd_jax.sweep_plan import Row, Sweep

_SHORT = {
    'steps': 1500,
    'eval.every': 0,
    'data.group_scenes.train_samples': 6000,
    # The standard error of a run's accuracy is then 0.012.
    'data.group_scenes.val_samples': 1500,
    'model.parts': ('body',),
}
# Row name, config overrides. The first row is the baseline.
_CENTERS = (
    ('relations', {}),
    ('no teacher forcing', {'model.head.teacher_forcing': False}),
    ('emotion gradient to people', {'model.head.structure_gradient': 1.0}),
    ('no loss of single sources', {'losses.sources.weight': 0.0}),
    ('no skip connections', {'model.encoder.skips': 0}),
    ('features of bodies', {'model.head.relation_features': ('body',)}),
    ('people projected', {'model.head.sr_input': 'projected'}),
    ('people not read', {'model.variant': 've_md'}),
)
_MAPS = (
    ('relations', {}),
    ('maps raw', {'model.head.sr_input': 'raw'}),
    ('maps projected', {'model.head.sr_input': 'projected'}),
)
_MAPS_RECIPE = {
    'model.head.sr_input': 'relations',
    'model.head.structure_gradient': 0.0,
    'optim.learning_rate': 2.4e-3,
}
# Group, variant of the recipe, overrides of the whole group, rows.
_GROUPS = (
    ('people at centers', 'relations', {}, _CENTERS),
    ('limb maps', 've_md_sr', _MAPS_RECIPE, _MAPS),
)

SWEEP = Sweep(
    rows=tuple(
        Row(
            group,
            name,
            f'group_scenes.py:{variant},interaction',
            {**_SHORT, **shared, **changes},
        )
        for group, variant, shared, rows in _GROUPS
        for name, changes in rows
    ),
    metrics=('accuracy', 'body_pck', 'body_presence_ap'),
    seeds=3,
)
