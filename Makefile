# make setup   a virtual environment in .venv with everything, detectron2 included
# make demo    train both systems on the embedded zero-shot world and write two reports: output/demo/
# make test    lint, then all tests
# make lint    ruff and mypy
# make docs    the documentation as a site in output/site
# make clean   remove caches and build products (not .venv, not output/)
#
# Variables: PYTHON (the interpreter that makes .venv), VENV, CONSTRAINTS (empty: newest versions instead of the exact ones)

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check
PINNED  := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
READY   := $(VENV)/.setup-done

.PHONY: help setup demo test lint docs clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 8

setup: $(READY)

# A stamp per step, so that a step runs again only when what it depends on has changed.
$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch-done: constraints.txt | $(PY)
	$(PIP) install $(PINNED) torch torchvision
	@touch $@

$(VENV)/.detectron2-done: $(VENV)/.torch-done scripts/install_detectron2.py
	$(PY) scripts/install_detectron2.py $(PINNED)
	@touch $@

$(READY): $(VENV)/.detectron2-done setup.py pyproject.toml
	$(PIP) install $(PINNED) -e '.[opencv,demo,web,export,docs,dev]'
	@touch $@

demo: setup
	$(PY) -m alignzeg_d2.demo
	$(PY) -m epsilon_d2.demo

test: lint
	$(PY) -m pytest

lint: setup
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: setup
	$(PY) -m mkdocs build --strict --site-dir output/site

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
