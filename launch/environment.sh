# shellcheck shell=bash
# Sourced by the other launch scripts; prepares the virtual environment.
#
#   source launch/environment.sh
#   prepare_environment [EXTRA...]   extras of pyproject.toml, such as: test
#   "$python" -m vemd_jax.main ...
#
# VEMD_VENV         path of the environment (default: .venv in the repository)
# VEMD_ACCELERATOR  tpu, cuda12 or cuda13: installs that build of JAX

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VEMD_VENV:-$root/.venv}
python=$venv/bin/python

find_python() {
  local candidate
  for candidate in python3.12 python3.11 python3; do
    # Runs the candidate, since the command may exist without a working
    # interpreter.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo 'Python 3.11 or newer is required, but no python3.12, python3.11 or' \
    'python3 of that version was found' >&2
  return 1
}

prepare_environment() {
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    local base
    base=$(find_python)
    echo "Creating the virtual environment $venv with $base"
    if ! "$base" -m venv --clear "$venv"; then
      echo "$base could not create $venv; on Debian and Ubuntu, run: apt" \
        'install python3-venv' >&2
      return 1
    fi
  fi

  # Installs only if the requirements have changed since the last time.
  local wanted stamp
  wanted=$(
    cat "$root/requirements.txt" &&
      "$python" - "$root/pyproject.toml" "$@" <<'PYTHON'
import sys, tomllib
with open(sys.argv[1], 'rb') as f:
  extras = tomllib.load(f)['project']['optional-dependencies']
for name in sys.argv[2:]:
  print('\n'.join(extras[name]))
PYTHON
  )
  if [ -n "${VEMD_ACCELERATOR:-}" ]; then
    wanted+=$'\n'"jax[$VEMD_ACCELERATOR]"
  fi
  stamp=$venv/.installed-$(printf '%s' "$wanted" | cksum | tr ' ' '-')
  if [ ! -e "$stamp" ]; then
    echo 'Installing requirements (about 1.3 GB, a few minutes)'
    printf '%s\n' "$wanted" > "$venv/requirements.txt"
    "$python" -m pip install --quiet --disable-pip-version-check \
      --requirement "$venv/requirements.txt"
    touch "$stamp"
  fi
}
