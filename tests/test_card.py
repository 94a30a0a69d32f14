"""The model card: numbers of the run, a valid header, texts that are kept."""

import json

import pytest
import yaml

from vemd_jax import card
from vemd_jax import config as config_lib
from vemd_jax.model_card import document, run


@pytest.fixture
def workdir(tmp_path):
  """A finished run with a class whose name looks like markup."""
  root = tmp_path / 'crowd_1'
  root.mkdir()
  config = config_lib.default()
  config.data.update(name='mine', source='folder', root='/somewhere/private')
  config = config_lib.finish(config, 've_md')
  config_lib.save(config, root / 'config.json')
  val = {
      'accuracy': 0.8, 'macro_f1': 0.75, 'uar': 0.7,
      'confusion': [[70.0, 10.0], [10.0, 10.0]],
  }  # fmt: skip
  empty = {'accuracy': 0.5, 'confusion': [[1.0, 1.0], [0.0, 0.0]]}
  for name, content in {
      'classes': {'mine': ['calm', '<b>|x*']},
      'results': {'step': 7, 'chosen_on': 'val', 'val': val, 'test': empty},
      'versions': {'vemd_jax': '0.1.0', 'jax': '0.10.2'},
  }.items():
    (root / f'{name}.json').write_text(json.dumps(content))
  lines = [
      {'split': 'val', 'dataset': 'mine', 'file': str(i), 'label': 'calm',
       'source': 'web' if i < 4 else 'press',
       'probabilities': [0.9, 0.1] if i % 2 else [0.2, 0.8]}
      for i in range(6)
  ]  # fmt: skip
  (root / 'predictions.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines)
  )
  return root


def test_the_card_has_the_figures_of_the_run(workdir, capsys):
  assert card.main([str(workdir)]) == 0
  text = (workdir / 'model_card.md').read_text()
  # Wilson's interval of 80 of 100, by hand.
  assert '| accuracy | 100 | 0.800 (0.711 to 0.867) |' in text
  assert '| recall of calm | 80 | 0.875 (0.785 to 0.931) |' in text
  assert '| recall of \\<b\\>\\|x\\* | 0 | - |' in text
  assert '| web | 4 | 0.500' in text and '| press | 2 | 0.500' in text
  assert '| checkpoint | step 7 |' in text
  assert text.count('selected on this split') == 1
  # Neither paths nor names of files.
  assert 'somewhere' not in text


def test_the_header_is_that_of_hugging_face(workdir):
  assert card.main([str(workdir)]) == 0
  _, header, rest = (workdir / 'model_card.md').read_text().split('---\n', 2)
  header = yaml.safe_load(header)
  assert header['library_name'] == 'vemd_jax'
  (entry,) = header['model-index']
  first = entry['results'][0]
  assert first['dataset'] == {'type': 'mine', 'name': 'mine', 'split': 'val'}
  assert {'type': 'accuracy', 'name': 'accuracy', 'value': 0.8} in (
      first['metrics']
  )
  assert rest.startswith('# Model card of crowd')


def test_law_and_limits_are_in_every_card(workdir, tmp_path):
  assert card.main([str(workdir), f'--out={tmp_path / "out"}']) == 0
  for name in 'model_card.md', 'model_card.html':
    text = (tmp_path / 'out' / name).read_text()
    for words in (
        'Article 5(1)(f)', 'Article 50(3)', 'no claim of anonymity',
        '2111.15129', 'has not been measured',
    ):  # fmt: skip
      assert words in text, (name, words)
  text = (tmp_path / 'out' / 'impact_assessment.md').read_text()
  assert '224 × 224 pixels' in text and 'skeletons' in text
  assert text.count('To be filled in by the controller') >= 8
  assert '`ve_md`' in text


def test_html_escapes_what_the_run_names(workdir):
  assert card.main([str(workdir)]) == 0
  page = (workdir / 'model_card.html').read_text()
  assert '<b>' not in page and '&lt;b&gt;|x*' in page
  assert '<a href="https://arxiv.org/abs/2111.15129">' in page
  assert '<strong>Single people.</strong>' in page
  blocks = [document.Heading(1, 'A'), document.List(['`<x>`']), 'a **b** c']
  assert document.page('T', blocks).split('<body>\n')[1] == (
      '<h1>A</h1>\n<ul><li><code>&lt;x&gt;</code></li></ul>\n'
      '<p>a <strong>b</strong> c</p>\n</body></html>\n'
  )


def test_runs_that_have_no_card(workdir, tmp_path, capsys):
  assert card.main([str(tmp_path)]) == 2
  assert "expected a run's workdir" in capsys.readouterr().err
  (workdir / 'results.json').write_text('{"step": ')
  assert card.main([str(workdir)]) == 2
  assert 'results.json is damaged' in capsys.readouterr().err
  (workdir / 'results.json').unlink()
  assert card.main([str(workdir)]) == 2
  assert 'evaluate the run first' in capsys.readouterr().err


def test_intervals():
  assert run.interval(0, 0) == '-'
  assert run.interval(10, 10) == '1.000 (0.722 to 1.000)'
