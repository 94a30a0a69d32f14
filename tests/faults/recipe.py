"""The recipe of `harness.TINY` with what the demo does not have.

Options: mixture, two datasets; accumulation; workers, two of them.
"""

from configs import group_scenes


def get_config(options=''):
  given = [o for o in options.split(',') if o]
  own = ('mixture', 'accumulation', 'workers')
  config = group_scenes.get_config(','.join(o for o in given if o not in own))
  with config.unlocked():
    if 'mixture' in given:
      config.mixture.first = {'weight': 0.5}
      config.mixture.second = {'weight': 1.0}
  if 'accumulation' in given:
    config.optim.accumulation = 2
  if 'workers' in given:
    config.data.num_workers = 2
  return config
