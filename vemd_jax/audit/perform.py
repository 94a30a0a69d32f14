"""Performs all attacks on a run and writes their results."""

from typing import Any, NamedTuple

import numpy as np
from etils import epath
from scipy import special

from vemd_jax import progress, surfaces, writer
from vemd_jax.audit import (
    attributes,
    identity,
    inversion,
    measure,
    membership,
    pictures,
    probe,
    shadows,
    taps,
)
from vemd_jax.audit.measure import Measure
from vemd_jax.data import naming, sources
from vemd_jax.inference import trained as trained_lib


class Options(NamedTuple):
  """Options of an audit.

  Attributes:
    data: folder of the data; '' for the run's.
    dataset: emotion head, if the model has several.
    identity_column: column with the person; None for `subject` if it exists.
    attributes: attributes to infer; () for all.
    digits: decimal places of the exported output.
    shadows: number of shadow models.
    shadow_steps: training steps of a shadow model; 0 for a quarter of the
      run's.
    inversion_steps: training steps of a decoder to pictures; 0 omits it.
  """

  data: str = ''
  dataset: str = ''
  identity_column: str | None = None
  attributes: tuple[str, ...] = ()
  digits: int = 2
  shadows: int = 0
  shadow_steps: int = 0
  inversion_steps: int = 400


def perform(workdir: epath.PathLike, options: Options) -> dict[str, Any]:
  """Attacks all taps of a run.

  Args:
    workdir: workdir of the run.
    options: options.

  Returns:
    The content of audit.json, see `measure.read`.

  Raises:
    FileNotFoundError: if the run or the data do not exist.
    ImportError: if scikit-learn is not installed.
    ValueError: if an option does not fit the run or the data, or there are too
      few samples.
  """
  _check(options)
  probe.require()
  workdir = epath.Path(workdir)
  trained = trained_lib.load(workdir, options.dataset)
  data = _settings(trained, options)
  columns = {}
  if data.source == 'folder':
    columns = attributes.columns(data.root)
  column = _identity(columns, data, options)
  found = tuple(sources.make_source(data, 'val').classes)
  if found != trained.classes:
    raise ValueError(
        f'--data={data.root} has the classes {", ".join(found)}, but the model '
        f'{", ".join(trained.classes)}; expected data with the same classes'
    )
  fit, test = samples = tuple(
      taps.collect(trained, data, split, options.digits)
      for split in ('train', 'val')
  )
  wanted = attributes.find(
      options.attributes,
      columns,
      column,
      *((s.files, s.truth) for s in samples),
  )
  emotion = attributes.Attribute(
      'emotion', trained.classes, fit.labels, test.labels
  )
  notes, people = [], None
  if column:
    subjects = [
        [columns[column].get(naming.file_key(f), '') for f in s.files]
        for s in samples
    ]
    people = identity.choose(*subjects)
  else:
    notes.append(
        'No identity column, so that re-identification was not attacked.'
    )

  member = np.arange(len(fit.labels) + len(test.labels)) < len(fit.labels)
  note = membership.note(member)
  notes += [note] if note else []
  measures: list[Measure] = []
  curves: dict[str, Any] = {}
  reconstructed: dict[str, np.ndarray] = {}
  pixels = None
  with progress.bar(len(fit.taps), 'tap', 'attacks') as bar:
    for tap in fit.taps:
      reduced = probe.reduce(fit.taps[tap], test.taps[tap])
      pixels = reduced if tap == measure.PIXELS else pixels
      measures.append(attributes.attack(tap, reduced, emotion, 'utility'))
      if people is not None:
        more, curves[tap] = identity.attack(tap, reduced, people)
        measures += more
      measures += [attributes.attack(tap, reduced, a) for a in wanted]
      measures += membership.classifier(tap, reduced)
      if options.inversion_steps:
        more, reconstructed[tap] = _invert(
            tap, reduced, pixels, samples, people, options.inversion_steps
        )
        measures += more
      bar.update()
  measures += _confidence(workdir, trained, data, samples, member, options)

  order = ('utility', 'identity', 'attribute', 'membership', 'inversion')
  measures.sort(key=lambda m: order.index(m.attack))
  facts = {
      'run': workdir.name,
      'variant': trained.config.model.variant,
      'decoder': trained.config.model.decoder,
      'step': trained.step,
      'seed': trained.config.seed,
      'dataset': trained.dataset,
      'samples': {'train': len(fit.labels), 'val': len(test.labels)},
      'subjects': None if people is None else int(people.subjects.max() + 1),
      'identity_column': column or None,
      'dimensions': {k: int(v.shape[1]) for k, v in fit.taps.items()},
      'options': options._asdict() | {'data': ''},
      'versions': _versions(),
      'notes': notes,
  }
  measure.write(workdir, facts, measures, curves)
  _draw(workdir, measures, curves, test, reconstructed,
        trained.config.get('pictures', {}).get('people', 'show'))  # fmt: skip
  return measure.read(workdir)


