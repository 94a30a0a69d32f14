"""The whole model: which inputs and weights affect which outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.models import vemd_cases
from vemd_jax.models.encoders import make_encoder
from vemd_jax.models.normalization import normalize
from vemd_jax.models.vemd import VEMD

DECODERS = ('heatmap', 'person_query')


def runner(model, dataset='first', train=False):
  """Compiled `(variables, batch, rngs) -> Outputs`."""

  @jax.jit
  def run(variables, batch, rngs=None):
    outputs, _ = model.apply(
        variables, batch, dataset=dataset, train=train, rngs=rngs,
        mutable=['batch_stats'],
    )  # fmt: skip
    return outputs

  return run


def shift(variables, *names, collection='params'):
  """The variables with all leaves under some modules perturbed."""
  flat = traverse_util.flatten_dict(variables, sep='/')
  touched = 0
  for key in flat:
    if key.startswith(tuple(f'{collection}/{name}' for name in names)):
      flat[key] = flat[key] + 0.1
      touched += 1
  assert touched
  return traverse_util.unflatten_dict(flat, sep='/')


def test_full_size_has_the_parameters_of_the_reference():
  def count(sr_input='raw', **changes):
    fields = vemd_cases.fields(
        encoder={'name': 'resnet50', 'width': 64},
        latent={'dim': 512, 'deterministic': True},
        vit={'name': 'clip_vit_l_14'},
        heatmap={
            'stages': 6, 'bottleneck': 2048, 'widths': (512, 256, 128),
            'features': 256, 'stage_width': 256, 'stage_convs': 4,
        },
        person_query={
            'queries': 100, 'layers': 3, 'mlp_dim': 2048, 'presence': False,
        },
        head={
            'mlp_dim': 2048, 'width': 512, 'proj_dim': 512,
            'sr_input': sr_input,
        },
        classes=(('vgaf', 3),),
        **{'parts': ('body',), **changes},
    )  # fmt: skip
    batch = {
        'image': jnp.zeros((1, 1, 224, 224, 3), jnp.uint8),
        'vit_features': jnp.zeros((1, 1, 1024)),
    }
    shapes = jax.eval_shape(
        lambda key: VEMD(**fields).init(
            key, batch, dataset='vgaf', train=False
        ),
        jax.random.key(0),
    )
    return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))

  assert count() == 201_518_128
  assert count('projected') == 143_588_016
  assert count(variant='ve_md') == 134_853_040
  assert count('projected', parts=('body', 'face')) == 206_768_546
  assert count(decoder='person_query') == 379_000_592


def test_init_makes_the_heads_of_all_datasets():
  fields = vemd_cases.fields(
      vit={'name': 'tiny'},
      classes=(('first', 3), ('second', 5), ('unlabelled', 0)),
  )
  batch = vemd_cases.batch()
  model = VEMD(**fields)
  shapes = [
      jax.eval_shape(
          lambda key, d=dataset: model.init(key, batch, dataset=d, train=False),
          jax.random.key(0),
      )
      for dataset in ('first', 'second', 'unlabelled')
  ]
  assert shapes[0] == shapes[1] == shapes[2]
  params = shapes[0]['params']
  assert set(params) == {
      'encoder_0', 'latent_0', 'vit', 'body_decoder', 'face_decoder',
      'head_first', 'head_second', 'vit_projection_first',
      'vit_projection_second',
  }  # fmt: skip
  assert params['head_second']['logits']['kernel'].shape == (16, 5)


def test_outputs_of_each_dataset():
  fields = vemd_cases.fields(
      parts=('body',), classes=(('first', 3), ('unlabelled', 0))
  )
  model, batch = VEMD(**fields), vemd_cases.batch(3, 2)
  variables = vemd_cases.make(model, batch)
  outputs = runner(model)(variables, batch)
  assert outputs.logits.shape == (3, 3)
  assert outputs.frame_attention.shape == (3, 2)
  assert outputs.latents[0].sample.shape == (3, 2, 4, 4, 8)
  assert outputs.body.heatmap_logits.shape == (2, 3, 2, 32, 32, 18)
  assert outputs.face is None and outputs.vit_latent is None
  other = runner(model, 'unlabelled')(variables, batch)
  assert other.logits is None and other.frame_attention is None
  np.testing.assert_allclose(
      other.body.heatmap_logits, outputs.body.heatmap_logits, atol=1e-5
  )


def test_variants_have_the_decoders_they_name():
  batch = vemd_cases.batch()
  for variant, decoders in (('ve_sd', set()), ('ve_md', {'body_decoder'})):
    model = VEMD(**vemd_cases.fields(variant=variant, parts=('body',)))
    params = vemd_cases.make(model, batch)['params']
    assert {n for n in params if 'decoder' in n} == decoders


@pytest.mark.parametrize('decoder', DECODERS)
@pytest.mark.parametrize('variant', ['ve_md', 've_md_sr'])
def test_structure_feeds_the_head_in_sr_only(variant, decoder):
  fields = vemd_cases.fields(
      variant=variant, decoder=decoder, parts=('body',)
  )
  model, batch = VEMD(**fields), vemd_cases.batch()
  variables = vemd_cases.make(model, batch)
  run = runner(model)
  before = run(variables, batch)
  after = run(shift(variables, 'body_decoder'), batch)
  same = np.array_equal(before.logits, after.logits)
  assert same == (variant == 've_md')
  assert not np.array_equal(
      jax.tree.leaves(before.body)[0], jax.tree.leaves(after.body)[0]
  )


@pytest.mark.parametrize('decoder', DECODERS)
def test_evaluation_is_of_one_sample_and_needs_no_keys(decoder):
  fields = vemd_cases.fields(decoder=decoder)
  model, batch = VEMD(**fields), vemd_cases.batch(3)
  variables = vemd_cases.make(model, batch)
  run = runner(model)
  before = run(variables, batch)
  latent = before.latents[0]
  np.testing.assert_array_equal(latent.sample, latent.mean)
  changed = {'image': batch['image'].at[2].set(0)}
  after = run(variables, changed)
  np.testing.assert_allclose(after.logits[:2], before.logits[:2], atol=1e-6)
  assert np.abs(after.logits[2] - before.logits[2]).max() > 1e-4



def test_training_draws_latents_and_drops():
  model, batch = VEMD(**vemd_cases.fields(variant='ve_sd')), vemd_cases.batch()
  variables = vemd_cases.make(model, batch)
  train = runner(model, train=True)
  one, two = (train(variables, batch, vemd_cases.rngs(s)) for s in (1, 2))
  assert not np.allclose(one.latents[0].sample, two.latents[0].sample)
  assert not np.allclose(one.logits, two.logits)
  np.testing.assert_allclose(
      one.latents[0].mean, two.latents[0].mean, atol=1e-5
  )


def test_second_encoder_is_the_faces():
  model = VEMD(**vemd_cases.fields(num_encoders=2, variant='ve_md'))
  batch = vemd_cases.batch()
  variables = vemd_cases.make(model, batch)
  run = runner(model)
  before = run(variables, batch)
  after = run(shift(variables, 'encoder_1'), batch)
  np.testing.assert_array_equal(
      before.body.heatmap_logits, after.body.heatmap_logits
  )
  assert not np.allclose(before.face.heatmap_logits, after.face.heatmap_logits)
  assert not np.allclose(before.logits, after.logits)


def test_a_query_without_a_person_says_nothing():
  model = VEMD(**vemd_cases.fields(decoder='person_query', parts=('body',)))
  batch = vemd_cases.batch()
  variables = vemd_cases.make(model, batch)
  run = runner(model)

  def logits(presence, limbs):
    params = traverse_util.flatten_dict(variables['params'], sep='/')
    name = 'body_decoder/presence/bias'
    params[name] = jnp.full_like(params[name], presence)
    params['body_decoder/limbs/bias'] += limbs
    params = traverse_util.unflatten_dict(params, sep='/')
    return run({**variables, 'params': params}, batch).logits

  np.testing.assert_allclose(logits(-100, 0), logits(-100, 2), atol=1e-6)
  assert np.abs(logits(100, 0) - logits(100, 2)).max() > 1e-4


@pytest.mark.parametrize('order', ['graph', 'reference'])
def test_st_gcn_feeds_the_head_only(order):
  fields = vemd_cases.fields(
      decoder='person_query', parts=('body',), person_query={'st_gcn': order}
  )
  model, batch = VEMD(**fields), vemd_cases.batch()
  variables = vemd_cases.make(model, batch)
  run = runner(model)
  before = run(variables, batch)
  after = run(shift(variables, 'body_st_gcn'), batch)
  np.testing.assert_array_equal(before.body.limbs, after.body.limbs)
  assert not np.allclose(before.logits, after.logits)


def test_frozen_vit_gets_no_gradient_and_can_be_cached():
  fields = vemd_cases.fields(variant='ve_sd', vit={'name': 'tiny'})
  model, batch = VEMD(**fields), vemd_cases.batch()
  variables = vemd_cases.make(model, batch)

  @jax.jit
  def gradient(params):
    return jax.grad(
        lambda p: jnp.square(
            model.apply(
                {**variables, 'params': p}, batch, dataset='first', train=False
            ).logits
        ).sum()
    )(params)

  norms = {
      name: max(float(jnp.abs(g).max()) for g in jax.tree.leaves(tree))
      for name, tree in gradient(variables['params']).items()
  }
  assert norms.pop('vit') == 0
  assert norms.pop('latent_0') == 0  # In evaluation only the mean is used.
  assert min(norms.values()) > 0, norms

  live = runner(model)(variables, batch)
  features = model.apply(variables, batch['image'], method='vit_features')
  cached = {**batch, 'vit_features': features}
  stored = runner(model)(variables, cached)
  np.testing.assert_allclose(stored.logits, live.logits, atol=1e-5)
  assert live.vit_latent.shape == (2, 2, 4, 4, 8)
  cached['vit_features'] = features + 1
  other = runner(model)(variables, cached)
  assert np.abs(other.logits - live.logits).max() > 1e-4
  np.testing.assert_array_equal(
      other.latents[0].sample, stored.latents[0].sample
  )

  # With cached features, the trunk has no parameters.
  assert 'vit' not in vemd_cases.make(model, cached)['params']
  del variables['params']['vit']
  with pytest.raises(ValueError, match="expected batch\\['vit_features'\\]"):
    runner(model)(variables, batch)


def test_first_stage_trains_the_whole_vit():
  fields = vemd_cases.fields(variant='vit', vit={'name': 'tiny'})
  model, batch = VEMD(**fields), vemd_cases.batch()
  variables = vemd_cases.make(model, batch)
  assert set(variables['params']) == {'vit', 'classifier_first'}

  @jax.jit
  def run(params):
    outputs = model.apply(
        {'params': params}, batch, dataset='first', train=True
    )
    return jnp.square(outputs.logits).sum(), outputs

  gradient, outputs = jax.grad(run, has_aux=True)(variables['params'])
  assert outputs.logits.shape == (2, 3)
  assert outputs.latents == () and outputs.body is None
  assert np.abs(gradient['vit']['block_0']['linear1']['kernel']).max() > 0


@pytest.mark.parametrize('decoder', DECODERS)
def test_bfloat16_is_close(decoder):
  fields = vemd_cases.fields(
      decoder=decoder,
      parts=('body',),
      vit={'name': 'tiny'},
      head={'positions': 'learnable'},
      fusion={'method': 'gated', 'audio': 'embedding', 'text': True},
  )
  batch = vemd_cases.batch()
  rng = np.random.default_rng(0)
  batch['audio'] = jnp.asarray(rng.standard_normal((2, 3, 5)), jnp.float32)
  batch['text_embedding'] = batch['audio'][..., :4]
  model = VEMD(**{**fields, 'dtype': 'bfloat16'})
  variables = vemd_cases.make(model, batch)
  close = runner(model, train=True)(variables, batch, vemd_cases.rngs())
  for leaf in jax.tree.leaves(close):
    assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
  options = {**fields['encoder'], 'dim': 8}
  options.pop('normalization')
  pixels = normalize(batch['image'], 'imagenet').reshape(-1, 32, 32, 3)
  exact, _ = make_encoder(**options).apply(
      {name: tree['encoder_0'] for name, tree in variables.items()},
      pixels, train=True, mutable=['batch_stats'],
  )  # fmt: skip
  error = np.abs(exact.reshape(2, 2, 4, 4, 8) - close.latents[0].mean)
  assert 0 < error.max() < 0.2


def test_gradients_of_the_emotion_reach_the_decoder():
  fields = vemd_cases.fields(
      decoder='person_query', parts=('body',), person_query={'st_gcn': 'graph'}
  )
  model, batch = VEMD(**fields), vemd_cases.batch()
  variables = vemd_cases.make(model, batch)

  heads = ('limbs', 'adjacency', 'presence')
  decoder = variables['params']['body_decoder']

  @jax.jit
  def gradient(chosen):
    def loss(chosen):
      params = {**variables['params'], 'body_decoder': {**decoder, **chosen}}
      outputs = model.apply(
          {**variables, 'params': params}, batch, dataset='first', train=False
      )
      return jnp.square(outputs.logits).sum()

    return jax.grad(loss)(chosen)

  for name, tree in gradient({name: decoder[name] for name in heads}).items():
    size = np.abs(tree['kernel']).max()
    assert np.isfinite(size) and size > 0, name


def test_normalize():
  image = np.array([[[0, 128, 255]]], np.uint8)
  got = normalize(jnp.asarray(image), 'imagenet')
  want = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(
      normalize(jnp.asarray(image), 'half'), image / 127.5 - 1, atol=1e-6
  )
  np.testing.assert_allclose(
      normalize(jnp.asarray(image), 'none'), image / 255, rtol=1e-6
  )
  raw = jnp.array([[[-1.5, 0.2, 300.0]]])
  np.testing.assert_array_equal(normalize(raw, 'none'), raw)
  with pytest.raises(ValueError, match="normalization is 'openai'"):
    normalize(raw, 'openai')


@pytest.mark.parametrize(
    'key, value',
    [
        ('variant', 've_mdsr'),
        ('decoder', 'heatmaps'),
        ('num_encoders', 3),
        ('parts', ('hands',)),
        ('fusion', {'audio': 'wav'}),
    ],
)
def test_unknown_values_are_named(key, value):
  model = VEMD(**vemd_cases.fields(**{key: value}))
  with pytest.raises(ValueError, match=f'config.model.{key}'):
    vemd_cases.make(model, vemd_cases.batch())


def test_unknown_dataset_is_named():
  model = VEMD(**vemd_cases.fields())
  with pytest.raises(ValueError, match="dataset 'third' is not one"):
    vemd_cases.make(model, vemd_cases.batch(), dataset='third')


# --- Relations ---


def with_relations(**changes):
  options = {
      'variant': 've_md_sr',
      'parts': ('body',),
      'head': {'sr_input': 'relations', **changes.pop('head', {})},
      **changes,
  }
  if options.get('decoder') == 'person_query':
    options['person_query'] = {'initial': 'centers'}
  return vemd_cases.fields(**options)


@pytest.mark.parametrize('decoder', DECODERS)
def test_relations_are_read_from_both_decoders(decoder):
  model = VEMD(**with_relations(decoder=decoder, encoder={'skips': 1}))
  batch = vemd_cases.batch()
  variables = vemd_cases.make(model, batch)
  assert 'body_relations' in variables['params']
  run = runner(model)
  before = run(variables, batch)
  after = run(shift(variables, 'body_relations'), batch)
  assert jnp.abs(before.logits - after.logits).max() > 1e-4
  after = run(shift(variables, 'body_decoder'), batch)
  assert jnp.abs(before.logits - after.logits).max() > 1e-4


@pytest.mark.parametrize(
    'decoder',
    ['person_query', pytest.param('heatmap', marks=pytest.mark.slow)],
)
def test_how_much_of_the_emotions_gradient_reaches_the_structure(decoder):
  batch = vemd_cases.batch()
  norms = {}
  for scale in (1.0, 0.5, 0.0):
    model = VEMD(
        **with_relations(decoder=decoder, head={'structure_gradient': scale})
    )
    variables = vemd_cases.make(model, batch)

    @jax.jit
    def gradient(variables, model=model):
      def loss(params):
        outputs = model.apply(
            {**variables, 'params': params}, batch, dataset='first', train=False
        )
        return outputs.logits[:, 0].sum(), outputs.logits

      return jax.grad(loss, has_aux=True)(variables['params'])

    grads, norms[scale, 'logits'] = gradient(variables)
    norms[scale] = sum(
        float(jnp.abs(x).sum()) for x in jax.tree.leaves(grads['body_decoder'])
    )
    own = jax.tree.leaves(grads['body_relations'])
    assert any(jnp.any(x != 0) for x in own)
  assert norms[0.0] == 0 < norms[1.0]
  np.testing.assert_allclose(norms[0.5], norms[1.0] / 2, rtol=1e-3)
  np.testing.assert_allclose(
      norms[0.5, 'logits'], norms[1.0, 'logits'], rtol=1e-5, atol=1e-6
  )


def test_annotated_people_are_read_in_training():
  model = VEMD(
      **with_relations(
          decoder='person_query',
          latent={'deterministic': True},
          head={
              'teacher_forcing': True, 'dropout': 0.0, 'classifier_dropout': 0.0
          },
      )
  )  # fmt: skip
  batch = vemd_cases.batch()
  variables = vemd_cases.make(model, batch)
  rng = np.random.default_rng(1)
  shape = batch['image'].shape[:2]
  keypoints = rng.uniform(4, 28, (*shape, 3, 17, 3)).astype(np.float32)
  mask = np.ones((*shape, 3), bool)
  mask[..., 2] = False

  @jax.jit
  def run(variables, annotated, keypoints):
    def loss(params):
      outputs, _ = model.apply(
          {**variables, 'params': params},
          {
              **batch,
              'body_keypoints': keypoints,
              'body_mask': mask,
              'body_annotated': annotated,
          },
          dataset='first', train=True, rngs=vemd_cases.rngs(),
          mutable=['batch_stats'],
      )  # fmt: skip
      return outputs.teacher_sources['body'].sum(), outputs

    return jax.grad(loss, has_aux=True)(variables['params'])

  nowhere, everywhere = np.zeros(shape, bool), np.ones(shape, bool)
  # Not annotated: the decoded people.
  _, outputs = run(variables, nowhere, keypoints)
  decoded = outputs.teacher_sources['body']
  np.testing.assert_allclose(decoded, outputs.sources[:, 1], rtol=1e-5)
  # Annotated: these alone, whatever is decoded.
  grads, outputs = run(variables, everywhere, keypoints)
  true = outputs.teacher_sources['body']
  assert jnp.abs(true - decoded).max() > 1e-4
  assert all((x == 0).all() for x in jax.tree.leaves(grads['body_decoder']))
  assert any((x != 0).any() for x in jax.tree.leaves(grads['body_relations']))
  _, other = run(shift(variables, 'body_decoder'), everywhere, keypoints)
  assert jnp.abs(other.sources - outputs.sources).max() > 1e-4
  np.testing.assert_allclose(
      other.teacher_sources['body'], true, rtol=1e-4, atol=1e-5
  )
  _, other = run(variables, everywhere, keypoints[:, :, ::-1])
  assert jnp.abs(other.teacher_sources['body'] - true).max() > 1e-4
  # Prediction and evaluation read what is decoded.
  assert runner(model)(variables, batch).teacher_sources is None
