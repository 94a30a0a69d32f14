"""The authors' weights, imported, against the authors' outputs."""

import functools
import json
import pathlib
import re
import subprocess
import sys

import golden_rule
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.models import vemd_cases
from vemd_jax import config as config_lib
from vemd_jax import losses, matching, optim
from vemd_jax.models import encoders
from vemd_jax.models.torch import convert as torch_import
from vemd_jax.models.torch import layout, vemd_layout
from vemd_jax.models.torch.read import read
from vemd_jax.models.vemd import VEMD


def prepare(golden, **changes):
  """(model, imported variables, batch) of a golden file."""
  inputs = golden.inputs()
  images = inputs.get('inputs', inputs.get('images'))
  fields = vemd_cases.reference(
      golden.config['args'], golden.config['variant'], **changes
  )
  variables = torch_import.import_vemd(golden.state_dict(), fields)
  batch = {
      'image': jnp.asarray(np.moveaxis(images, 2, -1)),
      'vit_features': jnp.asarray(inputs['vit_feat']),
  }
  return VEMD(**fields), variables, batch


def apply(model, variables, batch, train=False, dataset='vgaf'):
  @jax.jit
  def run(variables, batch):
    return model.apply(
        variables, batch, dataset=dataset, train=train, mutable=['batch_stats']
    )[0]

  return run(variables, batch)


def joined_latent(outputs):
  """Latent and ViT latent as the authors' `z`: [N, channels, h, w]."""
  parts = [latent.sample for latent in outputs.latents] + [outputs.vit_latent]
  z = jnp.concatenate(parts, -1)
  return jnp.moveaxis(z.reshape(-1, *z.shape[2:]), -1, 1)


def test_person_query_model_is_the_reference():
  golden = golden_rule.load_golden('c09_detr_base')
  outputs = apply(*prepare(golden))
  golden.check('eval__preds_emotion', outputs.logits)
  golden.check('eval__z', joined_latent(outputs))
  for part, name in (('body', 'person'), ('face', 'face')):
    structure = getattr(outputs, part)
    frames, queries = 6, structure.limbs.shape[2]
    golden.check(
        f'eval__skeleton_{name}_pred',
        structure.limbs.reshape(frames, queries, -1),
    )
    adjacency = jax.nn.sigmoid(structure.adjacency_logits)
    golden.check(
        f'eval__adjacency_{name}_pred',
        adjacency.reshape(frames, queries, -1),
    )


# In training mode the model of queries is compared, too, with its gradients.
@pytest.mark.parametrize(
    'mode', ['eval', pytest.param('train', marks=pytest.mark.slow)]
)
def test_heatmap_model_is_the_reference(mode):
  golden = golden_rule.load_golden('c09_heatmap_proj')
  outputs = apply(*prepare(golden), train=mode == 'train')
  golden.check(f'{mode}__preds_emotion', outputs.logits)
  golden.check(f'{mode}__z', joined_latent(outputs))
  for part, name in (('body', 'person'), ('face', 'face')):
    maps = jax.nn.sigmoid(getattr(outputs, part).heatmap_logits[-1])
    maps = maps.reshape(6, *maps.shape[2:])
    key = f'{mode}__skeleton_{name}_pred'
    if mode == 'train':
      golden.check(f'{key}_stage5_limbsum_of_sigmoid', maps.sum(-1))
    else:
      golden.check(f'{key}_limbsum', maps.sum(-1))
      frames = len(golden.arrays[f'{key}_frames0_3'])
      stored = golden_rule.channels_first(maps[::3][:frames])
      golden.check(f'{key}_frames0_3', stored)