def _check(options: Options) -> None:
  if options.shadows < 0 or options.shadows % 2:
    raise ValueError(
        f'--shadows={options.shadows}: expected 0 or an even number, so that '
        'each picture is in half of the models'
    )
  for name in ('shadow_steps', 'inversion_steps'):
    if getattr(options, name) < 0:
      raise ValueError(f'--{name}={getattr(options, name)}: expected 0 or more')


def _settings(trained: trained_lib.Trained, options: Options) -> Any:
  """The run's data settings, for evaluation."""
  data = trained.data.copy_and_resolve_references()
  with data.unlocked():
    # The attackers need no target heatmaps.
    data.update(targets='device', cache=False, num_workers=0)
    if options.data:
      if data.source == 'group_scenes':
        raise ValueError(
            f'--data={options.data}: this run draws its scenes, so that there '
            'is no folder; leave --data out'
        )
      data.root = options.data
  if data.audio_frames or data.text_tokens:
    raise ValueError(
        'the audit attacks models of images; this one also reads sound or text'
    )
  return data


def _identity(columns: dict, data: Any, options: Options) -> str:
  """The column with the person, '' if there is none."""
  wanted = options.identity_column
  if wanted is None:
    return 'subject' if 'subject' in columns else ''
  if wanted not in columns:
    raise ValueError(
        f'--identity_column={wanted}: {data.root or "the drawn data"} has no '
        f'such column, expected one of {", ".join(columns) or "none"}'
    )
  return wanted


def _invert(tap, reduced, pixels, samples, people, steps):
  """Measures and reconstructions of the test split."""
  fit, test = samples
  decoder, variables = inversion.train(reduced.fit, fit.pictures, steps)
  found = inversion.reconstruct(decoder, variables, reduced.test)
  measures = inversion.measures(
      tap, test.pictures, found, fit.pictures.mean(0)
  )
  if people is not None:
    # The attacker on pixels compares reconstructions with known pictures.
    embed, method = identity.embedder(pixels, people)
    vectors = [
        embed(pixels.reduce(x[people.pictures].reshape(len(people.known), -1)))
        for x in (test.pictures, found)
    ]
    measures.append(
        identity.closed_set(tap, *vectors, people, method, 'inversion')
    )
  return measures, found


def _confidence(workdir, trained, data, samples, member, options):
  """Attacks on membership that use the confidence in the true class."""
  labels = np.concatenate([s.labels for s in samples])
  known = labels >= 0
  logits = np.concatenate([s.taps['logits'] for s in samples])
  exact = special.softmax(logits, 1)
  rounded = np.concatenate([s.taps['exported'] for s in samples])
  odds = {
      name: membership.log_odds(p, np.maximum(labels, 0))
      for name, p in (('logits', exact), ('exported', rounded))
  }
  measures = []
  for tap, values in odds.items():
    measures += membership.threshold(tap, values[known], member[known])
  if not options.shadows:
    return measures
  total = trained.config.steps or trained.step
  found = shadows.run(
      workdir / 'audit' / 'shadows',
      trained.config,
      data,
      samples,
      tuple(len(sources.make_source(data, s)) for s in ('train', 'val')),
      options.shadows,
      options.shadow_steps or max(total // 4, 1),
  )
  for tap, values in odds.items():
    scores = membership.lira(values, found.log_odds, found.inside)
    measures += membership.measures(
        tap, 'LiRA', scores[known], member[known],
        f'{options.shadows} shadow models',
    )  # fmt: skip
  return measures


def _versions() -> dict[str, str]:
  import sklearn

  versions = writer.versions()
  return {
      **{k: versions[k] for k in ('vemd_jax', 'jax')},
      'scikit-learn': sklearn.__version__,
  }


def _draw(workdir, measures, curves, test, found, people) -> None:
  folder = workdir / 'audit'
  drawn = {}
  if curves:
    drawn['roc.png'] = pictures.roc(surfaces.Raster, curves).picture
  charts = [
      pictures.chart(surfaces.Raster, group).picture
      for group in pictures.groups(measures).values()
  ]
  drawn['leakage.png'] = np.concatenate(charts)
  if found and people == 'show':
    drawn['inversion.png'] = pictures.sheet(test.pictures, found)
  for name, picture in drawn.items():
    writer.save_picture(folder / name, picture)
