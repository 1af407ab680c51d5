# `make` lists the targets. Everything happens in a virtual environment in .venv; nothing else on the machine changes,
# except that the demo model is kept in the user's cache folder.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test setup lint format deb clean

PYTHON ?= python3
PORT ?= 8000

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Which PyTorch: on a machine with an NVIDIA GPU what pip chooses by itself, which is the CUDA build. Elsewhere exactly
# this version, for which some indexes have a CPU build; a range, or another version, may bring gigabytes of CUDA along.
# Where this one does too, set TORCH_INDEX_URL to PyTorch's index of CPU builds.
TORCH_CPU := torch==2.13.0
TORCH_INDEX_URL ?=
FLAVOUR := $(shell if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null; then echo cuda; else echo cpu; fi)
comma := ,
EXTRA := $(if $(filter cuda,$(FLAVOUR)),gpu$(comma))

# An empty file for each finished installation. It is out of date when pyproject.toml is newer, and another flavour of
# PyTorch has another file.
SERVE_STAMP := $(VENV)/installed-serve-$(FLAVOUR)
DEV_STAMP := $(VENV)/installed-dev-$(FLAVOUR)

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVE_STAMP) ## serve a small real model on 127.0.0.1 (PORT=8000)
	@model="$$($(BIN)/pagebox model pull demo)"; exec $(BIN)/python packaging/serve_demo.py "$$model" "$(PORT)"

test: $(DEV_STAMP) ## lint, types, and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

setup: $(DEV_STAMP) ## install everything that development needs

lint: $(DEV_STAMP) ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP) ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# With Debian's Python, which the environment in the package is for; nothing of .venv gets into it.
deb: ## the package for Debian, and a tarball for other machines, in dist/
	/usr/bin/python3 packaging/build_package.py --output dist $(if $(filter cpu,$(FLAVOUR)),--torch "$(TORCH_CPU)") $(if $(filter cuda,$(FLAVOUR)),--extra gpu)

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "pagebox needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1). Name another: make PYTHON=python3.12 …" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }

$(SERVE_STAMP): pyproject.toml | $(BIN)/python
ifeq ($(FLAVOUR),cpu)
	$(PIP) install $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") "$(TORCH_CPU)"
endif
	$(PIP) install --editable ".[$(EXTRA)demo]"
	@touch $@

$(DEV_STAMP): pyproject.toml $(SERVE_STAMP) | $(BIN)/python
	$(PIP) install --editable ".[$(EXTRA)demo,dev]"
	packaging/fetch-test-nginx.sh $(VENV)/nginx
	@touch $@