def train_step(golden):
  """Loss terms, norms of gradient and update by torch names, of their step."""
  model, variables, batch = prepare(golden)
  keypoints = np.random.default_rng(1120).random((2, 2, 3, 72)) * 224
  keypoints = keypoints.astype(np.float32)
  gone = np.random.default_rng(1121).random(keypoints.shape) < 0.15
  adjacency = np.random.default_rng(1122).random((2, 2, 3, 18, 18)) < 0.2
  people = matching.People(
      jnp.asarray(keypoints / 224).reshape(2, 2, 3, 18, 4),
      jnp.asarray(~gone).reshape(2, 2, 3, 18, 4),
      jnp.asarray(adjacency, jnp.float32),
      jnp.ones((2, 2, 3), bool),
  )
  prior = golden.inputs()['prior']
  label = jnp.asarray(golden.config['inputs']['label'])

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params):
    outputs, _ = model.apply(
        {**variables, 'params': params},
        batch,
        dataset='vgaf',
        train=True,
        mutable=['batch_stats'],
    )
    log_p = jax.nn.log_softmax(outputs.logits)
    pose, match = matching.set_loss(
        outputs.body.limbs, outputs.body.adjacency_logits, people
    )
    z = joined_latent(outputs)
    terms = {
        'loss_cls': -jnp.take_along_axis(log_p, label[:, None], 1).mean(),
        'loss_pose': 0.1 * pose.mean(),
        'loss_mmd': losses.mmd_contributions(z, prior).mean(),
    }
    return sum(terms.values()), (terms, match, outputs.logits, z)

  (total, aux), gradient = loss(variables['params'])
  settings = config_lib.default().optim
  settings.learning_rate = 1e-3
  optimizer = optim.make_optimizer(settings, 1)
  update, _ = optimizer.update(
      gradient, optimizer.init(variables['params']), variables['params']
  )
  return total, aux, torch_norms(gradient, golden), torch_norms(update, golden)


def torch_norms(tree, golden):
  """Joint norm of the leaves that come from one torch tensor."""
  squares = {}
  fields = vemd_cases.reference(golden.config['args'], 'detr')
  tree = traverse_util.flatten_dict(tree)
  for row in vemd_layout.vemd_rows(fields, ('vgaf',), (7, 7, 16), False):
    if row.collection == 'params':
      part = np.square(np.asarray(tree.pop(row.path), np.float64)).sum()
      squares[row.torch] = squares.get(row.torch, 0.0) + part
  assert not tree
  return {name: value**0.5 for name, value in squares.items()}


@pytest.mark.usefixtures('standard_promotion')
def test_training_step_is_the_reference():
  golden = golden_rule.load_golden('c11_train_step_detr')
  total, (terms, match, logits, z), norms, updates = train_step(golden)
  arrays, config = golden.arrays, golden.config
  for name, value in terms.items():
    np.testing.assert_allclose(value, arrays[name], rtol=2e-5, err_msg=name)
  np.testing.assert_allclose(total, arrays['total'], rtol=2e-5)
  np.testing.assert_allclose(logits, arrays['preds_emotion'], atol=5e-6)
  np.testing.assert_allclose(z, arrays['z'], atol=5e-5)
  theirs = np.argsort(arrays['gt_indices'], 1)
  theirs = np.take_along_axis(arrays['pred_indices'], theirs, 1)
  np.testing.assert_array_equal(match.query.reshape(4, 3), theirs)

  names = config['param_names']
  assert set(names) == set(norms)
  ours = np.array([norms[name] for name in names])
  truth = np.maximum(arrays['grad_l2_f64'], 0)
  real = truth > 1e-6 * truth.max()
  np.testing.assert_allclose(
      ours[real], truth[real], rtol=10 * config['f32_f64_grad_rel_max']
  )
  # Gradients whose true value is 0 are rounding noise.
  assert ours[~real].max() < 1e-5
  np.testing.assert_allclose(
      np.sqrt(np.square(ours).sum()), arrays['grad_norm_f64'], rtol=2e-5
  )
  # Adam's first update is the learning rate for each element that has a
  # gradient at all; which of the tiny ones do depends on rounding.
  ours = np.array([updates[name] for name in names])
  np.testing.assert_allclose(
      ours[real], arrays['adam_delta_l2_f64'][real], rtol=2e-3
  )


# The table covers every model.

