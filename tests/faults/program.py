"""vemd_jax.main, which shows in a file what it is doing: for `harness`.

  python -m tests.faults.program FILE [ARGUMENTS OF vemd_jax.main]

FILE holds a byte for each of `PHASES`, which is 1 while the program is in it.
With the recipe tests/faults/toy.py the model is that of `toy`. With HANG in the
environment the first step never ends; with ALTERNATE, neighbouring devices of
the mesh belong to different processes.
"""

import mmap
import os
import sys
import time

import numpy as np

PHASES = ('start', 'restore', 'step', 'evaluate', 'save', 'report')


def show(file: str) -> None:
  """Marks the phases of this process in the file from now on."""
  with open(file, 'r+b') as f:
    shown = mmap.mmap(f.fileno(), len(PHASES))
  shown[:] = bytes(len(PHASES))
  shown[0] = 1

  def marked(owner, name, phase):
    place, function = PHASES.index(phase), getattr(owner, name)

    def call(*args, **kwargs):
      shown[0], shown[place] = 0, 1
      try:
        return function(*args, **kwargs)
      finally:
        shown[place] = 0

    setattr(owner, name, call)

  from vemd_jax import checkpoint, checksums, evaluate, train, weights

  marked(checkpoint.Checkpoints, 'last_good_step', 'restore')
  marked(checkpoint.Checkpoints, 'restore', 'restore')
  marked(weights, 'initialise', 'restore')
  marked(evaluate, 'validate', 'evaluate')
  marked(evaluate, 'report', 'report')
  marked(checkpoint.Checkpoints, 'save', 'save')
  marked(checkpoint.Checkpoints, 'wait', 'save')
  # In the background, the moment before a step becomes final.
  marked(checksums, 'write', 'save')
  set_up = train.set_up

  def then_mark_steps(*args):
    run = set_up(*args)
    if 'HANG' in os.environ:
      run.train_step = lambda *args, **kwargs: time.sleep(1000)
    marked(run, 'train_step', 'step')
    return run

  train.set_up = then_mark_steps
  if 'ALTERNATE' in os.environ:
    alternate()
  if any('toy.py' in argument for argument in sys.argv):
    from tests.faults import toy
    from vemd_jax import run

    run._make_model = toy.make_model


def alternate() -> None:
  """Makes meshes whose order of devices alternates between processes."""
  import jax

  from vemd_jax import sharding

  make_mesh = sharding.make_mesh

  def alternating(data, fsdp):
    mesh = make_mesh(data, fsdp)
    order = sorted(
        jax.devices(), key=lambda d: (d.id % len(jax.local_devices()), d.id)
    )
    devices = np.asarray(order).reshape(mesh.devices.shape)
    return jax.sharding.Mesh(
        devices, mesh.axis_names, axis_types=mesh.axis_types
    )

  sharding.make_mesh = alternating


if __name__ == '__main__':
  show(sys.argv.pop(1))
  from absl import app

  from vemd_jax import config as config_lib
  from vemd_jax import main

  app.run(
      main.main,
      flags_parser=lambda argv: config_lib.parse_flags(
          argv, 'config', 'workdir'
      ),
  )
