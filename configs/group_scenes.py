r"""The demo: drawn groups of people, made as they are read; no files needed.

Negative, neutral or positive, told from the faces and from how people relate.
Trains in under 8 minutes on 2 CPU cores; validation accuracy at least 0.80
(chance 0.33), see benchmarks/RESULTS.md.

  python -m vemd_jax.main --config=configs/group_scenes.py --workdir=W

Words: ve_sd, ve_md, ve_md_sr, person_query, tiny; `interaction` and
`expression` leave only that cue; `full` is the paper's size.
"""

from vemd_jax import config as config_lib


def get_config(words: str = ''):
  config = config_lib.default()
  data = config.data
  data.update(name='group_scenes', source='group_scenes')
  data.group_scenes.update(cue='both', size=112)
  data.test_split = 'test'
  given = words.split(',')
  if 'full' not in given:
    config_lib.laptop(config)
    config.steps = 1500
    config.eval.every = 500
    config.checkpoint.every = 250
    # Faces are small here: crops must not cut much.
    data.augment.crop_scale = (0.7, 1.0)
  words = ','.join(word for word in given if word != 'full')
  return config_lib.finish(
      config,
      words,
      {
          cue: lambda c, cue=cue: c.data.group_scenes.update(cue=cue)
          for cue in ('both', 'expression', 'interaction')
      },
  )
