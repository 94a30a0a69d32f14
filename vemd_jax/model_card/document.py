"""Renders headings, paragraphs, lists and tables as Markdown and HTML."""

import html
import re
from collections.abc import Sequence
from typing import Any, NamedTuple


class Heading(NamedTuple):
  """A heading; level 1 is the title."""

  level: int
  text: str


class List(NamedTuple):
  """An unordered list."""

  items: Sequence[str]


class Table(NamedTuple):
  """A table; cells are text."""

  head: Sequence[str]
  rows: Sequence[Sequence[Any]]


# A str is a paragraph. Text may contain Markdown links, code and bold.
Block = Heading | List | Table | str

_STYLE = """body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem;
font: 16px/1.5 system-ui, sans-serif; color: #262a33; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
td, th { border: 1px solid #cdd1d8; padding: .2rem .6rem; text-align: left; }"""


def literal(text: Any) -> str:
  """Escapes text from a run, so that it is not interpreted as markup."""
  return re.sub(r'([\\`*_\[\]<>|#])', r'\\\1', ' '.join(str(text).split()))


def markdown(blocks: Sequence[Block]) -> str:
  """Writes blocks as Markdown."""
  return '\n\n'.join(map(_markdown, blocks)) + '\n'


def _markdown(block: Block) -> str:
  if isinstance(block, Heading):
    return f'{"#" * block.level} {block.text}'
  if isinstance(block, List):
    return '\n'.join(f'- {item}' for item in block.items)
  if isinstance(block, Table):
    rows = [block.head, ['---'] * len(block.head), *block.rows]
    return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in rows)
  return block


def page(title: str, blocks: Sequence[Block]) -> str:
  """Writes blocks as an HTML page without external parts."""
  return (
      '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
      f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n'
      f'<body>\n{chr(10).join(map(_html, blocks))}\n</body></html>\n'
  )


def _html(block: Block) -> str:
  if isinstance(block, Heading):
    return f'<h{block.level}>{_inline(block.text)}</h{block.level}>'
  if isinstance(block, List):
    items = ''.join(f'<li>{_inline(item)}</li>' for item in block.items)
    return f'<ul>{items}</ul>'
  if isinstance(block, Table):
    rows = [
        '<tr>' + ''.join(f'<{tag}>{_inline(c)}</{tag}>' for c in row) + '</tr>'
        for tag, row in (('th', block.head), *(('td', r) for r in block.rows))
    ]
    return f'<table>{"".join(rows)}</table>'
  return f'<p>{_inline(block)}</p>'


_INLINE = re.compile(
    r'\\(?P<char>.)|`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*'
    r'|\[(?P<text>[^\]]+)\]\((?P<to>https?://[^)\s]+)\)|(?P<rest>.)',
    re.S,
)


def _inline(text: Any) -> str:
  def one(match):
    kind = match.lastgroup
    if kind == 'code':
      return f'<code>{html.escape(match["code"])}</code>'
    if kind == 'bold':
      return f'<strong>{_inline(match["bold"])}</strong>'
    if kind == 'to':
      label = _inline(match['text'])
      return f'<a href="{html.escape(match["to"])}">{label}</a>'
    return html.escape(match[kind])

  return _INLINE.sub(one, str(text))
