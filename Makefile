# Three commands do everything on a fresh machine:
#   make demo        the whole path on phantom specimens, no data needed
#   make test-fast   tests that start nothing heavy, in under two minutes
#   make test        all tests but the longest, in eight minutes
# `make test-long` runs the longest alone, in five: tutorials, wheels, clusters, random kills. CI runs both.
# `make lowest` tries the lowest versions that pyproject.toml admits.
# `make docs` builds the documentation into docs/_build/docs/index.html.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-fast test-long check docs lowest install clean

demo: install
	jobs/demo.sh demo-output

# One thread a process. Each process takes the next file, whose tests share what they have made;
# tests/conftest.py has the slow ones run first. Those wait now and then: a third process fills in.
PYTEST := OMP_NUM_THREADS=1 pytest --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) -n 3 -m "not long" --durations 30

test-long: install
	$(PYTEST) -n 2 -m long --durations 10

test-fast: install
	$(PYTEST) -n 2 -m "not slow and not long"

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
