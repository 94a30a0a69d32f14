"""MkDocs hooks that build pages from texts of the repository.

A line `{{ FILE }}` or `{{ FILE#Heading }}` in a page is replaced by

  a Markdown file    its text, or a section of it without the heading; `#` alone
                     is the text before the first second-level heading
  a Python file      the docstring of the module
  a script           the comment at its beginning
  vemd               the output of `vemd --help`

Links in these texts are changed to pages of the site; links to files that are
not part of it become plain text.
"""

import ast
import itertools
import json
import pathlib
import posixpath
import re
import sys
import textwrap

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
_INCLUDE = re.compile(r'^\{\{ (\S+?)(#.*?)? \}\}$', re.M)
_LINK = re.compile(r'(!?)\[([^\]]*)\]\(([^)\s]+)\)')
_FENCE = re.compile(r'^```.*?^```', re.M | re.S)
_NOTEBOOK = 'tour.ipynb'
# Files of the repository that are pages under another name.
_PAGES = {'benchmarks/RESULTS.md': 'measured.md', 'README.md': 'index.md',
          'launch': 'launching.md', 'docs/tour.ipynb': 'tour.md'}  # fmt: skip


def on_config(config):
  """Removes missing pages from the navigation and adds the API."""
  there = {p.name for p in (ROOT / 'docs').rglob('*.md')} | {'tour.md'}

  def kept(items):
    for item in items:
      if isinstance(item, str):
        if item in there:
          yield item
      else:
        ((title, below),) = item.items()
        yield {title: list(kept(below))}

  config.nav = list(kept(config.nav))
  config.nav.append({'API': [*_api()]})
  return config


def on_files(files, config):
  """Moves docs/site to the root; adds the API and the notebook."""
  for file in list(files):
    if file.src_uri.startswith('site/'):
      files.remove(file)
      moved = file.src_uri.removeprefix('site/')
      files.append(
          File.generated(config, moved, abs_src_path=file.abs_src_path)
      )
  notebook = json.loads((ROOT / 'docs' / _NOTEBOOK).read_text())
  files.append(
      File.generated(config, 'tour.md', content=_from_notebook(notebook))
  )
  for name, text in _api().items():
    files.append(File.generated(config, name, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Replaces includes and links."""
  pages = {file.src_uri for file in files}
  here = posixpath.dirname(page.file.src_uri)
  source = page.file.abs_src_path
  base = 'docs'
  if source:
    base = pathlib.Path(source).relative_to(ROOT).parent.as_posix()
  markdown = _relink(markdown, base, here, pages)

  def fill(match):
    text = _text(match[1], match[2])
    base = posixpath.dirname(match[1])
    return _relink(text, base, here, pages)

  return _INCLUDE.sub(fill, markdown)


def _text(name: str, section: str | None) -> str:
  """The text of an include."""
  if name == 'vemd':
    sys.path.insert(0, str(ROOT))
    from vemd_jax import cli

    return f'```\n{cli.usage()}\n```'
  text = (ROOT / name).read_text(encoding='utf-8')
  if name.endswith('.md'):
    return text if section is None else _section(name, text, section[1:])
  if name.endswith('.py'):
    text = ast.get_docstring(ast.parse(text))
  else:
    lines = [
        line
        for line in text.splitlines()
        if not line.startswith(('#!', '# shellcheck'))
    ]
    comment = itertools.takewhile(re.compile(r'#( |$)').match, lines)
    text = '\n'.join(line[2:] for line in comment)
  return _from_docstring(text)


def _section(name: str, text: str, heading: str) -> str:
  """A section without its heading, up to the next heading."""
  if not heading:
    return re.split(r'^## ', text, maxsplit=1, flags=re.M)[0]
  found = re.search(
      rf'^(#+) {re.escape(heading)}\n(.*?)(?=^#+ |\Z)', text, re.M | re.S
  )
  if not found:
    raise ValueError(f'{name} has no heading {heading!r}')
  return found[2]


def _from_docstring(text: str) -> str:
  """A docstring as Markdown, with indented blocks as code."""
  blocks = []
  for block in re.split(r'\n\s*\n', text):
    lines = block.splitlines()
    code = all(line.startswith('  ') for line in lines)
    block = textwrap.dedent(block)
    if code and blocks and blocks[-1].endswith('\n```'):
      blocks[-1] = blocks[-1][:-4] + '\n\n' + block + '\n```'
    else:
      blocks.append(f'```text\n{block}\n```' if code else block)
  return '\n\n'.join(blocks)


def _relink(text: str, base: str, here: str, pages: set[str]) -> str:
  """Changes links relative to `base` for a page in the folder `here`."""

  def turn(match):
    picture, title, target = match.groups()
    if re.match(r'[a-z]+:|#', target):
      return match[0]
    path, _, anchor = target.partition('#')
    path = posixpath.normpath(posixpath.join(base, path))
    page = path.removeprefix('docs/').removeprefix('site/')
    page = _PAGES.get(path, page)
    if page not in pages:
      return title if '`' in title else f'`{title}`'
    page = posixpath.relpath(page, here or '.')
    return f'{picture}[{title}]({page}{"#" + anchor if anchor else ""})'

  parts, end = [], 0
  for fence in _FENCE.finditer(text):
    parts += [_LINK.sub(turn, text[end : fence.start()]), fence[0]]
    end = fence.end()
  return ''.join([*parts, _LINK.sub(turn, text[end:])])


def _from_notebook(notebook: dict) -> str:
  """The cells of a notebook as Markdown, with their outputs."""
  parts = []
  for cell in notebook['cells']:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
      parts.append(source)
      continue
    parts.append(f'```python\n{source}\n```')
    for output in cell['outputs']:
      data = output.get('data', {})
      if 'image/jpeg' in data:
        code = ''.join(data['image/jpeg']).replace('\n', '')
        parts.append(f'![output](data:image/jpeg;base64,{code})')
      elif 'text/plain' in data or 'text' in output:
        text = ''.join(output.get('text') or data['text/plain'])
        parts.append(f'```text\n{text.rstrip()}\n```')
  return '\n\n'.join(parts) + '\n'


def _api() -> dict[str, str]:
  """API pages: one per subpackage and one for the top-level modules."""
  root = ROOT / 'vemd_jax'
  groups = {'vemd_jax': [root / '__init__.py']}
  for path in sorted(root.rglob('*.py')):
    parts = path.relative_to(root).parts
    if path.name in ('__main__.py', '__init__.py') and len(parts) < 2:
      continue
    groups.setdefault(
        'vemd_jax' if len(parts) == 1 else f'vemd_jax.{parts[0]}', []
    ).append(path)
  pages = {}
  for name, paths in groups.items():
    lines = [f'# {name}', '']
    for path in paths:
      module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
      package = module.endswith('.__init__')
      module = module.removesuffix('.__init__')
      lines += [f'## {module}', '', f'::: {module}', '    options:',
                '      show_root_heading: false',
                '      show_root_toc_entry: false']  # fmt: skip
      # Packages re-export what their modules define.
      hides = package and module != 'vemd_jax'
      lines += ['      members: false', ''] if hides else ['']
    pages[f'api/{name}.md'] = '\n'.join(lines)
  return pages
