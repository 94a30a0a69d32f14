"""The exported model: what is in it, what it computes, how it is read."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import group_scenes
from tests.artifact.test_gates import decoded, scene_maps
from tests.models import vemd_cases
from vemd_jax import export, inference, predict
from vemd_jax.artifact import build, read
from vemd_jax.inference import trained as trained_lib
from vemd_jax.models.vemd import VEMD

ROOT = pathlib.Path(__file__).parents[2]
BODY_LIMBS, FACE_LIMBS = 18, 83

pytestmark = pytest.mark.usefixtures('standard_promotion')


@pytest.fixture(scope='module')
def run(tiny_run, tmp_path_factory):
  """A run of the variant ve_md."""
  workdir = tmp_path_factory.mktemp('run') / 'run'
  shutil.copytree(tiny_run, workdir)
  return workdir


@pytest.fixture(scope='module')
def plain(run):
  """Its artifact without gates: path."""
  path = run.parent / 'plain.vemd'
  with jax.numpy_dtype_promotion('standard'):
    assert export.main([str(run), f'--out={path}']) == 0
  return path


@pytest.fixture(scope='module')
def photo(run):
  path = run.parent / 'photo.png'
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (6, 9, 3), np.uint8)
  cv2.imwrite(str(path), cv2.resize(image, (150, 70)))
  return path


def last_dimensions(exported):
  """The last dimension of each tensor in the StableHLO module."""
  types = re.findall(r'tensor<([0-9x?]+)x[a-z]', exported.mlir_module())
  return {t.split('x')[-1] for t in types}


def test_only_the_group_leaves(plain):
  manifest, exported, weights = read.read(plain)
  assert set(exported.platforms) == {'cpu', 'cuda', 'tpu'}
  abstain, probabilities = exported.out_avals
  assert str(abstain.shape) == '(batch,)' and abstain.dtype == bool
  assert str(probabilities.shape) == '(batch, 3)'
  main = exported.mlir_module().split('func.func public @main')[1]
  results = main.split('->', 1)[1].split('{\n')[0]
  assert sorted(re.findall(r'tensor<(.*?)>', results)) == ['?x3xf32', '?xi1']
  modules = {name.split('/')[1] for name in weights}
  assert modules == {'encoder_0', 'head_group_scenes'}
  assert manifest['model']['latent_only']
  # No tensor has a channel for each limb.
  assert not {str(BODY_LIMBS), str(FACE_LIMBS)} & last_dimensions(exported)
  size = manifest['size']
  stored = sum(np.size(x) for x in weights.values())
  assert size['parameters'] == stored < size['parameters_of_full_model']
  assert 0 < size['flops'] < size['flops_of_full_model']


def test_no_path_of_this_machine_is_in_it(plain):
  content = plain.read_bytes()
  for text in (str(ROOT), str(plain.parent), 'site-packages'):
    assert text.encode() not in content, text
  # Names of modules would be in the program; the archive has .npy files.
  program = np.load(plain)['model.stablehlo']
  assert not re.search(rb'\.py\b', program)


def test_it_computes_what_the_run_computes(run, plain):
  _, exported, weights = read.read(plain)
  model = inference.load(str(run))
  rng = np.random.default_rng(1)
  for batch, size in (3, (50, 170)), (1, (96, 96)):
    images = rng.integers(0, 256, (batch, *size, 3), np.uint8)
    prepared = np.stack([model.prepare([image]) for image in images])
    outputs = exported.call(weights, images[:, None])
    np.testing.assert_allclose(
        outputs['probabilities'], model.probabilities(prepared), atol=1e-6
    )
    assert not outputs['abstain'].any()


def test_rounding_and_averaging(run):
  trained = trained_lib.load(str(run))
  this = build.prepare(trained, build.Gates(digits=2, clips=2))
  single = build.prepare(trained, build.Gates())
  side = trained.data.image_size
  rng = np.random.default_rng(2)
  image = rng.integers(0, 256, (1, 2, side, side, 3), np.uint8)
  image[:, 1] //= 8
  found = jax.jit(this.call)(this.weights, image)['probabilities']
  parts = jax.jit(single.call)(single.weights, image[0, :, None])
  parts = parts['probabilities']
  assert np.abs(parts[0] - parts[1]).max() > 1e-4
  np.testing.assert_allclose(found[0], np.round(parts.mean(0), 2), atol=1e-6)


class PerfectModel:
  """Decodes the true heatmaps of the scene that pixel 0 numbers."""

  maps: dict

  def __init__(self, **fields):
    self.classes = fields['classes']

  def apply(self, variables, batch, *, dataset, train):
    image = batch['image']
    index = image[:, 0, 0, 0, 0].astype(jnp.int32)
    chosen = {k: jnp.asarray(v)[index] for k, v in self.maps.items()}
    outputs = decoded(self.maps)
    parts = {
        part: getattr(outputs, part).replace(
            heatmap_logits=jnp.asarray(
                getattr(outputs, part).heatmap_logits
            )[:, index]
        )
        for part in chosen
    }
    logits = jnp.tile(variables['params']['bias'][None], (len(image), 1))
    return outputs.replace(logits=logits, **parts)


@pytest.mark.parametrize(
    'gates', [build.Gates(min_people=2), build.Gates(max_share=0.8)]
)
def test_a_picture_of_one_person_is_refused(run, gates, monkeypatch):
  alone, group = scene_maps(1, 4), scene_maps(6, 4)
  maps = {k: np.concatenate([alone[k], group[k]]) for k in alone}
  monkeypatch.setattr(build, 'VEMD', PerfectModel)
  monkeypatch.setattr(PerfectModel, 'maps', maps, raising=False)
  bias = jnp.array([0.0, 1.0, 2.0])
  trained = trained_lib.load(str(run))
  trained = trained._replace(variables={'params': {'bias': bias}})
  side = trained.data.image_size
  image = np.zeros((8, 1, side, side, 3), np.uint8)
  image[:] = np.arange(8).reshape(8, 1, 1, 1, 1)
  this = build.prepare(trained, gates)
  assert not this.latent_only
  outputs = jax.jit(this.call)(this.weights, image)
  np.testing.assert_array_equal(outputs['abstain'], np.arange(8) < 4)
  np.testing.assert_array_equal(outputs['probabilities'][:4], 0)
  np.testing.assert_allclose(
      outputs['probabilities'][4:], np.tile(jax.nn.softmax(bias), (4, 1)),
      rtol=1e-5,
  )  # fmt: skip
  # One picture of one person among those of a clip suffices.
  clip = build.prepare(trained, gates._replace(clips=2))
  pairs = image[[4, 0, 5, 6]].reshape(2, 2, side, side, 3)
  abstain = jax.jit(clip.call)(clip.weights, pairs)['abstain']
  assert abstain.tolist() == [True, False]


def test_gated_artifact(run, photo, capsys):
  """It has the decoders, but no other outputs; it abstains in `predict`."""
  path = run.parent / 'gated.vemd'
  # More people than any image has.
  assert export.main([str(run), f'--out={path}', '--min_people=999']) == 0
  assert 'with structural decoders' in capsys.readouterr().out
  manifest, exported, weights = read.read(path)
  assert [len(a.shape) for a in exported.out_avals] == [1, 2]
  assert {str(BODY_LIMBS), str(FACE_LIMBS)} <= last_dimensions(exported)
  assert any('decoder' in name for name in weights)
  assert not manifest['model']['latent_only']
  assert manifest['gates']['min_people'] == 999
  out = run.parent / 'gated.csv'
  for argv in ['--json'], [f'--out={out}'], []:
    assert predict.main([f'--artifact={path}', *argv, str(photo)]) == 0
  printed = capsys.readouterr().out.splitlines()
  assert json.loads(printed[0]) == {
      'file': str(photo), 'label': 'abstained', 'probabilities': {}
  }  # fmt: skip
  assert out.read_text().splitlines()[1] == f'{photo},,abstained,,,,'
  assert printed[-1].split() == [str(photo), 'abstained']


def test_predict_and_the_program_of_the_docs(run, plain, photo, capsys):
  """Both say what the run says, and neither imports the model's code."""
  assert predict.main([f'--workdir={run}', '--json', str(photo)]) == 0
  wanted = json.loads(capsys.readouterr().out)['probabilities']
  text = (ROOT / 'docs' / 'export.md').read_text()
  (program,) = re.findall(r'```python\n(.*?)```', text, re.S)
  assert len([x for x in program.splitlines() if x]) <= 17
  script = f'''
import sys
sys.argv[1:] = {[str(plain), str(photo)]!r}
sys.modules['vemd_jax'] = None
exec({program!r})
del sys.modules['vemd_jax']
sys.path.insert(0, {str(ROOT)!r})
from vemd_jax import predict
assert predict.main(['--artifact', {str(plain)!r}, '--json', sys.argv[2]]) == 0
bad = [m for m in sys.modules if m.startswith(('vemd_jax.models.', 'flax'))]
assert not bad, bad
'''
  process = subprocess.run(
      [sys.executable, '-c', script], cwd=plain.parent, capture_output=True,
      text=True, check=False,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  *lines, answer = process.stdout.splitlines()
  assert json.loads(answer)['probabilities'] == pytest.approx(wanted, abs=2e-6)
  said = {name: float(p) for name, p in map(str.split, lines)}
  assert said == pytest.approx(wanted, abs=1e-4)


def damaged(path, to, change):
  """Copies an artifact with changed parts."""
  with zipfile.ZipFile(path) as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  change(parts)
  with zipfile.ZipFile(to, 'w') as archive:
    for name, data in parts.items():
      archive.writestr(name, data)
  return to


def test_damaged_and_foreign_files(plain, photo, tmp_path, capsys):
  def flip(parts):
    name = max(n for n in parts if n.endswith('.npy'))
    parts[name] = parts[name][:-1] + bytes([parts[name][-1] ^ 1])

  def rename(parts):
    about = json.loads(parts['manifest.json'])
    about['classes'][0] = 'other'
    parts['manifest.json'] = json.dumps(about).encode()

  def older(parts):
    about = json.loads(parts['manifest.json'])
    about['format'] = 'vemd_jax artifact 0'
    parts['manifest.json'] = json.dumps(about).encode()

  no_zip = tmp_path / 'no.vemd'
  no_zip.write_text('nothing')
  for path, message in (
      (damaged(plain, tmp_path / 'a', flip), 'content and checksum differ'),
      (damaged(plain, tmp_path / 'b', rename), 'content and checksum differ'),
      (damaged(plain, tmp_path / 'c', older), 'vemd_jax artifact 0'),
      (no_zip, 'damaged or no output of vemd export'),
      (tmp_path / 'missing', 'no file'),
  ):
    assert predict.main([f'--artifact={path}', str(photo)]) == 2
    assert message in capsys.readouterr().err
  argv = [f'--artifact={plain}', f'--overlay={tmp_path / "o"}', str(photo)]
  assert predict.main(argv) == 2
  assert 'decodes no structure' in capsys.readouterr().err


def test_every_part_of_the_model_is_exported_for_any_batch():
  """PersonQuery, two encoders, the ViT branch, structure in the head."""
  config = group_scenes.get_config('tiny,person_query,ve_md_sr')
  config.model.vit.name, config.model.num_encoders = 'tiny', 2
  config.data.frames = 2
  model = VEMD(**config.model.to_dict(), classes=(('group_scenes', 3),))
  side = config.data.image_size
  example = vemd_cases.batch(1, 2, side)
  variables = vemd_cases.make(model, example, 'group_scenes')
  trained = trained_lib.Trained(
      config, config.data, 'group_scenes', ('a', 'b', 'c'), model, variables, 0
  )
  this = build.prepare(trained, build.Gates(min_people=1))
  assert not this.latent_only
  exported = build.export(this, ('cpu',))
  images = vemd_cases.batch(3, 2, side)['image']
  outputs = exported.call(this.weights, images)
  logits = jax.jit(trained.apply)(variables, images).logits
  kept = ~np.asarray(outputs['abstain'])
  np.testing.assert_allclose(
      outputs['probabilities'][kept], jax.nn.softmax(logits)[kept], atol=1e-5
  )


def test_gates_that_do_not_fit(run, tmp_path, capsys):
  for argv, message in (
      (['--max_share=0'], '--max_share=0.0: expected 0 < S <= 1'),
      (['--min_people=-1'], '--min_people=-1: expected 0 or more'),
      (['--round=9'], '--round=9: expected 0 to 6'),
      (['--average=0'], '--average=0: expected 1 or more'),
  ):
    assert export.main([str(run), f'--out={tmp_path / "x"}', *argv]) == 2
    assert message in capsys.readouterr().err
  trained = trained_lib.load(str(run))
  config = trained.config.copy_and_resolve_references()
  config.model.variant = 've_sd'
  with pytest.raises(ValueError, match='ve_sd decodes none'):
    build.prepare(trained._replace(config=config), build.Gates(min_people=2))


def test_onnx(run, tmp_path, capsys):
  pytest.importorskip('jax2onnx')
  assert export.main([str(run), f'--out={tmp_path / "m.onnx"}']) == 0
  assert 'differ by at most' in capsys.readouterr().out
  assert (tmp_path / 'm.onnx').stat().st_size > 1000
