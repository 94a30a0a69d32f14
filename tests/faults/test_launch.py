"""The launch scripts, with programs that only record how they are called."""

import os
import pathlib
import shutil
import stat
import subprocess

import pytest
import yaml

from vemd_jax import processes, stopping

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def commands(tmp_path):
  """A folder of programs, each with the exit codes of its calls in order."""
  folder = tmp_path / 'bin'
  folder.mkdir()

  def add(name, *codes, says=()):
    log = tmp_path / f'{name}.log'
    (tmp_path / f'{name}.says').write_text('\n'.join(says) + '\n')
    lines = ' '.join(map(str, codes))
    path = folder / name
    path.write_text(f'''#!/usr/bin/env bash
echo "$*" | tr '\\n' ' ' >> {log}; echo >> {log}
count=$(wc -l < {log})
codes=({lines})
sed -n "${{count}}p" {tmp_path / name}.says
exit "${{codes[$((count - 1))]:-0}}"
''')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return lambda: (
        [x.strip() for x in log.read_text().splitlines()]
        if log.exists()
        else []
    )

  return add


def launch(tmp_path, script, *arguments, python='exit 0', **environment):
  """Runs a script; its virtual environment has a Python that does nothing."""
  text = f'#!/usr/bin/env bash\n{python}\n'
  python = tmp_path / 'venv/bin/python'
  python.parent.mkdir(parents=True, exist_ok=True)
  python.write_text(text)
  python.chmod(0o755)
  return subprocess.run(
      ['bash', str(ROOT / 'launch' / script), *arguments],
      cwd=ROOT,
      env={
          **os.environ,
          'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
          'VEMD_VENV': str(tmp_path / 'venv'),
          **environment,
      },
      capture_output=True,
      text=True,
  )


@pytest.mark.parametrize('code', [0, 1, stopping.EXIT_CODE])
def test_slurm_queues_a_stopped_job_again(tmp_path, commands, code):
  srun, scontrol = commands('srun', code), commands('scontrol')
  result = launch(
      tmp_path, 'slurm.sh', 'CONFIG', 'WORKDIR', SLURM_JOB_ID='17',
      SLURM_SUBMIT_DIR=str(ROOT), SLURM_CPUS_PER_TASK='8',
  )  # fmt: skip
  assert result.returncode == code, result.stderr
  assert '--config=CONFIG --workdir=WORKDIR' in srun()[0]
  assert scontrol() == (['requeue 17'] if code == stopping.EXIT_CODE else [])


def test_a_preempted_slice_is_made_again(tmp_path, commands):
  # describe, create, scp, ssh, describe, delete, create twice, scp, ssh, delete
  codes = 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0
  says = '', '', '', '', 'PREEMPTED'
  gcloud = commands('gcloud', *codes, says=says)
  result = launch(
      tmp_path, 'tpu_vm.sh', 'CONFIG', 'gs://B/RUN', RETRY_SECONDS='0'
  )
  assert result.returncode == 0, result.stderr
  verbs = [line.split()[3] for line in gcloud()]
  assert verbs == [
      'describe', 'create', 'scp', 'ssh', 'describe', 'delete', 'create',
      'create', 'scp', 'ssh', 'delete',
  ]  # fmt: skip


def test_a_failed_run_on_a_slice_is_not_repeated(tmp_path, commands):
  gcloud = commands('gcloud', 0, 0, 3, 0, says=['', '', '', 'READY'])
  result = launch(tmp_path, 'tpu_vm.sh', 'CONFIG', 'gs://B/RUN')
  assert result.returncode == 3
  verbs = [line.split()[3] for line in gcloud()]
  assert verbs == ['describe', 'scp', 'ssh', 'describe']


@pytest.mark.parametrize('code', [0, 1, stopping.EXIT_CODE])
def test_a_process_for_each_gpu(tmp_path, code):
  """Each is told of the others, and the code of one is that of the run."""
  log = tmp_path / 'calls'
  python = (
      f'case "$*" in *vemd_jax.main*) echo "$JAX_LOCAL_DEVICE_IDS $*" >> {log}'
      f'; case "$*" in *process_id=1*) exit {code};; esac;; esac'
  )
  result = launch(
      tmp_path, 'gpu_host.sh', 'CONFIG', '/RUN', '--config.steps=1',
      python=python, PROCESSES='3',
  )  # fmt: skip
  assert result.returncode == code, result.stderr
  assert sorted(log.read_text().splitlines()) == [
      f'{i} -m vemd_jax.main --config=CONFIG --workdir=/RUN --config.steps=1 '
      f'--coordinator_address=localhost:8476 --num_processes=3 --process_id={i}'
      for i in range(3)
  ]


def test_one_process_for_all_gpus(tmp_path):
  log = tmp_path / 'calls'
  python = f'case "$*" in *vemd_jax.main*) echo "$*" >> {log};; esac'
  launch(tmp_path, 'gpu_host.sh', 'CONFIG', 'gs://B/RUN', python=python)
  assert log.read_text() == (
      '-m vemd_jax.main --config=CONFIG --workdir=gs://B/RUN\n'
  )


def test_the_pods_of_the_manifest_find_each_other():
  manifest = yaml.safe_load((ROOT / 'launch/gke_jobset.yaml').read_text())
  name = manifest['metadata']['name']
  (jobs,) = manifest['spec']['replicatedJobs']
  assert jobs['replicas'] == 1
  spec = jobs['template']['spec']
  (container,) = spec['template']['spec']['containers']
  environment = {e['name']: e['value'] for e in container['env']}
  read = {v for names in processes.VARIABLES.values() for v in names}
  assert environment.keys() <= read
  assert spec['completionMode'] == 'Indexed'
  assert spec['parallelism'] == spec['completions']
  for index in range(spec['completions']):
    # What Kubernetes adds to an indexed job, and GKE to a slice.
    pod = {
        **environment, 'JOB_COMPLETION_INDEX': str(index),
        'TPU_WORKER_HOSTNAMES': ','.join('abcd'), 'TPU_WORKER_ID': str(index),
    }  # fmt: skip
    plan = processes.plan({}, pod)
    assert plan.count == spec['completions']
    assert plan.arguments == {
        'coordinator_address': f'{name}-{jobs["name"]}-0-0.{name}:8476',
        'num_processes': spec['completions'],
        'process_id': index,
    }
  assert container['command'][:3] == ['python', '-m', 'vemd_jax.main']
  (codes,) = (
      rule['onExitCodes']
      for rule in spec['podFailurePolicy']['rules']
      if 'onExitCodes' in rule
  )
  assert codes['values'] == [stopping.EXIT_CODE]
  assert codes['containerName'] == container['name']


@pytest.mark.skipif(
    not shutil.which('shellcheck'), reason='shellcheck is not installed'
)
def test_shellcheck_finds_nothing():
  scripts = sorted((ROOT / 'launch').glob('*.sh'))
  result = subprocess.run(
      ['shellcheck', *map(str, scripts)], capture_output=True, text=True
  )
  assert result.returncode == 0, result.stdout
