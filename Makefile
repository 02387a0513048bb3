# sidray: `make demo` shows it working, `make test` runs the tests. Both make .venv first when it is not there.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= cpu,demo

.PHONY: demo test chaos bench check format clean

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

bench: $(VENV)/.installed-dev  ## beside its peers, each from PyPI in an environment of its own: one table, stored in jobs/bench/results/bench
	$(BIN)/python jobs/bench/side_by_side.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) sidray-runs
