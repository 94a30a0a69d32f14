"""Writes the model card and the impact assessment of a run."""

import math
from collections.abc import Iterator
from typing import Any

import yaml

from vemd_jax.model_card import run, texts
from vemd_jax.model_card.document import Block, Heading, List, Table, literal

_METRICS = ('accuracy', 'macro_f1', 'uar', 'weighted_f1')


def metadata(facts: run.Facts) -> str:
  """YAML metadata for the Hugging Face hub, with the results."""
  results = []
  for split, dataset, metrics in facts.evaluations():
    found = [
        {'type': 'f1' if 'f1' in name else name, 'name': name,
         'value': round(float(metrics[name]), 4)}
        for name in _METRICS if name in metrics
    ]  # fmt: skip
    if found:
      results.append({
          'task': {'type': 'image-classification',
                   'name': 'Group emotion recognition'},
          'dataset': {'type': dataset, 'name': dataset, 'split': split},
          'metrics': found,
      })  # fmt: skip
  header: dict[str, Any] = {
      'library_name': 'vemd_jax',
      'pipeline_tag': 'image-classification',
      'tags': ['jax', 'flax', 'group-emotion-recognition', 've-md',
               'arxiv:2604.02397'],
  }  # fmt: skip
  if results:
    header['model-index'] = [{'name': facts.name, 'results': results}]
  text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
  return f'---\n{text}---\n'


def card(facts: run.Facts) -> list[Block]:
  """The model card as blocks."""
  return [
      Heading(1, f'Model card of {literal(facts.name)}'),
      'Recognizes the emotion of a group of people in photographs or short '
      'clips: VE-MD ([arXiv 2604.02397](https://arxiv.org/abs/2604.02397)) in '
      'JAX. It does not classify single people.',
      Heading(2, 'Model'),
      _model(facts),
      Heading(2, 'Intended use'),
      List(texts.INTENDED),
      Heading(2, 'Prohibited use'),
      List(texts.PROHIBITED),
      Heading(2, 'Duties'),
      List(texts.DUTIES),
      Heading(2, 'Data'),
      *_data(facts),
      Heading(2, 'Results'),
      *_results(facts),
      Heading(2, 'Limits'),
      List(texts.LIMITS),
      Heading(2, 'Privacy'),
      texts.NO_ANONYMITY,
      *_audit(facts),
      _outputs(facts),
  ]


def _model(facts: run.Facts) -> Table:
  model, data = facts.config['model'], facts.config['data']
  rows = [
      ('variant', model['variant']),
      ('encoder', model['encoder']['name']),
      ('latent channels', model['latent']['dim']),
      ('frozen ViT', model['vit']['name']),
      ('input', f'{data["frames"]} RGB image(s) of {data["image_size"]} × '
       f'{data["image_size"]} pixels'),
      ('checkpoint', f'step {facts.results.get("step", "?")}'),
  ]  # fmt: skip
  if model['variant'] in ('ve_md', 've_md_sr'):
    parts = ', '.join(model['parts'])
    rows.insert(1, ('decodes', f'{parts} ({model["decoder"]})'))
  for dataset, names in facts.classes.items():
    rows.append((f'classes of {literal(dataset)}',
                 ', '.join(map(literal, names)) or 'none'))  # fmt: skip
  rows += [
      (name, facts.versions[name])
      for name in ('vemd_jax', 'jax', 'flax')
      if name in facts.versions
  ]
  return Table(('', ''), [(k, literal(v) if k == 'decodes' else v)
                          for k, v in rows])  # fmt: skip


def _data(facts: run.Facts) -> Iterator[Block]:
  source = facts.config['data']['source']
  names = ', '.join(map(literal, facts.classes))
  if source == 'group_scenes':
    yield f'{names}: drawn scenes, which show no real people.'
  else:
    yield (
        f'{names}, read as `{source}`. {texts.TO_FILL} Origin, licence, '
        'consent of the people shown, who labelled it and how.'
    )
  rows = [
      (literal(dataset), split, counts.get('samples', '-'),
       ', '.join(f'{literal(k)} {v}' for k, v in
                 counts.get('classes', {}).items()))
      for dataset, splits in facts.data.items()
      for split, counts in splits.items()
  ]  # fmt: skip
  if rows:
    yield Table(('dataset', 'split', 'samples', 'by class'), rows)


def _results(facts: run.Facts) -> Iterator[Block]:
  chosen = facts.results.get('chosen_on')
  for split, dataset, metrics in facts.evaluations():
    title = f'{literal(dataset)}, {split}'
    yield Heading(3, title)
    if split == chosen:
      yield (
          'The checkpoint was selected on this split, so that these figures '
          'are optimistic.'
      )
    matrix = metrics.get('confusion')
    if not matrix:
      yield 'No labelled samples.'
      continue
    matrix = [[round(value) for value in row] for row in matrix]
    total = sum(map(sum, matrix))
    right = sum(row[i] for i, row in enumerate(matrix))
    rows = [('accuracy', total, run.interval(right, total))]
    for i, name in enumerate(facts.classes[dataset]):
      count = sum(matrix[i])
      rows.append((f'recall of {literal(name)}', count,
                   run.interval(matrix[i][i], count)))  # fmt: skip
    yield Table(('', 'samples', '95 % interval'), rows)
    others = [
        (name, f'{metrics[name]:.3f}')
        for name in _METRICS[1:]
        if name in metrics
    ]
    yield Table(('metric', ''), [(literal(k), v) for k, v in others])
    rows = [
        (literal(origin), count, run.interval(hits, count))
        for (name, at, origin), (hits, count) in facts.sources.items()
        if (name, at) == (dataset, split)
    ]
    if rows:
      yield Table(('accuracy by source', 'samples', '95 % interval'), rows)


