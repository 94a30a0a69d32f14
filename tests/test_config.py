import pathlib

import pytest

from configs import folder
from vemd_jax import config as config_lib
from vemd_jax import run

RECIPES = sorted(
    p
    for p in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py')
    if 'def get_config' in p.read_text()  # The others are sweeps.
)


def recipe(path):
  scope = {}
  exec(compile(path.read_text(), str(path), 'exec'), scope)
  return scope['get_config']


@pytest.mark.parametrize('path', RECIPES, ids=lambda p: p.stem)
@pytest.mark.parametrize('options', ['', 'tiny', 'tiny,ve_sd'])
def test_every_recipe_is_locked_valid_and_says_how_to_run(path, options):
  text = path.read_text()
  assert f'--config=configs/{path.name}' in text
  config = recipe(path)(options)
  if config.model.vit.name == 'clip_vit_l_14':
    if config.model.variant != 'vit':
      with pytest.raises(ValueError, match='init_from names no weights'):
        config_lib.check(config)
    config.checkpoint.init_from = ('STAGE1',)
  config_lib.check(config)
  with pytest.raises(AttributeError):
    config.model.widht = 3
  with pytest.raises((TypeError, ValueError)):
    config.batch_size = 'many'
  if 'tiny' in options:
    assert config.steps <= 10


def test_unknown_word_lists_the_known():
  with pytest.raises(ValueError, match=r"'tinny'.*laptop, .*tiny"):
    config_lib.finish(config_lib.default(), 'tinny')


def test_tiny_has_the_last_word():
  a = config_lib.finish(config_lib.default(), 'tiny,laptop')
  b = config_lib.finish(config_lib.default(), 'laptop,tiny')
  assert a.to_dict() == b.to_dict()


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('mode', 'test', "config.mode is 'test', expected one of train"),
        ('model.variant', 've_mdsr', "did you mean 've_md_sr'"),
        ('data.targets', 'gpu', 'expected one of device, host'),
        ('batch_size', 0, 'config.batch_size is 0, expected 1 or more'),
        ('model.parts', ('body', 'hand'), r"\['hand'\], expected body, face"),
        ('optim.accumulation', 3, 'not a multiple'),
    ],
)
def test_senseless_values_are_named(key, value, message):
  config = config_lib.default()
  *path, last = key.split('.')
  node = config
  for name in path:
    node = node[name]
  node[last] = value
  with pytest.raises(ValueError, match=message):
    config_lib.check(config)


def test_json_and_back(tmp_path):
  config = config_lib.finish(config_lib.default(), 'tiny')
  config_lib.save(config, tmp_path / 'config.json')
  assert config_lib.load(tmp_path / 'config.json') == config
  with pytest.raises(FileNotFoundError, match='no config at'):
    config_lib.load(tmp_path / 'nothing.json')
  (tmp_path / 'torn.json').write_text('{"seed": ')
  with pytest.raises(ValueError, match='torn.json is not a config'):
    config_lib.load(tmp_path / 'torn.json')


@pytest.mark.parametrize(
    'changes, expected',
    [
        ({}, {'emotion', 'body_heatmap', 'face_heatmap', 'kl'}),
        ({'variant': 've_sd'}, {'emotion', 'kl'}),
        ({'parts': ('face',)}, {'emotion', 'face_heatmap', 'kl'}),
        (
            {'decoder': 'person_query'},
            {'emotion', 'body_query', 'face_query', 'kl'},
        ),
        (
            {'decoder': 'person_query', 'person_query': {'initial': 'centers'}},
            {'emotion', 'body_centers', 'face_centers', 'kl'},
        ),
        (
            {'head': {'sr_input': 'relations'}},
            {'emotion', 'body_heatmap', 'face_heatmap', 'sources', 'kl'},
        ),
        (
            {
                'decoder': 'person_query',
                'person_query': {'initial': 'centers'},
                'head': {'sr_input': 'relations'},
            },
            {
                'emotion', 'body_centers', 'face_centers', 'sources',
                'teacher_forcing', 'kl',
            },
        ),
        (
            {'variant': 've_md', 'head': {'sr_input': 'relations'}},
            {'emotion', 'body_heatmap', 'face_heatmap', 'kl'},
        ),
        (
            {'latent': {'deterministic': True}},
            {'emotion', 'body_heatmap', 'face_heatmap'},
        ),
    ],
)
def test_terms_follow_the_model(changes, expected):
  config = config_lib.default()
  config.model.update(changes)
  active = config_lib.active_losses(config)
  assert set(active) == expected
  assert all('decoder' not in term for term in active.values())


def test_skips_and_st_gcn_need_a_decoder_for_them():
  config = config_lib.default()
  config.model.encoder.skips = 1
  config_lib.check(config)
  config.model.decoder = 'person_query'
  with pytest.raises(ValueError, match='learned queries do not read skips'):
    config_lib.check(config)
  config.model.person_query.initial = 'centers'
  config_lib.check(config)
  config.model.person_query.st_gcn = 'graph'
  with pytest.raises(ValueError, match='decodes no adjacency'):
    config_lib.check(config)


def test_a_mixture_changes_only_what_it_names():
  config = config_lib.default()
  config.data.image_size = 64
  config.mixture = {'a': {'root': 'x'}, 'b': {'root': 'y', 'weight': 2.0}}
  parts = config_lib.datasets(config)
  assert list(parts) == ['a', 'b']
  assert parts['b'].root == 'y' and parts['b'].weight == 2.0
  assert parts['a'].weight == 1.0 and parts['a'].image_size == 64
  assert parts['a'].name == 'a' and config.data.name == 'group_scenes'
  config.mixture = {'a': {'rot': 'x'}}
  config.lock()
  with pytest.raises(ValueError, match='config.mixture.a'):
    config_lib.datasets(config)


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'steps': 7, 'min_steps': 20}, 7),
        ({'epochs': 2.5}, 13),
        ({'epochs': 2.5, 'min_steps': 12}, 13),
        ({'epochs': 2.5, 'min_steps': 20}, 20),
    ],
)
def test_length_of_training(changes, expected):
  config = config_lib.default()
  config.update(changes)
  assert run.training_steps(config, 5) == expected


def test_few_pictures_are_trained_beyond_the_warm_up():
  config = folder.get_config()
  assert run.training_steps(config, 4) > 5 * config.optim.warmup_steps
  assert run.training_steps(folder.get_config('tiny'), 4) <= 10


def test_raw_limbs_of_queries_are_projected_except_for_the_reference():
  gaf3 = recipe(RECIPES[0].parent / 'gaf3.py')
  exact = recipe(RECIPES[0].parent / 'reference.py')

  def read(config):
    return config.model.decoder, config.model.head.sr_input

  assert read(gaf3('person_query')) == ('person_query', 'projected')
  assert read(gaf3('heatmap')) == ('heatmap', 'raw')
  assert read(gaf3('reference,person_query')) == ('person_query', 'raw')
  assert read(exact('person_query')) == ('person_query', 'raw')
