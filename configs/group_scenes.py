r"""The demo: synthetic drawings of groups, rendered on the fly without files.

The class is negative, neutral or positive and depends on facial expressions and
on interactions between people. Trains in 18 minutes on 2 slow CPU cores to an
accuracy of 0.95 on val; chance is 0.33 (benchmarks/RESULTS.md).

  python -m vemd_jax.main --config=configs/group_scenes.py --workdir=W

Without options it finds people at their centers and reads relations between
them (`relations`). Options: relations, ve_sd, ve_md, ve_md_sr, person_query,
tiny; with `interaction` or `expression` the class depends on that cue only;
`full` is the paper's size.
Interactions are learned only after the structure: start `interaction` from the
demo's run with `--config.checkpoint.init_from="('W',)" --config.steps=4500`.
"""

from vemd_jax import config as config_lib


def get_config(options: str = ''):
  config = config_lib.default()
  data = config.data
  data.update(name='group_scenes', source='group_scenes')
  data.test_split = 'test'
  given = options.split(',') if options else ['relations']
  if 'full' not in given:
    config_lib.laptop(config)
    # Small groups at close range, so that faces are visible at 112 pixels.
    data.group_scenes.update(
        size=112, people=(2, 4), zoom=1.45, train_samples=12000
    )
    # 14 x 14 heatmaps with thin limbs: at 28 x 28 a step takes twice as long.
    config.model.heatmap.widths = (32,)
    data.sigma = 0.6
    config.model.variant = 've_md'
    config.steps = 3000
    config.eval.every = 1000
    config.checkpoint.every = 500
    if 'relations' in given:
      config.steps = 3400
      # Most scenes show one cue only: where faces always tell the class, the
      # model trusts them also where they do not.
      data.group_scenes.single_cue = (0.15, 0.45)
  options = ','.join(option for option in given if option != 'full')
  return config_lib.finish(
      config,
      options,
      {
          cue: lambda c, cue=cue: c.data.group_scenes.update(cue=cue)
          for cue in ('both', 'expression', 'interaction')
      },
  )
