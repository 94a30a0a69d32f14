"""Late fusion: missing modalities have no effect."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import vemd_cases
from vemd_jax.models import fusion
from vemd_jax.models.vemd import VEMD

METHODS = ('concat', 'attention', 'gated')
ALL = jnp.ones(3, bool)


def inputs(seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)

  return normal(3, 4, 6), normal(3, 5, 7), normal(3, 2, 9)


def make(method):
  """(frames, audio, text, function of the available modalities)."""
  frames, audio, text = inputs()
  module = fusion.Fusion(('audio', 'text'), method, dim=8)
  everything = {'audio': (audio, ALL), 'text': (text, ALL)}
  shapes = jax.eval_shape(module.init, jax.random.key(0), frames, everything)
  run = functools.partial(jax.jit(module.apply), vemd_cases.fill(shapes))
  return frames, audio, text, run


@pytest.mark.parametrize('method', METHODS)
def test_masked_is_as_if_it_had_never_been_there(method):
  frames, audio, text, run = make(method)
  nobody = jnp.zeros(3, bool)
  got = run(frames, {'audio': (1e3 * audio, nobody), 'text': (text, ALL)})
  want = run(frames, {'text': (text, ALL)})
  np.testing.assert_allclose(got, want, atol=1e-6)
  neither = run(frames, {'audio': (audio, nobody), 'text': (text, nobody)})
  np.testing.assert_allclose(neither, run(frames, {}), atol=1e-6)
  np.testing.assert_array_equal(neither[..., :6], frames)
  assert not neither[..., 6:].any()


@pytest.mark.parametrize('method', METHODS)
def test_each_sample_has_its_own_mask(method):
  frames, audio, text, run = make(method)
  mask = jnp.array([True, False, True])
  both = run(frames, {'audio': (audio, ALL), 'text': (text, ALL)})
  one = run(frames, {'text': (text, ALL)})
  mixed = run(frames, {'audio': (audio, mask), 'text': (text, ALL)})
  np.testing.assert_allclose(mixed[0], both[0], atol=1e-6)
  np.testing.assert_allclose(mixed[1], one[1], atol=1e-6)
  np.testing.assert_allclose(mixed[2], both[2], atol=1e-6)
  assert np.abs(both - one).max() > 1e-2


@pytest.mark.parametrize('method', METHODS)
def test_every_modality_counts(method):
  frames, audio, text, run = make(method)
  before = run(frames, {'audio': (audio, ALL), 'text': (text, ALL)})
  for changed in (
      {'audio': (audio[::-1], ALL), 'text': (text, ALL)},
      {'audio': (audio, ALL), 'text': (text[::-1], ALL)},
  ):
    assert np.abs(run(frames, changed) - before).max() > 1e-3


def test_concat_by_hand():
  frames, audio, _ = inputs()
  module = fusion.Fusion(('audio',), 'concat', dim=8)
  shapes = jax.eval_shape(
      module.init, jax.random.key(0), frames, {'audio': (audio, ALL)}
  )
  variables = vemd_cases.fill(shapes)
  got = module.apply(variables, frames, {'audio': (audio, ALL)})
  p = jax.tree.map(np.asarray, variables['params'])
  x = np.asarray(audio)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-5
  )
  x = x * p['audio_norm']['scale'] + p['audio_norm']['bias']
  x = x @ p['audio_projection']['kernel'] + p['audio_projection']['bias']
  want = np.repeat(x.mean(1, keepdims=True), 4, 1)
  np.testing.assert_allclose(got[..., 6:], want, atol=1e-5)


def test_modality_dropout_hides_and_never_shows():
  tokens = jnp.zeros((4000, 1, 1))
  mask = jnp.arange(4000) % 4 != 0
  both = {'audio': (tokens, mask), 'text': (tokens, mask)}
  dropped = fusion.drop(both, 0.3, jax.random.key(0))
  audio, text = (np.asarray(dropped[name][1]) for name in ('audio', 'text'))
  for kept in (audio, text):
    assert not kept[~np.asarray(mask)].any()
    assert abs(kept[np.asarray(mask)].mean() - 0.7) < 0.03
  assert (audio != text).any()
  assert not fusion.drop(both, 1.0, jax.random.key(0))['text'][1].any()


@pytest.mark.parametrize('length', [8, 17])
def test_mel_encoder(length):
  mel = jax.random.normal(jax.random.key(0), (2, length, 12))
  module = fusion.MelEncoder(8)
  init = functools.partial(module.init, train=False)
  variables = vemd_cases.fill(jax.eval_shape(init, jax.random.key(0), mel))
  run = jax.jit(functools.partial(module.apply, variables, train=False))
  tokens = run(mel)
  assert tokens.shape == (2, -(-length // 8), 8)
  # The other sample has no effect.
  np.testing.assert_allclose(
      run(mel.at[1].set(0.0))[0], tokens[0], atol=1e-6
  )
  assert np.abs(run(mel.at[0, -1].add(1.0))[0] - tokens[0]).max() > 1e-4


def test_unknown_method_is_named():
  frames, audio, _ = inputs()
  with pytest.raises(ValueError, match=r"fusion\.method is 'sum'"):
    fusion.Fusion(('audio',), 'sum').init(
        jax.random.key(0), frames, {'audio': (audio, ALL)}
    )


# In the whole model.


def model(**options):
  fields = vemd_cases.fields(
      variant='ve_sd',
      fusion={'method': 'attention', 'audio': 'mel', 'text': True, **options},
  )
  batch = vemd_cases.batch()
  rng = np.random.default_rng(3)
  batch['audio'] = jnp.asarray(rng.standard_normal((2, 9, 6)), jnp.float32)
  batch['text_embedding'] = jnp.asarray(
      rng.standard_normal((2, 3, 5)), jnp.float32
  )
  batch['audio_mask'] = jnp.array([True, False])
  batch['text_mask'] = jnp.array([False, True])
  return VEMD(**fields), batch


def test_missing_values_never_reach_logits_or_gradients():
  vemd, batch = model()
  init = functools.partial(vemd.init, dataset='first', train=False)
  variables = vemd_cases.fill(jax.eval_shape(init, jax.random.key(0), batch))

  @jax.jit
  def run(variables, batch):
    def loss(params):
      outputs = vemd.apply(
          {**variables, 'params': params}, batch, dataset='first', train=False
      )
      return jnp.square(outputs.logits).sum(), outputs.logits

    (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(
        variables['params']
    )
    return logits, gradient

  logits, gradient = run(variables, batch)
  broken = {
      **batch,
      'audio': batch['audio'].at[1].set(jnp.nan),
      'text_embedding': batch['text_embedding'].at[0].set(jnp.inf),
  }
  got, got_gradient = run(variables, broken)
  np.testing.assert_array_equal(got, logits)
  jax.tree.map(np.testing.assert_array_equal, got_gradient, gradient)
  assert np.abs(gradient['audio_encoder']['projection']['kernel']).max() > 0


def test_modality_dropout_only_in_training():
  vemd, batch = model(modality_dropout=1.0)
  init = functools.partial(vemd.init, dataset='first', train=False)
  variables = vemd_cases.fill(jax.eval_shape(init, jax.random.key(0), batch))

  @functools.partial(jax.jit, static_argnums=1)
  def logits(batch, train):
    outputs, _ = vemd.apply(
        variables, batch, dataset='first', train=train,
        rngs=vemd_cases.rngs(), mutable=['batch_stats'],
    )  # fmt: skip
    return outputs.logits

  other = {**batch, 'audio': -batch['audio']}
  assert not np.array_equal(logits(batch, False), logits(other, False))
  np.testing.assert_array_equal(logits(batch, True), logits(other, True))


def test_first_batch_must_show_the_modalities():
  vemd, batch = model()
  del batch['text_embedding']
  with pytest.raises(ValueError, match="uses text, but the batch has no 'text"):
    jax.eval_shape(
        lambda k: vemd.init(k, batch, dataset='first', train=False),
        jax.random.key(0),
    )
