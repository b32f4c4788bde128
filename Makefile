# Three commands do everything on a fresh machine:
#   make demo        the whole path on phantom specimens, no data needed
#   make test-fast   tests that start nothing heavy, in under two minutes
#   make test        all tests
# `make lowest` tries the lowest versions that pyproject.toml admits.
# `make docs` builds the documentation into docs/_build/docs/index.html.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-fast check docs lowest install clean

demo: install
	jobs/demo.sh demo-output

# One thread a process: two test processes share two cores. Each takes the next file, whose tests
# share what they have made; tests/conftest.py has the long ones run first.
PYTEST := OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) --durations 30

test-fast: install
	$(PYTEST) -m "not slow"

check: install
	ruff check .
	ruff format --check .
	pyright
	lint-imports

# Needs no network; a warning is an error.
docs: install
	sphinx-build -W --keep-going -q -c docs -b html . docs/_build

lowest: install
	.ci/lowest.sh

install: $(VENV)/.installed

# Made anew when the dependencies change.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv-lowest demo-output docs/_build docs/reference build *.egg-info .pytest_cache .ruff_cache .hypothesis
