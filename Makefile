# Everything here sets up the virtual environment first, so each target works on a fresh clone.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready
COVERED := 95
WORKERS := -n auto --dist worksteal
SUITE := $(WORKERS) $(if $(COVERAGE),--cov --cov-report=)

.PHONY: demo test check bench docs setup clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/prefstage demo

test: $(READY)
	$(BIN)/python -m pytest $(SUITE)

# The suite runs here with coverage; after `make test COVERAGE=1` only its coverage is read, so that
# CI runs the suite once (COVERED: percent of branches and lines). mkdocs without --quiet, which would hide what --strict counts.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(if $(TESTED),,$(BIN)/python -m pytest $(WORKERS) --cov --cov-report=)
	$(BIN)/coverage report --skip-covered --fail-under=$(COVERED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python benchmarks/measuring.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) site demo .pytest_cache .mypy_cache .ruff_cache
