#!/usr/bin/env bash
# Runs the tests in two processes; additional arguments are passed to pytest.
#
#   bash launch/test.sh [-k writer ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment test
exec "$python" -m pytest -q -n 2 --dist=loadfile "$@"
