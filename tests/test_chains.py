"""Every chain of commands that a recipe, the README or a script shows.

The commands are read from the text and run word for word, each in a process of
its own, in a folder that contains their relative paths (DIR, DATA, STAGE1, W).
Only the option `tiny` is added to each recipe, and annotation uses an annotator
that needs no model. The longest chains are marked slow.
"""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_rule, official_data
from tests.faults import harness
from tests.prepare.official_layouts import picture, write_image

ROOT = pathlib.Path(__file__).parents[1]

ANNOTATE = """
import sys
import numpy as np
from vemd_jax.prepare import annotate

def annotator(image):
  height, width = image.shape[:2]
  rng = np.random.default_rng(int(image.sum()) % 1000)
  def people(count):
    xy = rng.uniform(0.2, 0.8, (1, count, 2)) * [width, height]
    return np.concatenate([xy, np.ones((1, count, 1))], -1).astype(np.float32)
  return people(17), people(68)

annotate.load = lambda settings: annotator
annotate.made_with = lambda settings: {'backend': 'test'}
sys.exit(annotate.main(sys.argv[1:]))
"""


def commands(text: str) -> list[str]:
  """The `python -m vemd_jax…` commands of a text, lines joined, in order."""
  text = text.replace('\\\n', ' ')
  return [
      ' '.join(line.split())
      for line in re.findall(r'^ *(python -m vemd_jax.*)$', text, re.M)
  ]


def documented(path: str) -> list[str]:
  text = (ROOT / path).read_text()
  if path.endswith('.py'):
    text = re.match(r'r?"""(.*?)"""', text, re.S)[1]
  return commands(text)


def recipe_with_tiny(argument: str) -> str:
  """configs/x.py:options, with --config= or without -> with tiny."""
  head, config, path = argument.rpartition('configs/')
  path, _, options = path.partition(':')
  options = ','.join(o for o in (options, 'tiny') if o)
  return f'{head}{ROOT / config / path}:{options}'


def run(command: str, cwd: pathlib.Path, *more: str) -> str:
  """Runs one documented command; returns what it printed."""
  arguments = shlex.split(command)
  assert arguments[:2] == ['python', '-m']
  module, arguments = arguments[2], arguments[3:]
  arguments = [
      recipe_with_tiny(a)
      if a.removeprefix('--config=').startswith('configs/')
      else a
      for a in arguments
  ]
  program = ['-m', module]
  if module == 'vemd_jax.data.annotate':
    program = ['-c', ANNOTATE]
  # With one device, whose programs compile faster.
  process = subprocess.run(
      [sys.executable, *program, *arguments, *more],
      cwd=cwd, env=harness.environment(),
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert process.returncode == 0, f'{command}\n{process.stderr[-3000:]}'
  return process.stdout


def predict(cwd: pathlib.Path, workdir: str = 'W', *more: str) -> None:
  write_image(cwd / 'PHOTO.jpg', picture(60, 80))
  out = run(f'python -m vemd_jax.predict --workdir={workdir} --json PHOTO.jpg',
            cwd, *more)  # fmt: skip
  probabilities = json.loads(out)['probabilities']
  assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)


def prepare(cwd: pathlib.Path, dataset: str, out: str) -> None:
  """Prepared and annotated data, for chains that start from them."""
  official_data.MAKERS[dataset](cwd / f'{dataset}_source')
  run(f'python -m vemd_jax.data.prepare {dataset} '
      f'--source={dataset}_source --out={out}', cwd)  # fmt: skip
  if dataset != 'coco':
    run(f'python -m vemd_jax.data.annotate --data={out}', cwd)


def test_gaf3_from_the_official_folder_to_a_prediction(tmp_path):
  """Preparation, annotation, stage 1, stage 2."""
  official_data.gaf3(tmp_path / 'DIR')
  chain = documented('configs/gaf3.py')
  assert len(chain) == 4
  for command in chain:
    run(command, tmp_path)
  predict(tmp_path)


@pytest.mark.slow
def test_gaf3_with_cached_features(tmp_path):
  official_data.gaf3(tmp_path / 'DIR')
  chain = documented('configs/gaf3.py')
  for command in chain[:-1]:
    run(command, tmp_path)
  # vemd_jax.cache_features, with the weights of stage 1.
  (cache,) = documented('vemd_jax/cache_features.py')
  out = run(cache, tmp_path)
  assert '39 rows computed' in out
  cached = chain[-1].replace('configs/gaf3.py', 'configs/gaf3.py:cached')
  run(cached.replace('--workdir=W', '--workdir=CACHED'), tmp_path)
  predict(tmp_path, 'CACHED')