# Leaves that the reference does not have.
OURS = re.compile(
    r'params/(latent_\d/|(body|face)_decoder/presence/|head_\w+/fusion/|audio_)'
)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'variant': 've_sd', 'head': {'sr_input': 'raw'}},
        {'variant': 've_md', 'num_encoders': 2},
        {'parts': ('body',)},
        {
            'decoder': 'person_query',
            'parts': ('face',),
            'head': {'sr_input': 'raw'},
        },
        {
            'decoder': 'person_query',
            'num_encoders': 2,
            'person_query': {'st_gcn': 'reference', 'positions': 'learned'},
            'head': {'positions': 'learnable'},
        },
        {'variant': 've_md', 'head': {'positions': 'relative'}},
        {'vit': {'name': 'tiny'}},
        {'encoder': {'name': 'resnet101'}, 'variant': 've_sd'},
        {'encoder': {'name': 'resnet152', 'width': 64}, 'variant': 've_sd'},
        {'encoder': {'name': 'vit_b'}, 'variant': 've_sd'},
        {'encoder': {'name': 'vit_l'}, 'variant': 've_sd'},
        {'fusion': {'method': 'gated', 'audio': 'mel', 'text': True}},
        {'classes': (('first', 3), ('second', 2), ('third', 0))},
    ],
)
def test_every_leaf_has_its_tensor(changes):
  fields = vemd_cases.fields(**changes)
  side = 224 if fields['encoder']['name'] != 'residual' else 32
  shapes, grid = torch_import.model_shapes(fields, side, None)
  emotions = [name for name, count in fields['classes'] if count]
  rows = vemd_layout.vemd_rows(fields, emotions, grid, True)
  leaves = ['/'.join((row.collection, *row.path)) for row in rows]
  assert len(leaves) == len(set(leaves))
  assert set(leaves) == {name for name in shapes if not OURS.match(name)}


def small():
  """(state dict, fields) of the authors' smallest PersonQuery model."""
  golden = golden_rule.load_golden('c11_train_step_detr')
  fields = vemd_cases.reference(golden.config['args'], 'detr')
  return golden.state_dict(), fields


def equal(ours, theirs):
  ours = traverse_util.flatten_dict(ours, sep='/')
  theirs = traverse_util.flatten_dict(theirs, sep='/')
  assert ours.keys() == theirs.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_everything_that_does_not_fit_is_named_at_once():
  tensors, fields = small()
  first = tensors.pop('encoders.0.conv_in.weight')
  last = tensors.pop('decoder_emotions.vgaf.classifier.0.bias')
  tensors['encoders.0.extra.weight'] = first
  tensors['something.else'] = last
  tensors['vit_heads.vgaf.bias'] = np.zeros(7, np.float32)
  tensors['decoder_skeleton.query_embed.weight'] = np.zeros((5, 16), np.float32)
  with pytest.raises(ValueError) as error:
    torch_import.import_vemd(tensors, fields)
  text = str(error.value)
  for line in (
      '2 missing: decoder_emotions.vgaf.classifier.0.bias, '
      'encoders.0.conv_in.weight',
      '2 unexpected: encoders.0.extra.weight, something.else',
      'decoder_skeleton.query_embed.weight [5, 16] for '
      'params/body_decoder/queries [6, 16]',
      'vit_heads.vgaf.bias [7] for params/vit_projection_vgaf/bias [784]',
  ):
    assert line in text, text
  assert '\n' not in text


def test_models_that_the_reference_has_not():
  tensors, fields = small()
  with pytest.raises(ValueError, match=r'decoder is .my\.module:Decoder'):
    torch_import.import_vemd(
        tensors, {**fields, 'decoder': 'my.module:Decoder'}
    )
  # A leaf of the table that this model does not have.
  tensors, shapes = {'a': np.zeros(3)}, {'params/b/bias': (3,)}
  rows = layout.linear_rows('x', 'c')[1:]
  with pytest.raises(ValueError, match='c/bias, which is not there'):
    torch_import.convert(
        [rows[0]._replace(torch='a')], tensors, shapes, [r'never']
    )


