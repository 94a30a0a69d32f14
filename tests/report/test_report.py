"""Reports of runs whose files are written here, so that all numbers are known.

In Chromium the page is opened as on a desk and as on a telephone.
"""

import html.parser
import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from vemd_jax import config as config_lib
from vemd_jax import predictions
from vemd_jax.report import __main__ as program
from vemd_jax.report import browser, comparison, document, page, runs

# Names that would break a page that does not escape them.
CLASSES = ('<b>calm</b>', 'glad & "loud"')
# Sample -> (true class, class that run 1 says, class that run 2 says).
SAMPLES = [
    (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 1), (1, 0, 1), (1, 0, 1),
    (1, 1, 1), (0, 0, 0),
]  # fmt: skip


def make_run(folder, which, **changes):
  """A finished run; `which` of the two in SAMPLES."""
  folder.mkdir(parents=True)
  config = config_lib.default()
  config.data.update(name='mine', source='folder')
  config.update_from_flattened_dict(changes)
  config_lib.save(config, folder / 'config.json')

  def write(name, value):
    (folder / name).write_text(json.dumps(value))

  write('classes.json', {'mine': CLASSES})
  write('versions.json', {'jax': '0.10.2', 'device_kind': 'TPU v5e'})
  write('recipe.json', {'recipe': 'configs/folder.py', 'changes': changes})
  counts = {
      'samples': 9, 'classes': dict.fromkeys(CLASSES, 4), 'unlabelled': 1,
      'annotated': 5, 'left_out': 2, 'invalid_lines': 3,
      'problems': ['labels.csv:7: <x>.jpg does not exist'],
  }  # fmt: skip
  write('data.json', {'mine': {'train': counts, 'val': counts}})
  lines = []
  for step in range(1, 41):
    lines.append({
        'step': step, 'split': 'train', 'loss': 2 / step, 'kl': 0.1,
        'seconds': 90.0, 'input_wait': 0.25, 'examples_per_second': 64.0,
        'host_memory': 3e9, 'device_memory': 2e9,
    })  # fmt: skip
    if step % 10 == 0:
      lines.append({'step': step, 'split': 'val', 'loss': 3 / step})
  (folder / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 41, "spl'
  )
  val = {'loss': 0.075, 'body_pck': 0.75, 'body_heatmap': 0.5}
  write('results.json', {'step': 30, 'chosen_on': 'val', 'val': val})
  said = [
      {
          'split': 'val', 'dataset': 'mine', 'file': f'{i}.jpg',
          'label': CLASSES[sample[0]], 'source': 'tv' if i < 3 else '<web>',
          'probabilities': [0.9, 0.1] if sample[which] == 0 else [0.2, 0.8],
      }
      for i, sample in enumerate(SAMPLES)
  ]  # fmt: skip
  said.append({'split': 'val', 'dataset': 'mine', 'file': 'torn.jpg',
               'label': CLASSES[0], 'unreadable': True})  # fmt: skip
  (folder / predictions.NAME).write_text(
      ''.join(json.dumps(line) + '\n' for line in said)
  )
  gallery = folder / 'gallery'
  gallery.mkdir()
  picture = np.full((64, 128, 3), 200, np.uint8)
  (gallery / 'a.jpg').write_bytes(cv2.imencode('.jpg', picture)[1].tobytes())
  write('gallery/gallery.json', [
      {'split': 'val', 'dataset': 'mine', 'kind': kind, 'file': f'{kind}.jpg',
       'label': CLASSES[0], 'predicted': CLASSES[kind == 'wrong'],
       'probability': 0.9, 'picture': 'a.jpg'}
      for kind in ('right', 'wrong', 'unsure')
  ])  # fmt: skip
  return folder


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  one = make_run(folder / 'one', 1)
  other = make_run(folder / 'other', 2, **{'optim.learning_rate': 3e-4})
  return one, other


