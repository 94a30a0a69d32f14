"""HTML of tables and charts, with escaped text, and the style of the page."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 16px; color: #262a33;
  background: #fafaf8; font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .2em 0; }
h2 { font-size: 1.25rem; margin: 1.8em 0 .5em; padding-bottom: .2em;
  border-bottom: 2px solid #dfe1e5; }
h3 { font-size: 1.05rem; margin: 1.3em 0 .4em; }
p { margin: .4em 0 .8em; max-width: 75ch; }
.note { color: #6b7280; font-size: .9em; }
nav { font-size: .9em; margin: .5em 0; }
nav a { margin-right: 1em; color: #0072b2; }
.tiles { display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); }
.tile { background: #fff; border: 1px solid #dfe1e5; border-radius: 6px;
  padding: 8px 12px; }
.tile b { display: block; font-size: 1.3rem; font-weight: 600; }
.tile .note { white-space: nowrap; }
.scroll { overflow-x: auto; margin: .4em 0 1em; }
table { border-collapse: collapse; font-size: .92em;
  font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e9eaed; overflow-wrap: normal; }
td.long { overflow-wrap: anywhere; min-width: 8em; }
th { color: #6b7280; font-weight: 500; }
td.number, th.number { text-align: right; white-space: nowrap; }
.charts { display: grid; gap: 8px;
  grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
.columns { display: grid; gap: 0 24px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); }
.charts > svg, .pair > svg { background: #fff; border: 1px solid #dfe1e5;
  border-radius: 6px; }
.charts > svg { width: 100%; height: auto; }
.pair { display: flex; flex-wrap: wrap; gap: 8px; align-items: start; }
.pair > svg { max-width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", sans-serif; }
.gallery { display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); }
figure { margin: 0; background: #fff; border: 1px solid #dfe1e5;
  border-top: 4px solid #6b7280; border-radius: 4px; }
figure.right { border-top-color: #009e73; }
figure.wrong { border-top-color: #d55e00; }
figure img { width: 100%; display: block; }
figcaption { padding: 4px 8px; font-size: .85em; }
figcaption small { color: #6b7280; display: block; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .4em; }
details > summary { cursor: pointer; color: #0072b2; margin: .5em 0; }
details.config > .scroll { columns: 2 30em; }
details.config table { width: 100%; }
details.run { border-top: 2px solid #dfe1e5; margin-top: 1.5em; }
details.run > summary { font-size: 1.25rem; font-weight: 600; }
@media print {
  body { max-width: none; padding: 0; background: #fff; font-size: 10.5pt; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  figure, svg, tr, .tile { break-inside: avoid; }
  .scroll { overflow: visible; }
  details.config > .scroll { columns: 2; font-size: 7.5pt; }
  .gallery { grid-template-columns: repeat(3, 1fr); }
  .charts { grid-template-columns: repeat(2, 1fr); }
  details::details-content { content-visibility: visible; }
}
"""

Cell = Any


def text(value: Any) -> str:
  """A value as escaped text."""
  if isinstance(value, bool | None):
    value = {None: '-', True: 'yes', False: 'no'}[value]
  elif isinstance(value, float):
    value = f'{value:.4g}'
  elif isinstance(value, list | tuple):
    value = ', '.join(map(str, value)) or '()'
  return html.escape(str(value))


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
  """A table; columns of numbers are right-aligned.

  Args:
    header: title of each column.
    rows: cells; a string whose first word is a number counts as a number.

  Returns:
    HTML.
  """
  rows = [list(row) for row in rows]
  numeric = [
      any(map(_is_number, column))
      and all(_is_number(cell) or cell in ('', '-') for cell in column)
      for column in zip(*rows)
  ] or [False] * len(header)

  def row(cells, tag):
    parts = []
    for cell, right in zip(cells, numeric):
      kind = ' class="number"' if right else ''
      if not right and tag == 'td' and len(str(cell)) > 24:
        kind = ' class="long"'
      parts.append(f'<{tag}{kind}>{text(cell)}</{tag}>')
    return f'<tr>{"".join(parts)}</tr>'

  body = ''.join(row(cells, 'td') for cells in rows)
  return (
      f'<div class="scroll"><table><thead>{row(header, "th")}</thead>'
      f'<tbody>{body}</tbody></table></div>'
  )


def _is_number(cell: Cell) -> bool:
  if isinstance(cell, int | float) and not isinstance(cell, bool):
    return True
  words = str(cell).split()
  return bool(words) and words[0].lstrip('+-−').replace('.', '', 1).isdigit()


def facts(values: Mapping[str, Any]) -> str:
  """A table of names and values."""
  rows = ''.join(
      f'<tr><th>{text(key)}</th><td class="long">{text(value)}</td></tr>'
      for key, value in values.items()
  )
  return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def tiles(values: Mapping[str, str]) -> str:
  """Boxes with the main numbers, `value` or `value [interval]`."""
  parts = []
  for name, value in values.items():
    main, _, rest = value.partition(' ')
    parts.append(
        f'<div class="tile">{text(name)}<b>{text(main)}</b>'
        f'<span class="note">{text(rest)}</span></div>'
    )
  return f'<div class="tiles">{"".join(parts)}</div>'


def charts(drawn: Iterable[str]) -> str:
  """Charts in as many columns as fit the page."""
  return f'<div class="charts">{"".join(drawn)}</div>'


def note(line: str) -> str:
  """A paragraph of small print."""
  return f'<p class="note">{text(line)}</p>'


def folded(title: str, inner: str, kind: str = '', unfolded=False) -> str:
  """A section that opens with a click on its title."""
  kind = f' class="{kind}"' if kind else ''
  state = ' open' if unfolded else ''
  return (
      f'<details{kind}{state}><summary>{text(title)}</summary>{inner}</details>'
  )


def page(title: str, body: str) -> str:
  """The whole document."""
  return (
      '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      # Browsers would otherwise request an icon.
      '<link rel="icon" href="data:,">'
      f'<title>{text(title)}</title><style>{STYLE}</style></head>'
      f'<body>{body}</body></html>\n'
  )
