#!/usr/bin/env bash
# Lint, type check and all tests, in an environment of its own (.venv, made on the first run) or in an active one that
# meets requirements-dev.txt. Arguments go to pytest: bash run_tests.sh tests/vae -k chunk
# SKIP_LINT=1 goes straight to the tests.
set -euo pipefail

# shellcheck source=tools/environment.sh
. "$(dirname "${BASH_SOURCE[0]}")/tools/environment.sh"

use_environment requirements-dev.txt
cd "$project_dir"
if [ -z "${SKIP_LINT:-}" ]; then
    say "Lint (ruff)"
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    say "Types (mypy)"
    "$PYTHON" -m mypy
fi
# One process more than cores: tests wait now and then. A file's tests stay in one, so that what they share is built once;
# files come in the order of tests/conftest.py.
processes="$("$PYTHON" -c 'import os; print(min(8, 1 + (os.cpu_count() or 1)))')"
say "Tests (pytest, $processes processes)"
exec "$PYTHON" -m pytest -n "$processes" --dist loadfile --no-loadscope-reorder "$@"
