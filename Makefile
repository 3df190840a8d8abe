# The same verbs on a laptop and in CI. Nothing has to be installed first but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_TEXT ?= Hello. This text went through a queue, and came back as sound.

.DEFAULT_GOAL := help
.PHONY: help demo up test check parity chaos bench clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); PyTorch is large, so the first time takes minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $(READY)

demo: $(READY) ## set up, start everything, speak one text over HTTP, save a WAV, stop everything
	@$(BIN)/python scripts/demo.py "$(DEMO_TEXT)"

up: $(READY) ## start Redis, the API and a worker, and leave them running until Ctrl-C
	@$(BIN)/echoforge up $(ARGS)

test: $(READY) ## the whole test suite, with a real Valkey, real workers and a real server
	@$(BIN)/python -m pytest $(ARGS)

check: $(READY) ## format, lint, types, who imports whom
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

parity: $(READY) ## CSM-1B's full shape against transformers: minutes, about 12 GB
	@$(BIN)/python -m pytest -m slow -s tests/engine

chaos: $(READY) ## 600 jobs while workers and Redis are killed all the time; counts what broke
	@$(BIN)/python -m tests.chaos $(ARGS)

bench: $(READY) ## engine beside transformers, start-up, service beside the engine: 15 minutes, 20 GB
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
