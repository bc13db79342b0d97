#!/usr/bin/env bash
# Lint, type check and all tests, in an environment of its own (.venv, made on the first run) or in an active one that
# meets requirements-dev.txt. Arguments go to pytest: bash run_tests.sh tests/vae -k chunk
set -euo pipefail

# shellcheck source=tools/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/tools/environment.sh"

use_environment requirements-dev.txt
cd "$project_dir"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# One file's tests stay in one process, so that what they share is built once.
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
