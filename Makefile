# make demo   train the demo pair, evaluate both, show the table (about 5 minutes on two CPU cores);
#             again: continue what was stopped; `rm -r runs/demo` trains anew
# make test   linter, type checker, tests
# make check  the same with the slow tests: kills, damage, long runs, broken lines
# make coverage  the share of lines that `make test` runs, commands in processes of their own included
# make test-lowest  the tests with the lowest versions that pyproject.toml allows, in .venv-lowest (Python 3.11 or 3.12)
# make bench  the benchmarks
PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest
# Threads that spin while they wait take the core the loader needs.
export OMP_WAIT_POLICY := PASSIVE
RUNS := runs/demo

.PHONY: demo test check coverage test-lowest bench clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python train/main.py recipe=demo run_dir=$(RUNS)/demo checkpoints_dir=$(RUNS)/checkpoints resume=auto
	$(BIN)/python train/main.py recipe=demo_dcls run_dir=$(RUNS)/demo_dcls checkpoints_dir=$(RUNS)/checkpoints resume=auto
	$(BIN)/python -m evaluate --ckpt $(RUNS)/checkpoints/demo $(RUNS)/checkpoints/demo_dcls --data scenes --out results/demo --overwrite
	@echo "report:      results/demo/report.html"
	@echo "TensorBoard: $(BIN)/tensorboard --logdir $(RUNS)"
	@echo "checkpoints: $(RUNS)/checkpoints/demo, $(RUNS)/checkpoints/demo_dcls"

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow"

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

coverage: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term --cov-fail-under=90

$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet -r $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps -e .
	touch $@

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -m "not slow"

bench: .venv/installed-dev
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf .venv $(LOWEST) build *.egg-info