class Reader(html.parser.HTMLParser):
  """The tables of a page, its whole text, and what it refers to."""

  def __init__(self, text):
    super().__init__()
    self.tables, self.words, self.references, self.open = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    if tag not in ('meta', 'link', 'img', 'rect', 'circle', 'polyline', 'br'):
      self.open.append(tag)
    self.references += [v for k, v in attributes if k in ('src', 'href')]
    if tag == 'table':
      self.tables.append([])
    if tag == 'tr':
      self.tables[-1].append([])
    if tag in ('td', 'th'):
      self.tables[-1][-1].append('')

  def handle_endtag(self, tag):
    if tag in ('meta', 'link', 'img', 'rect', 'circle', 'polyline', 'br'):
      return
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ('td', 'th'):
      self.tables[-1][-1][-1] += data
    if 'style' not in self.open:
      self.words.append(data)

  def table(self, *header):
    """The rows of the first table whose header begins like that."""
    return next(
        t[1:] for t in self.tables if tuple(t[0][: len(header)]) == header
    )


def read(path):
  text = path.read_text()
  reader = Reader(text)
  assert reader.open == []
  # Whole in itself: nothing but what is in the file.
  assert all(r.startswith('data:') for r in reader.references)
  assert 'url(' not in text and '@import' not in text
  assert '<script' not in text
  return reader


def test_one_run(workdirs, tmp_path, capsys):
  out = tmp_path / 'report.html'
  assert program.main([str(workdirs[0]), f'--out={out}']) == 0
  assert capsys.readouterr().out.strip() == str(out)
  reader = read(out)
  # Run 1 is right about 5 of 8: 3 of 4 calm, 2 of 4 glad.
  rows = reader.table('class', 'examples', 'recall')
  assert [row[:2] for row in rows] == [[CLASSES[0], '4'], [CLASSES[1], '4']]
  assert rows[0][2].startswith('0.750 [0.301, 0.954]')  # Wilson's, by hand.
  assert rows[0][3].startswith('0.600 [') and rows[1][3].startswith('0.667 [')
  assert rows[0][4].startswith(f'{2 * 3 / 9:.3f} [')
  sources = reader.table('source', 'examples', 'accuracy')
  assert [r[:2] for r in sources] == [['<web>', '5'], ['tv', '3']]
  assert sources[0][2].startswith('0.600') and sources[1][2].startswith('0.667')
  assert reader.table('split', 'samples')[0] == [
      'train', '9', '4', '4', '1', '5', '2', '3'
  ]  # fmt: skip
  # A loss term of that name is no metric of the structure.
  assert reader.table('metric', 'value') == [['body_pck', '0.75']]
  text = ' '.join(reader.words)
  for words in (
      'configs/folder.py', 'TPU v5e', '<x>.jpg does not exist', 'torn.jpg',
      'checkpoint of step 30', '1h00m', '3.00 GB', '2.00 GB', '25 %',
      'chosen on this split', 'glad & "loud" 0.90, true <b>calm</b>',
      'recipe is unchanged', 'not what anybody feels',
  ):  # fmt: skip
    assert words in text, words


def test_two_runs(workdirs, tmp_path):
  out = tmp_path / 'both.html'
  document.write(out, workdirs)
  reader = read(out)
  (row,) = reader.table('minus one', 'same samples')
  name, count, accuracy, _, only_second, only_first, p = row
  # Run 2 alone is right about 2, 4 and 5; run 1 alone about 1.
  assert (name, count, only_second, only_first) == ('other', '8', '3', '1')
  assert accuracy.startswith('+0.250 [') and p == '0.625'
  assert reader.table('key', 'one', 'other') == [
      ['optim.learning_rate', '0.0001', '0.0003']
  ]
  results = {row[0]: row[1:] for row in reader.table('metric', 'one', 'other')}
  assert results['accuracy'][0].startswith('0.625')
  assert results['accuracy'][1].startswith('0.875')
  assert results['examples'] == ['8', '8']


def test_samples_are_compared_only_where_they_are_the_same(workdirs, tmp_path):
  third = make_run(tmp_path / 'third', 2)
  path = third / predictions.NAME
  lines = [json.loads(x) for x in path.read_text().splitlines()]
  for line in lines[:3]:
    line['file'] = 'another_' + line['file']
  lines[3]['label'] = CLASSES[0]  # Relabelled.
  path.write_text(''.join(json.dumps(x) + '\n' for x in lines))
  one, other = runs.read(workdirs[0]), runs.read(third)
  joint = comparison._joint(
      one.scores['val', 'mine'], other.scores['val', 'mine']
  )
  assert joint.sum() == 4
  for report in one, other:
    report.config['data']['source'] = 'group_scenes'
  assert comparison._same_scenes(one, other)
  other.config['data']['group_scenes']['zoom'] = 1.5
  assert not comparison._same_scenes(one, other)


