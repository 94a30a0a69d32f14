"""The figures of an audit in the report and in the model card."""

import json
import pathlib

import pytest

from vemd_jax import card, plots, surfaces
from vemd_jax import config as config_lib
from vemd_jax.audit import __main__ as program
from vemd_jax.audit import measure, pictures
from vemd_jax.report import document

MEASURES = [
    measure.Measure('identity', 'closed set', tap, 'rank-1 accuracy', value,
                    value - 0.1, value + 0.1, 0.02, 51, 'subjects', 'lda')
    for tap, value in (('pixels', 0.612), ('<latent>', 0.345))
] + [
    measure.Measure('utility', 'emotion', 'latent', 'balanced accuracy', 0.4,
                    0.35, 0.45, 1 / 6, 495, 'samples', 'neural network'),
    measure.Measure('membership', 'LiRA', 'logits', 'TPR at 0.1 % FPR',
                    float('nan'), 0.0, 0.0, 0.001, 5, 'non-members', 'lira'),
]  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
  config_lib.save(config_lib.default(), tmp_path / 'config.json')
  for name, content in {
      'classes': {'mine': ['a', 'b']},
      'results': {'step': 7, 'chosen_on': 'val'},
  }.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  return tmp_path


def audited(workdir):
  facts = {
      'step': 7, 'samples': {'train': 100, 'val': 50}, 'notes': ['Few <x>.'],
  }  # fmt: skip
  curves = {'pixels': ([0, 0.5, 1], [0, 0.9, 1])}
  measure.write(workdir, facts, MEASURES, curves)


def test_the_report_has_a_section_only_for_an_audited_run(workdir):
  document.write(workdir / 'report.html', [workdir])
  assert 'Privacy audit' not in (workdir / 'report.html').read_text()
  audited(workdir)
  document.write(workdir / 'report.html', [workdir])
  text = (workdir / 'report.html').read_text()
  for words in (
      'Privacy audit', '0.612', '0.512 to 0.712', 'identity, closed set',
      '&lt;latent&gt;', 'train 100, val 50', 'Few &lt;x&gt;.', 'Verification',
  ):  # fmt: skip
    assert words in text, words
  assert '<latent>' not in text


def test_the_card_has_the_figures_and_else_says_that_there_are_none(workdir):
  assert card.main([str(workdir)]) == 0
  text = (workdir / 'model_card.md').read_text()
  assert 'has not been measured' in text
  audited(workdir)
  assert card.main([str(workdir)]) == 0
  text = (workdir / 'model_card.md').read_text()
  assert 'has not been measured' not in text
  assert '| pixels | 0.612 (0.512 to 0.712) |' in text
  assert '| \\<latent\\> | 0.345 (0.245 to 0.445) |' in text
  assert 'rank-1 accuracy, chance 0.020' in text
  assert 'no claim of anonymity' in text
  assessment = (workdir / 'impact_assessment.md').read_text()
  assert 'The model card has the results of `vemd audit`' in assessment


def test_a_chart_shows_each_tap_in_its_place():
  surface = pictures.chart(surfaces.Svg, MEASURES[:2])
  text = surface.markup('x')
  assert 'pixels: 0.612' in text and '&lt;latent&gt;: 0.345' in text
  dots = []

  class Recorder(surfaces.Raster):
    def dot(self, x, y, r, colour, name=''):
      dots.append((name, x, y))

  rows = [
      plots.Interval('a', 0.2, 0.1, 0.3), plots.Interval('b', 0.8, 0.7, 0.9)
  ]  # fmt: skip
  plots.intervals(Recorder(460, 100), 't', rows, 0.5)
  assert dots[0][1] < 285 < dots[1][1] and dots[0][2] < dots[1][2]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--shadows=3'], '--shadows=3: expected 0 or an even number'),
        (['--inversion_steps=-1'], '--inversion_steps=-1: expected 0 or more'),
        ([], 'no folder'),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, words):
  pytest.importorskip('sklearn')
  assert program.main([str(tmp_path / 'none'), *arguments]) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


@pytest.mark.slow
@pytest.mark.usefixtures('standard_promotion')
def test_a_run_is_audited_from_end_to_end(tmp_path, capsys):
  pytest.importorskip('sklearn')
  from configs import group_scenes
  from vemd_jax import train

  config = group_scenes.get_config('tiny,ve_md_sr')
  config.mode, config.steps = 'train', 2
  config.eval.every = 0
  config.data.group_scenes.update(train_samples=60, val_samples=40)
  workdir = tmp_path / 'run'
  train.train_and_evaluate(config, workdir)
  assert program.main([str(workdir), '--identity_column=who']) == 2
  assert 'no such column' in capsys.readouterr().err
  assert program.main([str(workdir), '--attributes=age']) == 2
  assert "--attributes has 'age', expected some of people" in (
      capsys.readouterr().err
  )
  assert program.main([str(workdir), '--data=elsewhere']) == 2
  assert 'draws its scenes' in capsys.readouterr().err
  arguments = ['--shadows=2', '--shadow_steps=1', '--inversion_steps=5']
  assert program.main([str(workdir), *arguments]) == 0
  found = measure.read(workdir)
  kinds = {(m.attack, m.target) for m in found['measures']}
  assert {('utility', 'emotion'), ('attribute', 'center_x'),
          ('membership', 'LiRA'), ('membership', 'classifier'),
          ('inversion', '32 × 32 pixels')} <= kinds  # fmt: skip
  by_tap = {m.tap for m in found['measures'] if m.attack == 'utility'}
  assert by_tap == {
      'pixels', 'latent', 'heatmaps', 'embedding', 'logits', 'exported',
  }  # fmt: skip
  assert any('No identity column' in note for note in found['notes'])
  names = {p.name for p in (workdir / 'audit').iterdir()}
  assert {'audit.json', 'leakage.png', 'inversion.png', 'shadows'} == names
  assert 'chance' in capsys.readouterr().out
  assert pathlib.Path('elsewhere').exists() is False
