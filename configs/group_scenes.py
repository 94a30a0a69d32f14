r"""The demo: drawn groups of people, made as they are read; no files needed.

Negative, neutral or positive, told from the faces and from how people relate.
Trains in about 6 minutes on 2 CPU cores: 0.87 of the val scenes right, chance
is 0.33 (benchmarks/RESULTS.md).

  python -m vemd_jax.main --config=configs/group_scenes.py --workdir=W

Options: ve_sd, ve_md, ve_md_sr, person_query, tiny; `interaction` and
`expression` leave only that cue; `full` is the paper's size. Relations are
learned once the structure is known: start `interaction` from the demo's run,
`--config.checkpoint.init_from="('W',)" --config.steps=4500`.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.default()
  data = config.data
  data.update(name='group_scenes', source='group_scenes')
  data.test_split = 'test'
  given = options.split(',')
  if 'full' not in given:
    config_lib.laptop(config)
    # Small groups from close by, so that 112 pixels show faces.
    data.group_scenes.update(
        size=112, people=(2, 4), zoom=1.45, train_samples=6000
    )
    # Coarse maps of fine limbs: at 28 x 28 a step would take twice as long.
    config.model.heatmap.widths = (32,)
    data.sigma = 0.6
    config.model.variant = 've_md'
    config.steps = 3000
    config.eval.every = 1000
    config.checkpoint.every = 500
  options = ','.join(option for option in given if option != 'full')
  return config_lib.finish(
      config,
      options,
      {
          cue: lambda c, cue=cue: c.data.group_scenes.update(cue=cue)
          for cue in ('both', 'expression', 'interaction')
      },
  )
