"""The report of a preparation: samples stored and left out."""

import collections
import dataclasses
import json
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from vemd_jax.data import naming


def _about_people(options: Any, samples: Iterable[Any]) -> dict[str, str]:
  """What the prepared data hold about people, for report.json and
  prepared.json.

  Args:
    options: options of the preparation.
    samples: samples of the index.

  Returns:
    Name of a field of the data -> what it holds; only fields that are filled.
  """
  samples = list(samples)
  found = {
      'frames': f'pictures of people, up to {options.longer_side} pixels',
      'file': 'file names, hashed' if options.hash_names
      else 'file names, as in the source',
  }  # fmt: skip
  for name, what in (
      ('bodies', 'key points of bodies, distributed with the dataset'),
      ('faces', 'key points of faces, distributed with the dataset'),
      ('transcript', 'what people say'),
  ):
    if any(getattr(s, name) for s in samples):
      found[name] = what
  if options.audio:
    found['audio'] = 'log-mel spectrograms of voices'
  found['note'] = (
      'Added later, if present: annotations.jsonl, key points of people; '
      'folders whose names end in _cache, see their README.md.'
  )
  return found


def make_report(
    facts, options, index, lines, left_out, handled, overlaps
) -> dict[str, Any]:
  """Builds report.json; interruptions of the run do not change it."""
  by_split = collections.Counter(split for _, split, _ in left_out)
  names = list(dict.fromkeys([*facts.splits, *lines, *by_split]))
  splits = {}
  for split in names:
    rows = lines.get(split, [])
    labels = collections.Counter(r['label'] for r in rows)
    counts = {c: labels[i] for i, c in enumerate(facts.classes)}
    if labels[-1] and facts.classes:
      counts['no single label'] = labels[-1]
    splits[split or 'no split'] = {
        'samples': len(rows),
        'official': facts.splits.get(split),
        'left_out': by_split[split],
        'classes': counts,
    }
  folds = []
  for fold in range(facts.folds):
    folds.append({
        part: sum(r['folds'][fold] == number for r in lines.get('folds', []))
        for part, number in (('train', 1), ('test', 2))
    })
  report = {
      'dataset': facts.name,
      'title': facts.title,
      'facts': index.facts,
      'about_people': _about_people(options, index.samples),
      'options': dataclasses.asdict(options),
      'official_counts_from': facts.counts_source,
      'splits': splits,
      **({'folds': folds} if folds else {}),
      'left_out_reasons': dict(
          sorted(collections.Counter(r for _, _, r in left_out).items())
      ),
      'handled': [
          {'remark': k, 'count': len(v), 'files': sorted(v)}
          for k, v in sorted(handled.items())
      ],
      'overlaps': overlaps,
      'left_out': [
          {'file': f, 'split': s, 'reason': r} for f, s, r in sorted(left_out)
      ],
  }
  # The same types as when read from the file: lists instead of tuples.
  return json.loads(json.dumps(report))


def in_several_splits(
    places: Mapping[Hashable, Iterable[tuple[str, str]]], what: str
) -> list[str]:
  """Reports items that occur in more than one split.

  Args:
    places: key shared by equal items -> (split, name) of each item.
    what: plural noun for the items.

  Returns:
    One line, or none.
  """
  shared = []
  for same in places.values():
    first: dict[str, str] = {}
    for split, name in same:
      first.setdefault(split, name)
    if len(first) > 1:
      shared.append(' = '.join(f'{name} ({s})' for s, name in first.items()))
  if not shared:
    return []
  return [
      f'{len(shared)} {what} are in more than one split: '
      f'{naming.some(shared)}'
  ]


def table(report: dict[str, Any], names: int = 10) -> str:
  """The report as text.

  Args:
    report: as in report.json.
    names: number of files listed for each reason; report.json lists all.

  Returns:
    Lines for a terminal.
  """
  rows = [('split', 'class', 'samples', 'official', 'left out')]
  for split, s in report['splits'].items():
    official = '-' if s['official'] is None else str(s['official'])
    rows.append((split, '', str(s['samples']), official, str(s['left_out'])))
    rows += [('', c, str(n), '', '') for c, n in s['classes'].items()]
  widths = [max(len(r[i]) for r in rows) for i in range(5)]
  lines = [
      f'{r[0]:{widths[0]}}  {r[1]:{widths[1]}}  {r[2]:>{widths[2]}}  '
      f'{r[3]:>{widths[3]}}  {r[4]:>{widths[4]}}'
      for r in rows
  ]
  for i, fold in enumerate(report.get('folds', ())):
    lines.append(f'fold {i + 1}: {fold["train"]} train, {fold["test"]} test')
  lines += report.get('overlaps', ())
  for title, groups in (
      ('Handled', {h['remark']: h['files'] for h in report['handled']}),
      ('Left out', _by_reason(report['left_out'])),
  ):
    if groups:
      lines.append(f'{title}:')
    for reason, files in groups.items():
      shown = ', '.join(files[:names])
      more = f', ... ({len(files) - names} more in report.json)'
      lines.append(
          f'  {len(files)} x {reason}: {shown}'
          + (more if len(files) > names else '')
      )
  return '\n'.join(lines)


def _by_reason(left_out: list[dict[str, str]]) -> dict[str, list[str]]:
  groups: dict[str, list[str]] = {}
  for item in left_out:
    groups.setdefault(item['reason'], []).append(item['file'])
  return groups