def test_names_of_data_parallel_and_modules_that_never_run():
  tensors, fields = small()
  want = torch_import.import_vemd(tensors, fields)
  del fields['classes']  # They are determined by the file.
  more = {f'module.{name}': tensor for name, tensor in tensors.items()}
  for name in (
      'decoder_emotions.vgaf.pos_enc.pe',
      'decoder_skeleton.pos_encoder.pe',
      'decoder_emotions.vgaf.kp_face_proj.1.weight',
      'vit_heads.mersemi.weight',
  ):
    more[f'module.{name}'] = np.zeros((1, 2), np.float32)
  equal(torch_import.import_vemd(more, fields), want)
  # Linears of ViT features, in a model that is not given any.
  fields['vit']['name'] = 'none'
  without = torch_import.import_vemd(more, fields)
  assert want['params'].keys() - without['params'] == {'vit_projection_vgaf'}
  more['module.stgcn_person.stgcn.bn.weight'] = np.zeros(4, np.float32)
  with pytest.raises(ValueError, match='1 unexpected: stgcn_person'):
    torch_import.import_vemd(more, fields)


def test_what_only_ours_has_is_left_to_training():
  tensors, fields = small()
  want = torch_import.import_vemd(tensors, fields)
  fields['latent']['deterministic'] = False
  fields['person_query']['presence'] = True
  equal(torch_import.import_vemd(tensors, fields), want)


def test_second_encoder_and_its_part_of_the_joined_latent():
  golden = golden_rule.load_golden('c11_train_step_detr')
  args = {**golden.config['args'], 'two_encoders': True}
  fields = vemd_cases.reference(args, 'detr')
  tensors = golden.state_dict()
  for name in [n for n in tensors if n.startswith('encoders.0.')]:
    other = name.replace('encoders.0.', 'encoders.1.')
    tensors[other] = golden_rule.rule(other, tensors[name].shape)
  name = 'decoder_emotions.vgaf.linear_reduction.weight'
  tensors[name] = golden_rule.rule(name, (16, 3 * 784))
  params = torch_import.import_vemd(tensors, fields)['params']
  np.testing.assert_array_equal(
      params['encoder_1']['stem']['kernel'],
      tensors['encoders.1.conv_in.weight'].transpose(2, 3, 1, 0),
  )
  # Concatenated latents: the authors' are channels first, ours channels last.
  z = golden_rule.random_input(0, (3, 16, 7, 7))
  want = tensors[name] @ z.ravel()
  ours = z.transpose(0, 2, 3, 1).ravel()
  kernel = params['head_vgaf']['reduction']['kernel']
  np.testing.assert_allclose(ours @ kernel, want, atol=1e-4)


# Trunks.


def torchvision_name(name):
  """The reference's nn.Sequential names -> torchvision's."""
  stem = {'0': 'conv1', '1': 'bn1', '4': 'layer1', '5': 'layer2',
          '6': 'layer3', '7': 'layer4'}  # fmt: skip
  _, index, rest = name.split('.', 2)
  return f'{stem[index]}.{rest}'


def test_resnet_of_torchvision():
  golden = golden_rule.load_golden('c02_encoder_resnet50')
  theirs = golden.state_dict()
  tensors = {
      torchvision_name(name): tensor
      for name, tensor in theirs.items()
      if name.startswith('resnet.')
  }
  tensors['fc.weight'] = np.zeros((1000, 2048), np.float32)
  fields = vemd_cases.fields(
      encoder={'name': 'resnet50', 'width': 64}, num_encoders=2
  )
  ours = torch_import.import_resnet(tensors, fields)
  rows = layout.resnet_encoder_rows(encoders.RESNETS['resnet50'])
  want = layout.to_variables(rows, theirs)
  for collection in ('params', 'batch_stats'):
    assert set(ours[collection]) == {'encoder_0', 'encoder_1'}
    for encoder in ours[collection].values():
      equal(encoder['trunk'], want[collection]['trunk'])
  del tensors['bn1.bias']
  with pytest.raises(ValueError, match=r'1 missing: bn1\.bias'):
    torch_import.import_resnet(tensors, fields)
  with pytest.raises(ValueError, match=r"encoder\.name is 'residual'"):
    torch_import.import_resnet(tensors, vemd_cases.fields())


