# make help lists what is here.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install test lint clean

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

test: install ## all tests
	$(BIN)/python -m pytest

lint: install ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
