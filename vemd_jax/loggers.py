"""Loggers in addition to a run's files: TensorBoard, Weights & Biases, MLflow.

`config.loggers` selects them; a custom class is given by its import path,
`package.module:Class`. Only process 0 logs.
"""

import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from etils import epath
from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2

from vemd_jax import import_path


class Logger(Protocol):
  """Interface of a logger, created as `Logger(workdir, resume_step)`.

  `resume_step` is the step that the run resumes from, None for the evaluation
  of a finished run; metrics of later steps will be logged again.
  """

  def start(
      self, config: Mapping[str, Any], versions: Mapping[str, Any]
  ) -> None:
    """Logs config and versions, given as plain JSON."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Logs finite numbers by tag, such as `val/accuracy`."""

  def picture(self, step: int, tag: str, picture: np.ndarray) -> None:
    """Logs a picture, uint8 [H, W, 3] RGB."""

  def close(self) -> None:
    """Closes the logger."""


class TensorBoard:
  """Writes TensorBoard events synchronously.

  tensorboardX's SummaryWriter queues events, which are lost if a run is killed.
  """

  def __init__(self, workdir: epath.Path, resume_step: int | None):
    folder = workdir / 'tensorboard'
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time_ns()
    # TensorBoard reads the files in the order of their names.
    name = f'events.out.tfevents.{now // 10**9}.{platform.node()}.{now}'
    self._records = record_writer.RecordWriter(str(folder / name))
    self._add(0, file_version='brain.Event:2')
    if resume_step is not None:
      # Makes TensorBoard discard events from this step on, in all files.
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(resume_step + 1, session_log=start)
    self._records.flush()

  def start(self, config, versions) -> None:
    for tag, value in ('config', config), ('versions', versions):
      indented = json.dumps(value, indent=2).replace('\n', '\n    ')
      self._add(0, summary=summary.text(tag, '    ' + indented))
    self._records.flush()

  def scalars(self, step, values) -> None:
    for tag, value in values.items():
      self._add(step, summary=summary.scalar(tag, value))
    self._records.flush()

  def picture(self, step, tag, picture) -> None:
    image = summary.image(tag, picture, dataformats='HWC')
    self._add(step, summary=image)
    self._records.flush()

  def close(self) -> None:
    self._records.flush()
    self._records.close()

  def _add(self, step: int, **what) -> None:
    event = event_pb2.Event(step=int(step), wall_time=time.time(), **what)
    self._records.write(event.SerializeToString())


class WandB:
  """Weights & Biases, set up by its variables WANDB_PROJECT, WANDB_MODE etc."""

  def __init__(self, workdir: epath.Path, resume_step: int | None):
    del resume_step  # W&B keeps the first value of a step logged twice.
    wandb = _import('wandb', 'wandb')
    self._image = wandb.Image
    self._run = wandb.init(
        id=_run_id(workdir, 'wandb', wandb.util.generate_id),
        name=workdir.name,
        dir=str(workdir),
        resume='allow',
        settings=wandb.Settings(silent=True),
    )

  def start(self, config, versions) -> None:
    self._run.config.update(
        {**config, 'versions': dict(versions)}, allow_val_change=True
    )

  def scalars(self, step, values) -> None:
    self._run.log(dict(values), step=int(step))

  def picture(self, step, tag, picture) -> None:
    self._run.log({tag: self._image(picture)}, step=int(step))

  def close(self) -> None:
    self._run.finish()


class MLflow:
  """MLflow, with the tracking server given by MLFLOW_TRACKING_URI."""

  def __init__(self, workdir: epath.Path, resume_step: int | None):
    del resume_step  # MLflow keeps both values of a step logged twice.
    mlflow = _import('mlflow', 'mlflow')
    self._client = client = mlflow.MlflowClient()

    def create() -> str:
      name = 'vemd_jax'
      experiment = client.get_experiment_by_name(name)
      experiment = (
          experiment.experiment_id
          if experiment
          else client.create_experiment(name)
      )
      return client.create_run(experiment, run_name=workdir.name).info.run_id

    self._run = _run_id(workdir, 'mlflow', create)
    self._metric = mlflow.entities.Metric
    client.update_run(self._run, status='RUNNING')

  def start(self, config, versions) -> None:
    for name, values in ('config', config), ('versions', versions):
      self._client.log_dict(self._run, dict(values), f'{name}.json')

  def scalars(self, step, values) -> None:
    now = round(time.time() * 1000)
    metrics = [self._metric(k, v, now, int(step)) for k, v in values.items()]
    self._client.log_batch(self._run, metrics=metrics)

  def picture(self, step, tag, picture) -> None:
    name = f'{tag.replace("/", "_")}_{int(step):08d}.png'
    with tempfile.TemporaryDirectory() as folder:
      path = epath.Path(folder) / name
      path.write_bytes(cv2.imencode('.png', picture[..., ::-1])[1].tobytes())
      self._client.log_artifact(self._run, str(path), 'pictures')

  def close(self) -> None:
    self._client.set_terminated(self._run)


LOGGERS = {'tensorboard': TensorBoard, 'wandb': WandB, 'mlflow': MLflow}


def open_all(
    names: Sequence[str], workdir: epath.Path, resume_step: int | None
) -> list[Logger]:
  """Opens loggers.

  Args:
    names: keys of `LOGGERS`, or import paths.
    workdir: output folder of the run.
    resume_step: see `Logger`.

  Returns:
    The loggers.

  Raises:
    ValueError: if a logger is unknown or its package is missing.
  """
  return [
      import_path.find(name, LOGGERS, 'config.loggers')(workdir, resume_step)
      for name in names
  ]


def _import(module: str, extra: str):
  try:
    return __import__(module)
  except ImportError as error:
    raise ValueError(
        f'config.loggers has {extra!r}, but its package cannot be imported '
        f'({error}); install it with pip install "vemd-jax[{extra}]"'
    ) from error


def _run_id(workdir: epath.Path, name: str, create) -> str:
  """ID of the run in a logger, stored in the workdir for resumption."""
  path = workdir / f'{name}_run'
  if path.exists():
    return path.read_text().strip()
  identifier = create()
  path.write_text(identifier + '\n')
  return identifier