@pytest.mark.slow
def test_readme_folder_from_the_demo(tmp_path):
  """The demo, a folder of pictures from it, annotation, prediction."""
  run('python -m vemd_jax.main --config=configs/group_scenes.py '
      '--workdir=runs/group_scenes', tmp_path)  # fmt: skip
  official_data.folder(tmp_path / 'DIR')
  chain = [c for c in documented('README.md')
           if 'folder' in c or '--data=DIR' in c or 'predict' in c]  # fmt: skip
  scratch, continued, annotate, photo, several = chain
  run(annotate, tmp_path)
  run(scratch, tmp_path)
  run(continued.replace('--workdir=W', '--workdir=CONTINUED'), tmp_path)
  predict(tmp_path, 'CONTINUED')
  write_image(tmp_path / 'PHOTO.jpg', picture(60, 80))
  write_image(tmp_path / 'FOLDER' / 'a.jpg', picture(60, 80))
  assert 'glad' in run(photo, tmp_path)
  run(several, tmp_path)
  assert (tmp_path / 'OVERLAYS' / 'a_overlay.jpg').exists()


@pytest.mark.slow
def test_class_folders_from_new_to_a_prediction(tmp_path):
  """`vemd new`, the commands that it prints, and the folder without labels."""
  for i in range(24):
    label = ('glad', 'sad')[i % 2]
    write_image(tmp_path / 'FACES' / label / f'{i}.jpg', picture(seed=i))
  direct = 'python -m vemd_jax.main --config=configs/folder.py'
  run(f'{direct} --config.data.root=FACES --workdir=DIRECT', tmp_path)
  predict(tmp_path, 'DIRECT')
  out = run('python -m vemd_jax.prepare.new FACES', tmp_path)
  chain = [c.strip() for c in out.splitlines() if 'vemd train' in c]
  assert len(chain) == 2
  for command in chain:
    command = command.replace('vemd train', 'python -m vemd_jax.main')
    run(command, tmp_path)
  predict(tmp_path, 'runs/FACES')


@pytest.mark.slow
def test_gaf3_from_coco(tmp_path):
  """Structure from COCO and the ViT of stage 1, then GAF-3.0."""
  prepare(tmp_path, 'coco', 'COCO')
  prepare(tmp_path, 'gaf3', 'GAF3')
  chain = documented('configs/gaf3_from_coco.py')
  assert len(chain) == 3
  for command in chain:
    run(command, tmp_path)
  predict(tmp_path)


def write_safetensors(path: pathlib.Path, tensors) -> None:
  header, data, offset = {}, b'', 0
  for name, tensor in tensors.items():
    raw = np.ascontiguousarray(tensor, np.float32).tobytes()
    header[name] = {
        'dtype': 'F32',
        'shape': list(np.shape(tensor)),
        'data_offsets': [offset, offset + len(raw)],
    }
    data, offset = data + raw, offset + len(raw)
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data)