def test_a_run_that_is_not_done(workdirs, tmp_path):
  unfinished = tmp_path / 'unfinished'
  unfinished.mkdir()
  for name in 'config.json', 'classes.json', 'metrics.jsonl', 'versions.json':
    shutil.copy(workdirs[0] / name, unfinished)
  out = tmp_path / 'report.html'
  document.write(out, [unfinished])
  text = ' '.join(read(out).words)
  assert 'no results yet' in text and 'created in Python' in text
  document.write(out, [unfinished, workdirs[0]])
  read(out)
  (unfinished / 'metrics.jsonl').unlink()
  document.write(out, [unfinished])
  assert page.cost(runs.read(unfinished))['steps'] == '0'


def test_errors_are_one_line(workdirs, tmp_path, capsys, monkeypatch):
  assert program.main([str(tmp_path)]) == 2
  assert capsys.readouterr().err == (
      f"error: no config at {tmp_path / 'config.json'}; expected a run's "
      'workdir\n'
  )
  broken = tmp_path / 'broken'
  shutil.copytree(workdirs[0], broken)
  (broken / 'results.json').write_text('{"step": ')
  assert program.main([str(broken)]) == 2
  assert f'{broken / "results.json"} is damaged' in capsys.readouterr().err
  monkeypatch.setenv('PATH', '')
  monkeypatch.delenv('VEMD_CHROMIUM', raising=False)
  out = tmp_path / 'a.html'
  arguments = [str(workdirs[0]), f'--out={out}', f'--pdf={tmp_path / "a.pdf"}']
  assert program.main(arguments) == 2
  error = capsys.readouterr().err
  assert 'need Chromium' in error and error.count('\n') == 1
  assert out.exists()  # The page itself needs no browser.


@pytest.fixture
def chromium():
  try:
    browser.find()
  except FileNotFoundError:
    pytest.skip('no Chromium or Chrome is installed')


def test_in_a_browser(workdirs, tmp_path, chromium):
  out = tmp_path / 'both.html'
  document.write(out, workdirs)
  with browser.browse() as tab:
    for width, phone in (1200, False), (360, True):
      tab.open(out, width, phone)
      tab.evaluate(
          "document.querySelectorAll('details').forEach(d => d.open = true)"
      )
      # Nothing hangs over the right edge; wide tables scroll by themselves.
      assert tab.evaluate('document.documentElement.scrollWidth') <= width
      boxes = tab.evaluate(
          "[...document.querySelectorAll('svg')].map(s => {"
          'const r = s.getBoundingClientRect(); return [r.left, r.right]})'
      )
      assert len(boxes) > 8
      assert all(0 <= left < right <= width for left, right in boxes)
      # Letters that one can read, in charts too.
      smallest = tab.evaluate(
          "Math.min(...[...document.querySelectorAll('svg text')].map("
          't => t.getBoundingClientRect().height))'
      )
      assert smallest > 9
      assert tab.evaluate(
          '[...document.images].every(i => i.naturalWidth > 0)'
      )
    requests = {
        parameters['request']['url'].partition(':')[0]
        for method, parameters in tab.events
        if method == 'Network.requestWillBeSent'
    }
    assert requests <= {'file', 'data'}
    bad = ('Runtime.exceptionThrown', 'Log.entryAdded')
    assert not [e for e in tab.events if e[0] in bad]


def test_pdf_and_png(workdirs, tmp_path, chromium, capsys):
  files = {kind: tmp_path / f'a.{kind}' for kind in ('html', 'pdf', 'png')}
  assert program.main([
      str(workdirs[0]), f'--out={files["html"]}', f'--pdf={files["pdf"]}',
      f'--png={files["png"]}',
  ]) == 0  # fmt: skip
  assert len(capsys.readouterr().out.split()) == 3
  pdf = files['pdf'].read_bytes()
  assert pdf.startswith(b'%PDF') and len(pdf) > 20_000
  with Image.open(files['png']) as picture:
    assert picture.size[0] == 1200 and picture.size[1] > 2000
    pixels = np.asarray(picture.convert('RGB'))[::40, ::40].reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 10
