# Everything runs in the environment that tools/environment.sh chooses or makes.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
in_environment := . tools/environment.sh; use_environment requirements-dev.txt;

.PHONY: check test lint format quickstart

check: ## lint, types and all tests
	@bash run_tests.sh

test: ## all tests
	@SKIP_LINT=1 bash run_tests.sh

lint: ## ruff and mypy
	@$(in_environment) "$$PYTHON" -m ruff check .; "$$PYTHON" -m ruff format --check .; "$$PYTHON" -m mypy

format: ## rewrite the sources as ruff would have them
	@$(in_environment) "$$PYTHON" -m ruff check --fix .; "$$PYTHON" -m ruff format .

quickstart: ## train and sample the tiny model
	@bash finetune_single_gpu.sh
