# make setup        a virtual environment in .venv with everything, detectron2 included
# make demo         train all systems on the embedded zero-shot worlds and write their reports: output/demo/
# make test         lint, then all tests
# make test-fast    the tests that take a moment each, for the inner loop
# make test-oldest  the fast tests with the oldest versions that setup.py allows, in .venv-oldest
# make test-formats what annotation tools read and write, by the tools' own libraries, in .venv-formats
# make lint         ruff (rules and format) and mypy
# make docs         the documentation as a site in output/site
# make dist         wheel and source archive in dist/
# make clean        remove caches and build products (not .venv, not output/)
#
# Variables: PYTHON (the interpreter that makes .venv), VENV, CONSTRAINTS (empty: newest versions instead of the exact ones),
# JOBS (processes of the tests)

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
JOBS        ?= auto

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check
PINNED  := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
READY   := $(VENV)/.setup-done
EXTRAS  ?= opencv,data,demo,web,export,tiff,wandb,docs,dev

.PHONY: help setup demo test test-fast test-oldest test-formats lint docs dist clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 13

setup: $(READY)

# A stamp per step, so that a step runs again only when what it depends on has changed.
$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch-done: $(CONSTRAINTS) | $(PY)
	$(PIP) install $(PINNED) torch torchvision
	@touch $@

$(VENV)/.detectron2-done: $(VENV)/.torch-done scripts/install_detectron2.py
	$(PY) scripts/install_detectron2.py $(PINNED)
	@touch $@

$(READY): $(VENV)/.detectron2-done setup.py pyproject.toml
	$(PIP) install $(PINNED) -e '.[$(EXTRAS)]'
	@touch $@

demo: setup
	scripts/demo.sh $(PY)

# One thread each: the tests' tensors are small, and threads of several processes would only wait for one another.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal

test-fast: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal -m "not slow" -q

test-oldest:
	$(MAKE) setup VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt EXTRAS=opencv,data,demo,export,dev
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" -q -W default

# The tools bring another OpenCV, so they have an environment of their own, which sees ours behind it.
.venv-formats/.setup-done: $(READY)
	$(PY) -m venv .venv-formats
	.venv-formats/bin/python -m pip --disable-pip-version-check install "supervision>=0.25" "label-studio-sdk>=1.0.20" \
	    "datumaro>=1.10" "labelme>=5.5" "pytest>=8" "pytest-timeout>=2.3"
	echo "import site; site.addsitedir('$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	    > "$$(.venv-formats/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	@touch $@

test-formats: .venv-formats/.setup-done
	OMP_NUM_THREADS=1 .venv-formats/bin/python -m pytest tests/formats -q

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: setup
	$(PY) -m mkdocs build --strict --site-dir output/site

dist: setup
	$(PY) -m build

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