def clip_weights(path: pathlib.Path) -> None:
  """A CLIP ViT of the size of `tiny`, for images of 96 pixels."""
  state = dict(golden_rule.load_golden('c10_tiny_vit').state_dict())
  tokens = 1 + (96 // 14) ** 2
  state['pos_embed'] = np.zeros((1, tokens, 32), np.float32)
  write_safetensors(path, {k: np.asarray(v) for k, v in state.items()})


@pytest.mark.slow
def test_imported_clip_to_stage_1_and_2(tmp_path):
  """CLIP's weights, imported, fine-tuned in stage 1, frozen in stage 2."""
  from vemd_jax import weights

  clip_weights(tmp_path / 'CLIP.safetensors')
  prepare(tmp_path, 'gaf3', 'DATA')
  chain = documented('configs/stage1.py')
  assert len(chain) == 2
  for command in chain:
    run(command, tmp_path)
  start = weights.load_variables(tmp_path / 'CLIP')['params']['vit']
  end = weights.load_variables(tmp_path / 'STAGE1')['params']['vit']
  moved = jnp.abs(start['patches']['kernel'] - end['patches']['kernel']).max()
  assert 0 < float(moved) < 1e-2
  run(documented('configs/gaf3.py')[-1], tmp_path)
  held = weights.load_variables(tmp_path / 'W')['params']['vit']
  np.testing.assert_array_equal(
      held['patches']['kernel'], end['patches']['kernel']
  )


@pytest.mark.slow
def test_readme_gaf3(tmp_path):
  official_data.gaf3(tmp_path / 'GAF3.0_Original' / '..')
  prepared, trained = (
      c for c in documented('README.md') if 'gaf3' in c and 'folder' not in c
  )
  run(prepared, tmp_path)
  run(trained, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    'dataset', ['vgaf', 'samsemo', 'dfew', 'mer2023', 'engagenet']
)
def test_datasets_of_clips(tmp_path, dataset):
  official_data.MAKERS[dataset](tmp_path / 'DIR')
  chain = documented(f'configs/{dataset}.py')
  assert len(chain) == 4
  for command in chain:
    run(command, tmp_path)
  predict(tmp_path)
  if dataset == 'mer2023':  # The unlabelled part comes first.
    for command in documented('configs/mer2023_semi.py'):
      run(command.replace('--workdir=W', '--workdir=FROM_SEMI'), tmp_path)
    predict(tmp_path, 'FROM_SEMI')


@pytest.mark.slow
def test_mixture(tmp_path):
  for dataset in ('gaf3', 'vgaf', 'coco'):
    prepare(tmp_path, dataset, dataset.upper())
  (command,) = documented('configs/mixture.py')
  run(command, tmp_path)
  predict(tmp_path, 'W', '--dataset=vgaf')


@pytest.mark.slow
def test_reference_and_coco_and_demo(tmp_path):
  prepare(tmp_path, 'gaf3', 'GAF3')
  stage1 = documented('configs/gaf3_from_coco.py')[1]
  run(stage1, tmp_path)
  (reference,) = documented('configs/reference.py')
  run(reference, tmp_path)
  predict(tmp_path)
  official_data.coco(tmp_path / 'DIR')
  for command in documented('configs/coco.py'):
    run(command.replace('--workdir=W', '--workdir=STRUCTURE'), tmp_path)
  (demo,) = documented('configs/group_scenes.py')
  run(demo.replace('--workdir=W', '--workdir=DEMO'), tmp_path)
  predict(tmp_path, 'DEMO')


@pytest.mark.slow
def test_the_claim(tmp_path):
  """One row of the sweep in configs/claim.py, and the table."""
  sweep, table = documented('configs/claim.py')
  run(sweep, tmp_path, '--seeds=1', '--only=drawn groups/ve_sd')
  assert '| ve_sd | 1 |' in run(table, tmp_path)
  assert (tmp_path / 'SWEEP' / 'table.png').exists()


@pytest.mark.slow
def test_the_claim_on_all_groups(tmp_path):
  for root in ('GROUPS/mixed', 'GROUPS/interaction', 'FACES'):
    official_data.folder(tmp_path / root)
  sweep, table = documented('configs/claim.py')
  # Rows that start from another row's run among them.
  # What a row changes comes after tiny, so the steps are set once more.
  run(sweep, tmp_path, '--seeds=2', '--only=*/ve_sd', '--config.steps=4')
  text = run(table, tmp_path)
  assert text.count('| ve_sd | 2 |') == 2 * 5


@pytest.mark.slow
def test_the_price_of_privacy(tmp_path):
  """One row of the sweep in configs/privacy.py, and the table."""
  official_data.folder(tmp_path / 'FACES')
  sweep, table = documented('configs/privacy.py')
  only = '--only=bottleneck/width 4, KL 0.01'
  run(sweep, tmp_path, '--seeds=1', only, '--config.steps=4')
  assert '| width 4, KL 0.01 | 1 |' in run(table, tmp_path)


@pytest.mark.slow
def test_the_ablations(tmp_path):
  """The first row of each group in configs/ablations.py, and the table."""
  sweep, table = documented('configs/ablations.py')
  run(sweep, tmp_path, '--seeds=1', '--only=*/relations', '--config.steps=4')
  text = run(table, tmp_path)
  for group in ('people at centers', 'limb maps'):
    _, rest = text.split(f'### {group}: accuracy (WAR) on val')
    assert '| relations | 1 |' in rest.split('###')[0]


# A row of each table, which starts from stage 1.
PAPER = {
    'gaf3': 've_md_sr raw',
    'vgaf': 've_sd audio',
    'samsemo': 've_sd text',
    'dfew': 've_sd',
    'mer2023': 've_sd audio text',
    'engagenet': 've_md_sr projected',
}


@pytest.mark.slow
@pytest.mark.parametrize('dataset', PAPER)
def test_tables_of_the_paper(tmp_path, dataset):
  """configs/paper: from the official folder to the table."""
  clip_weights(tmp_path / 'CLIP.safetensors')
  run('python -m vemd_jax.models.torch_import CLIP.safetensors '
      f'--config=configs/stage1.py:{dataset} --out=CLIP', tmp_path)  # fmt: skip
  official_data.MAKERS[dataset](tmp_path / 'DIR')
  *prepared, sweep, table = documented(f'configs/paper/{dataset}.py')
  for command in prepared:
    if 'vemd_jax.data.text' in command:
      rows = (tmp_path / 'DATA' / 'index.jsonl').read_text().splitlines()
      np.savez(
          tmp_path / 'EMBEDDINGS.npz',
          **{json.loads(row)['file']: np.ones((3, 384), 'f') for row in rows},
      )
      command = command.replace('--model=MINILM', '--embeddings=EMBEDDINGS.npz')
    run(command, tmp_path)
  row = PAPER[dataset]
  run(sweep, tmp_path, '--seeds=1', f'--only=*/{row}')
  n = 5 if dataset == 'dfew' else 1
  text = run(table, tmp_path)
  assert f'| {row} | {n} |' in text and f'| vit | {n} |' in text
  assert 'published |' in text


def test_every_recipe_has_its_chain_run():
  """A recipe that documents commands is named in a test of this file."""
  text = pathlib.Path(__file__).read_text()
  for path in (ROOT / 'configs').glob('paper/*.py'):
    assert documented(f'configs/paper/{path.name}') and path.stem in PAPER, path
  for path in (ROOT / 'configs').glob('*.py'):
    assert documented(f'configs/{path.name}'), path
    parametrized = f"'{path.stem}'" in text
    assert parametrized or f'configs/{path.name}' in text or (
        path.stem == 'folder'
    ), path
