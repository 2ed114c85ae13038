# make help lists what is here.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test test-fast test-long test-gpu proof lint train-tiny clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## make .venv with everything in it (does nothing when it is up to date)

# torch comes first and pinned: asked for by another package it would be the newest build, with gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || (echo "adgen needs Python 3.11 or 3.12 (set PYTHON=...)" && false)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[job,dev]'
	touch $@

demo: install ## a small shop, refreshed into demo/store, and its report
	$(BIN)/adgen synth demo/shop --users 12 --products 48 --pairs 48
	$(BIN)/python jobs/refresh.py jobs/refresh.toml --inputs demo/shop --store demo/store --campaign demo --plan.pairs-per-shard 12
	$(BIN)/adgen report demo/store demo --inputs demo/shop --out demo/report.html
	@echo "Look at demo/report.html"

# Tests with Ray wait now and then (for processes that start or die): three workers keep two cores busy.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest
SPREAD := -n $(WORKERS) --dist loadscope --no-loadscope-reorder

test: install ## all tests but the long ones, WORKERS=3 at a time
	$(PYTEST) $(SPREAD) --durations=25

test-fast: install ## the quick ones of those that start no Ray and kill no process
	$(PYTEST) $(SPREAD) -m "not ray and not kill and not slow and not long"

test-long: install ## the longer proofs: tests/long/, and cases marked long
	$(PYTEST) tests/long
	$(PYTEST) -m long

test-gpu: install ## what needs a CUDA device, tests/gpu/
	$(PYTEST) tests/gpu

train-tiny: install ## the small model from nothing (two cores: six hours; it needs photographs, docs/training.md; the same command goes on)
	$(BIN)/python jobs/train_tiny.py jobs/train_tiny.toml --out runs/tiny

proof: install ## does the shipped model follow the user? measured on shops that nobody trained on (up to 45 minutes)
	$(BIN)/python jobs/evaluate.py proof

lint: install ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
