# SPDX-License-Identifier: MIT
# Everything that is done with this repository. Each target sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help setup demo test check bench soak clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    run the main job on a tiny guest: create, revert, undo, shut off, delete (under a minute)"
	@echo "make test    run all tests but the long ones"
	@echo "make check   run the linters and type checks"
	@echo "make bench   measure pauses and times against bare QMP, as ratios"
	@echo "make soak    run the long tests, then random walks for DOMSNAPD_SOAK_SECONDS (an hour)"
	@echo "make setup   install what is needed into $(VENV) and, where allowed, on the system"

setup: $(STAMP)

# Run every time: the packages of the system can go away while $(VENV) stays.
.PHONY: system
system:
	@packaging/install-system-packages

$(STAMP): pyproject.toml | system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fast,dev]'
	@touch $@

demo: system $(STAMP)
	@$(BIN)/python -m bench.demo

test: system $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: system $(STAMP)
	@$(BIN)/python -m bench.run

soak: system $(STAMP)
	DOMSNAPD_TEST_PROFILE=soak $(BIN)/python -m pytest tests/property tests/integration
	$(BIN)/python -m tests.model.soak

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
