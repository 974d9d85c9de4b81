# Needs python3 (3.11 or later), git and make; everything else goes into .venv.
#
#   make fit                       sets up if needed, then trains the reference experiment
#   make fit ARGS="--trainer.max_steps 50"
#   make test                      the test suite; ARGS="tests/models -k causal" narrows it
#   make setup TORCH=torch==2.13.0 installs this build of PyTorch first; by default pip chooses one
#
#   make stress ARGS="--row O3"    every fault in its full form, or a row of the table alone
#   make fuzz ARGS="-k yaml"       ten minutes of fuzzing for every reader, or for one
#
# Other targets: lint, type, contracts, clean.

PYTHON ?= python3
TORCH ?=
CONFIG ?= configs/tilelli_banks4.yaml
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Written last, so that an interrupted setup is done again.
STAMP := $(VENV)/.set-up

.DEFAULT_GOAL := help
.PHONY: help setup fit test stress fuzz lint type contracts clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"error: {sys.executable} is Python {sys.version.split()[0]}; 3.11 or later is needed, name one with PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/python -m pip install '$(TORCH)')
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

fit: $(STAMP)
	$(BIN)/app fit --config $(CONFIG) $(ARGS)

# Two at once, a file's tests in one process, which shares what they need between them.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

stress: $(STAMP)
	$(BIN)/python -m pytest -p tests.stress.table -m "" --timeout 3600 $(ARGS)

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	FUZZ_SECONDS=600 $(BIN)/python -m pytest -m stress tests/stress/test_fuzz.py -rP $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

# What can be made again; runs/ and data/ stay.
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find app callbacks configs datamodules tests -type d -name __pycache__ -prune -exec rm -rf {} +
