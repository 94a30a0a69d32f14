"""The documentation site builds without warnings, and its links resolve."""

import html.parser
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parents[1]

for package in 'mkdocs', 'material', 'mkdocstrings_handlers.python':
  pytest.importorskip(package)


class Page(html.parser.HTMLParser):
  """Links and anchors of a page."""

  def __init__(self, text):
    super().__init__()
    self.links, self.ids, self.text = [], set(), text
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids.add(attrs.get('id'))
    for key in 'href', 'src':
      if attrs.get(key):
        self.links.append(attrs[key])


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  out = tmp_path_factory.mktemp('site')
  process = subprocess.run(
      [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet',
       '--site-dir', str(out)],
      cwd=ROOT, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr[-3000:]
  assert 'WARNING' not in process.stderr
  pages = {p: Page(p.read_text()) for p in out.rglob('*.html')}
  return out, {p: page for p, page in pages.items() if p.name != '404.html'}


def test_every_link_leads_to_a_page(site):
  root, pages = site
  assert len(pages) >= 20
  for path, page in pages.items():
    for link in page.links:
      url = urllib.parse.urlsplit(link)
      if url.scheme:
        # Pages load nothing from other hosts.
        assert url.scheme in ('http', 'https', 'data'), link
        continue
      target = (path.parent / urllib.parse.unquote(url.path)).resolve()
      target = path if not url.path else target
      target = target / 'index.html' if target.is_dir() else target
      assert target.exists(), f'{path.relative_to(root)}: {link}'
      if url.fragment and target in pages:
        fragment = urllib.parse.unquote(url.fragment)
        assert fragment in pages[target].ids, f'{path}: {link}'


def test_pages_have_the_texts_of_the_repository(site):
  root, pages = site

  def words(name):
    text = re.sub('<[^>]+>', '', pages[root / name].text)
    return ' '.join(text.split())

  for page in pages.values():
    assert '{{' not in page.text
  assert 'vemd new DIR' in words('own_data.html')
  assert 'bash launch/local.sh' in words('quick_start.html')
  assert 'sbatch --nodes=2' in words('launching.html')
  assert 'kubectl apply' in words('launching.html')
  assert 'vemd predict --workdir=RUN' in words('commands.html')
  assert 'class_weights' in words('api/vemd_jax.losses.html')
  # Docstrings' sections are lists, not paragraphs.
  assert 'Args:' not in words('api/vemd_jax.losses.html')
  for name in (ROOT / 'docs' / 'site').glob('*.md'):
    assert f'{name.stem}.html' in pages[root / 'index.html'].text, name
