# make demo    from nothing to a trained student, with the figures side by side
# make test    lint, types, import contracts and all tests but those of make test-long
# make check   the quick part of it
# make chaos   the faults of the promises in their full form
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
# Two processes, with one thread each; system tests mostly wait for processes of their own to start. What they put under
# load has the cores to itself.
IN_TWO := -n 2 --dist loadfile
LOAD_TESTS := tests/system/test_swaps_under_load.py
SOAK_TESTS := tests/system/test_soak.py
FAULT_TESTS := tests/system/test_training_faults.py tests/unit/teacher_server/test_hostile_weights.py \
	tests/unit/services/test_gateway_fuzz.py tests/unit/services/test_gateway_tokens.py
UNIT_TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest tests/unit $(IN_TWO)
SYSTEM_TESTS := $(PY) -m pytest tests/system --ignore $(LOAD_TESTS) --ignore $(SOAK_TESTS) $(IN_TWO)

export PRECEPTOR_HOME ?= $(CURDIR)/var
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help venv demo data teachers test test-long chaos check lint bench clean

help:  ## show this text
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP)  ## the set-up alone: .venv with the locked versions

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) with the locked versions: a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

data: $(STAMP)  ## the built-in data set and its clip store
	$(PY) -m data.demo_store

demo: $(STAMP)  ## train the same student without and with a teacher and compare
	$(PY) -m trainer.demo

teachers: $(STAMP)  ## make the bundled teachers again, about 25 minutes on two cores
	$(PY) -m trainer.make_teachers

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

check: lint  ## lint, types, import contracts and the unit tests
	$(UNIT_TESTS)

test: lint  ## the same and the system tests
	$(UNIT_TESTS)
	$(SYSTEM_TESTS) -m "not long"
	$(PY) -m pytest $(LOAD_TESTS)

test-long: $(STAMP)  ## the system tests that take longer
	$(SYSTEM_TESTS) -m long
	$(PY) -m pytest $(SOAK_TESTS)

chaos: $(STAMP)  ## the promises under faults, in full: kills, swaps under load, overload
	$(PY) -m pytest $(LOAD_TESTS) $(FAULT_TESTS) $(SOAK_TESTS) --full -s

bench: $(STAMP)  ## benchmarks, as ratios
	$(PY) tests/bench/render.py
	$(PY) tests/bench/serving.py
	$(PY) tests/bench/retention.py

clean:  ## remove what tests and tools leave behind; .venv and var stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