def clip_names(tensors):
  """timm's names -> those of Hugging Face's CLIP vision model."""
  simple = {
      'cls_token': 'embeddings.class_embedding',
      'pos_embed': 'embeddings.position_embedding.weight',
      'patch_embed.proj.weight': 'embeddings.patch_embedding.weight',
      'norm_pre': 'pre_layrnorm',
      'norm': 'post_layernorm',
      'norm1': 'layer_norm1',
      'norm2': 'layer_norm2',
      'attn.proj': 'self_attn.out_proj',
  }
  result = {}
  for name, tensor in tensors.items():
    block = re.match(r'blocks\.(\d+)\.(.*)', name)
    prefix = f'encoder.layers.{block[1]}.' if block else ''
    name = block[2] if block else name
    layer, _, kind = name.rpartition('.')
    if layer == 'attn.qkv':
      for part, third in zip('qkv', np.split(tensor, 3)):
        result[f'{prefix}self_attn.{part}_proj.{kind}'] = third
      continue
    if name in simple:
      # The two tokens have no leading axes of size 1.
      tensor = tensor[0, 0] if name == 'cls_token' else tensor
      tensor = tensor[0] if name == 'pos_embed' else tensor
      name = simple[name]
    elif layer in simple:
      name = f'{simple[layer]}.{kind}'
    result[prefix + name] = tensor
  return {f'vision_model.{name}': tensor for name, tensor in result.items()}


def test_vit_of_timm_and_of_hugging_face():
  golden = golden_rule.load_golden('c10_tiny_vit')
  tensors = golden.state_dict()
  fields = vemd_cases.fields(
      variant='vit', vit={'name': 'tiny', 'normalization': 'none'}
  )
  variables = torch_import.import_vit(tensors, fields, image_size=28)
  image = golden_rule.channels_last(golden.inputs()['x'])[:, None]
  pooled = jax.jit(
      functools.partial(VEMD(**fields).apply, method='vit_features')
  )(variables, jnp.asarray(image))
  golden.check('eval__pooled', pooled[:, 0])

  clip = clip_names(tensors)
  clip['text_model.final_layer_norm.weight'] = np.zeros(3, np.float32)
  clip['logit_scale'] = np.zeros((), np.float32)
  equal(torch_import.import_vit(clip, fields, image_size=28), variables)
  # The authors' first stage: the trunk, its pooling and its classifier.
  stage1 = {f'module.vit.{name}': tensor for name, tensor in tensors.items()}
  stage1['module.att_pooling.attention.0.weight'] = np.zeros((1, 32))
  stage1['module.linear_out.0.weight'] = np.zeros((3, 32))
  equal(torch_import.import_vit(stage1, fields, image_size=28), variables)

  with pytest.raises(ValueError, match='1 misshapen: pos_embed'):
    torch_import.import_vit(tensors, fields, image_size=42)
  with pytest.raises(ValueError, match='neither a frozen ViT'):
    torch_import.import_vit(tensors, vemd_cases.fields())


def test_names_of_the_real_vit():
  golden = golden_rule.load_golden('c10_vitl_manifest')
  names = {name for name, *_ in golden.manifest}
  fields = vemd_cases.fields(vit={'name': 'clip_vit_l_14'})
  rows = vemd_layout.vemd_rows(fields, (), (4, 4, 8), True)
  prefix = 'vit_model.vit.'
  assert names == {
      row.torch.removeprefix(prefix)
      for row in rows
      if row.torch.startswith(prefix)
  }


# Files.