def _audit(facts: run.Facts) -> Iterator[Block]:
  """What attacks found at each tap of the model, a table for each attack."""
  if not facts.audit:
    yield texts.NOT_AUDITED
    return
  yield texts.AUDITED
  groups: dict[tuple, list] = {}
  for one in facts.audit['measures']:
    groups.setdefault((one.attack, one.target), []).append(one)
  for (attack, target), found in groups.items():
    metrics = list(dict.fromkeys(m.metric for m in found))
    cells = {(m.tap, m.metric): m for m in found}
    chances = {m.metric: m.chance for m in found}
    yield Heading(3, literal(f'{attack}: {target}'))
    yield Table(
        ('tap', *(f'{literal(m)}, chance {chances[m]:.3f}' for m in metrics)),
        [
            (literal(tap), *(_figure(cells.get((tap, m))) for m in metrics))
            for tap in dict.fromkeys(m.tap for m in found)
        ],
    )
  yield from map(literal, facts.audit['notes'])


def _figure(one: Any) -> str:
  if one is None or not math.isfinite(one.value):
    return '-'
  return f'{one.value:.3f} ({one.low:.3f} to {one.high:.3f})'


def _outputs(facts: run.Facts) -> str:
  if facts.config['model']['variant'] in ('ve_md', 've_md_sr'):
    return (
        'The run decodes skeletons or face landmarks, which describe single '
        'people. `vemd export` writes a model whose only outputs are the '
        'group’s probabilities and whether it abstains.'
    )
  return (
      'The run decodes no structure. `vemd export` writes a model whose only '
      'outputs are the group’s probabilities and whether it abstains.'
  )


def assessment(facts: run.Facts) -> list[Block]:
  """The template of a data protection impact assessment, GDPR Article 35."""
  fill = texts.TO_FILL
  model, data = facts.config['model'], facts.config['data']
  decodes = model['variant'] in ('ve_md', 've_md_sr')
  people = facts.config.get('pictures', {}).get('people')
  stored = [
      'Checkpoints: weights, which may reveal something about training '
      'pictures.',
      'Metrics, results, config: aggregates, no person.',
      'predictions.jsonl, if present: names of files and their probabilities; '
      '`vemd scrub --hash_names` hashes the names.',
      'Pictures of evaluations, gallery, report and TensorBoard logs: they '
      'show people' + (f'; config.pictures.people is {people} in this run'
                       if people else '') + '. `vemd scrub` removes them.',
      'Caches of features, spectrograms and text embeddings beside the data: '
      'derived from single pictures or clips, personal data like those.',
  ]  # fmt: skip
  return [
      Heading(1, f'Data protection impact assessment: {literal(facts.name)}'),
      'A template after Article 35(7) GDPR. The technical parts are filled in '
      'from the run; the others are the controller’s. It is no legal advice.',
      Heading(2, '1. Description of the processing'),
      List([
          f'Purpose, legal basis, controller, processors, recipients: {fill}',
          f'People concerned, their number, and whether children or employees '
          f'are among them: {fill}',
          f'Input: {data["frames"]} image(s) of {data["image_size"]} × '
          f'{data["image_size"]} pixels, resized from the camera’s; in memory '
          'only during prediction.',
          'Output: probabilities of the classes '
          + '; '.join(', '.join(map(literal, v)) for v in
                      facts.classes.values())
          + ', for the group as a whole.',
          'Intermediate values: the latent'
          + (', and decoded skeletons or face landmarks of single people'
             if decodes else '')
          + '. They are not stored, and an exported model does not return '
          'them.',
          f'Retention of pictures and outputs: {fill}',
      ]),
      'A run stores:',
      List(stored),
      Heading(2, '2. Necessity and proportionality'),
      List([
          f'Why the purpose needs emotions, and why of these people: {fill}',
          f'Whether Article 5(1)(f) of the EU AI Act prohibits the use: {fill}',
          f'How people are told (Article 50(3) AI Act; Articles 13 and 14 '
          f'GDPR), and how they object: {fill}',
          'Minimization: the smallest variant is `ve_sd`, without decoders; '
          'this run is ' + f'`{model["variant"]}`.',
      ]),
      Heading(2, '3. Risks'),
      List([
          'Re-identification and inference of attributes from structure or '
          'latents. ' + texts.NO_ANONYMITY + ' '
          + ('The model card has the results of `vemd audit`.'
             if facts.audit else texts.NOT_AUDITED),
          'Wrong output. Error rates are in the model card, section Results.',
          'Use on single people or in a prohibited place.',
          'Unequal errors between groups of people: not measured by this run. '
          + fill,
          f'Likelihood and severity for the people concerned: {fill}',
      ]),
      Heading(2, '4. Measures'),
      List([
          'Deploy an exported model (`vemd export`), whose outputs are the '
          'group’s probabilities and an abstain flag.',
          'Gates: minimum number of people, largest share of one person, '
          'rounding, averaging over clips. The first two depend on the '
          'decoders; docs/privacy.md has their error rates for drawn scenes.',
          '`vemd scrub` after training.',
          f'Access control, encryption, deletion, logging: {fill}',
          f'Advice of the data protection officer, and views of the people '
          f'concerned: {fill}',
      ]),
  ]  # fmt: skip
