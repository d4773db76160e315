# make run · make test · make test-learn · make check · make docs · make bench     (each builds .venv when it is missing or stale)

SPEC ?= specs/ppo_memory.json
NAME ?=
MODE ?= dev
BENCH ?= speed
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: run test test-learn check docs bench clean
.DELETE_ON_ERROR:

run: $(VENV)/ready
	$(BIN)/python run_lab.py $(SPEC) $(NAME) $(MODE)

test: $(VENV)/ready
	$(BIN)/python -m pytest test -m "not learn" -n $(JOBS) -q

test-learn: $(VENV)/ready
	$(BIN)/python -m pytest test -m learn -n $(JOBS) -q

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy slm_lab
	$(BIN)/python -m pytest test/test_floors.py -q

docs: $(VENV)/ready
	$(BIN)/python -m slm_lab.spec.schema
	$(BIN)/python -m slm_lab.spec.reference

bench: $(VENV)/ready
	$(BIN)/python run_lab.py bench $(BENCH)

# torch first: its pinned version has a small CPU build, and nothing installed later pulls in another
$(VENV)/ready: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; '$(PYTHON)' is older. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,classic,box2d,multiagent,hdf5,bench]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
