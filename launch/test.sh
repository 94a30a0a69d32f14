#!/usr/bin/env bash
# Runs the tests in two processes; additional arguments are passed to pytest.
#
#   bash launch/test.sh [-k writer ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment test
# In the order of tests/conftest.py: the files that take longest come first, so
# that both processes end at about the same time.
exec "$python" -m pytest -q -n 2 --dist=loadfile --no-loadscope-reorder "$@"
