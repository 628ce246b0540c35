# Each target makes its own virtual environment in .venv; nothing needs to be installed by hand but Python 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,s3test]'
	@touch $(READY)

install: $(READY)  ## make .venv with batchseg in it, at the exact versions of constraints.txt

demo: $(READY)  ## draw a set, train, evaluate, segment; ends with a picture (about 4 minutes on 2 cores)
	$(BIN)/batchseg demo --out runs/demo

test: $(READY)  ## the fast tests (under 8 minutes on 2 cores)
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

test-slow: $(READY)  ## the others (under 45 minutes on 2 cores)
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove .venv and runs/
	rm -rf $(VENV) runs