def write_safetensors(path, tensors, types):
  header, data = {'__metadata__': {'format': 'pt'}}, b''
  for name, tensor in tensors.items():
    raw = tensor.tobytes()
    header[name] = {
        'dtype': types[name],
        'shape': list(tensor.shape),
        'data_offsets': [len(data), len(data) + len(raw)],
    }
    data += raw
  head = json.dumps(header).encode()
  path.write_bytes(len(head).to_bytes(8, 'little') + head + data)


def test_read_npz_and_safetensors(tmp_path):
  tensors = {
      'a.weight': golden_rule.random_input(0, (2, 3)),
      'half': golden_rule.random_input(1, (5,)).astype(np.float16),
      'brain': np.asarray(jnp.arange(4, dtype=jnp.bfloat16) / 4),
      'count': np.array(7, np.int64),
      'empty': np.zeros((0, 4), np.float32),
  }
  types = dict(zip(tensors, ('F32', 'F16', 'BF16', 'I64', 'F32')))
  path = tmp_path / 'weights.safetensors'
  write_safetensors(path, tensors, types)
  got = read(path)
  assert got.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert got[name].shape == tensor.shape
    np.testing.assert_array_equal(got[name], tensor.astype(got[name].dtype))
  assert got['brain'].dtype == got['half'].dtype == np.float32

  del tensors['brain']
  np.savez(tmp_path / 'weights.npz', **tensors)
  got = read(tmp_path / 'weights.npz')
  np.testing.assert_array_equal(got['a.weight'], tensors['a.weight'])


def test_files_that_cannot_be_read_are_named(tmp_path):
  for name in ('broken.npz', 'broken.safetensors', 'weights.onnx'):
    (tmp_path / name).write_bytes(b'this is not a file of weights')
    with pytest.raises(ValueError, match=re.escape(name)):
      read(tmp_path / name)
  with pytest.raises(FileNotFoundError, match=r'nothing\.npz'):
    read(tmp_path / 'nothing.npz')


def test_read_torch(tmp_path):
  torch = pytest.importorskip('torch')
  weights = {'module.a': torch.arange(3.0), 'b': torch.ones(2).half()}
  torch.save({'epoch': 3, 'model_state_dict': weights}, tmp_path / 'w.tar')
  torch.save(weights, tmp_path / 'w.pt')
  for name in ('w.tar', 'w.pt'):
    got = read(tmp_path / name)
    assert got.keys() == weights.keys()
    np.testing.assert_array_equal(got['module.a'], [0, 1, 2])
    assert got['b'].dtype == np.float32
  torch.save({'a': pathlib.PurePosixPath('x')}, tmp_path / 'code.pt')
  with pytest.raises(ValueError, match=r'code\.pt: torch\.load'):
    read(tmp_path / 'code.pt')


def test_command_line_writes_a_checkpoint(tmp_path):
  from vemd_jax import weights


  tensors, fields = small()
  np.savez(tmp_path / 'weights.npz', **tensors)
  del fields['classes']
  fields['encoder'].pop('token_order', None)
  (tmp_path / 'recipe.py').write_text(
      'from vemd_jax import config as config_lib\n'
      'def get_config(words=""):\n'
      '  config = config_lib.default()\n'
      f'  config.model.update({fields!r})\n'
      '  return config_lib.finish(config, words)\n'
  )

  def call(file):
    return subprocess.run(
        [
            sys.executable, '-m', 'vemd_jax.models.torch_import',
            str(tmp_path / file), f'--config={tmp_path / "recipe.py"}',
            f'--out={tmp_path / "out"}',
        ],
        capture_output=True, text=True, cwd=golden_rule.SMALL.parents[1],
    )  # fmt: skip

  result = call('weights.npz')
  assert result.returncode == 0, result.stderr
  assert 'parameters from' in result.stdout
  equal(
      weights.load_variables(tmp_path / 'out'),
      torch_import.import_vemd(tensors, fields),
  )
  result = call('missing.npz')
  assert result.returncode == 1
  assert result.stderr.strip().splitlines()[-1].startswith('error: no weights')
