"""The launch scripts, with programs that only record how they are called."""

import os
import pathlib
import stat
import subprocess

import pytest

from vemd_jax import stopping

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


def launch(tmp_path, script, *arguments, **environment):
  """Runs a script; its virtual environment is one that does nothing."""
  python = tmp_path / 'venv/bin/python'
  python.parent.mkdir(parents=True, exist_ok=True)
  python.write_text('#!/usr/bin/env bash\nexit 0\n')
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
