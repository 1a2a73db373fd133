# make demo   sets everything up, starts a grid, deploys the four examples and calls them
# make test   sets everything up, then checks and tests
# Needs Python 3.11 or newer and the package registries; Docker is used where an engine answers.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
TOOLS := $(CURDIR)/.cache/uv
# uv as it is installed, else one of our own, which needs no root.
UV := $(or $(shell command -v uv 2>/dev/null),$(TOOLS)/bin/uv)
SETUP := .venv/.set-up
ARGS ?=

# The compilers and interpreters of the package set come before the machine's.
export PATH := $(BIN):$(PATH)

.PHONY: help setup up demo test test-fast check fmt bench docs engine images clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SETUP) ## installs the exact versions of uv.lock into .venv

$(TOOLS)/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3")'
	@echo "installing uv into .cache"
	@$(PYTHON) -m venv $(TOOLS) >/dev/null 2>&1 && $(TOOLS)/bin/pip install -q uv \
	  || $(PYTHON) -m pip install -q --target $(TOOLS) uv \
	  || { echo "uv could not be installed: install python3-venv, or uv itself" >&2; exit 1; }

$(SETUP): pyproject.toml uv.lock | $(UV)
	$(UV) sync --quiet --all-groups --extra toolchains $(if $(CI),--locked)
	@touch $@

up: setup ## starts a grid here; ARGS="--port 9000" and the like
	@$(BIN)/nanogrid up $(ARGS)

demo: setup ## a grid, four languages, real input, sync and async
	@$(BIN)/nanogrid demo $(ARGS)

test: setup check ## all checks, then all tests
	$(BIN)/pytest $(ARGS)

test-fast: setup ## unit tests, and what needs nothing from outside
	$(BIN)/pytest -q -x -m "not needs" tests/unit $(ARGS)

check: setup ## format, lint, types, import directions, module length, generated docs
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_module_length.py
	$(BIN)/python scripts/write_settings_doc.py --check
	$(BIN)/python scripts/generate_docs.py --check

fmt: setup ## formats, and fixes what can be fixed by itself
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

bench: setup ## our numbers beside those of peers; JSON=FILE keeps them
	$(BIN)/python -m bench $(if $(JSON),--json $(JSON)) $(ARGS)

docs: setup ## writes what is generated under docs/
	$(BIN)/python scripts/write_settings_doc.py
	$(BIN)/python scripts/generate_docs.py

engine: ## a Docker Engine and the base image, on a bare Debian machine
	scripts/docker-engine.sh
	scripts/base-image.sh

images: setup ## the images of docker sandboxes, before the first call needs them
	$(BIN)/python scripts/build_images.py

clean: ## removes what setup and the checks made
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
