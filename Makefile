# make demo | demo-finetune | test | check — each sets up all that it needs on a Debian/Ubuntu machine with Python >= 3.11.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
ARGS ?=
# Passed to pip, for example an index with CPU-only torch wheels: PIP_ARGS='--extra-index-url URL'
PIP_ARGS ?=
# Processes that share the tests, a file at a time
TEST_WORKERS ?= 2

.PHONY: demo demo-finetune test check bench cluster128 format clean help

help:
	@echo "make demo            prepare the embedded clips, pre-train nano (6 to 14 minutes on 2 cores), evaluate, write runs/demo/report.html"
	@echo "make demo ARGS=--fresh   the same from scratch"
	@echo "make demo-finetune   take the demo's checkpoint through one benchmark of every protocol, print a table beside chance"
	@echo "make test            run the tests (ARGS='-k name' selects)"
	@echo "make check           ruff format, ruff, mypy, import rules"
	@echo "make cluster128      start 16 and 128 ranks on a Slurm of 16 emulated nodes: time and memory (root, slurm-wlm, munge, 20 GB)"
	@echo "make bench           speed of training and of the data path, beside a named bound and a named peer"

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py $(ARGS)

demo-finetune: $(VENV)/.ready
	$(BIN)/python examples/demo_finetune.py $(ARGS)

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready
	$(BIN)/python tests/benchmarks/train_step.py
	$(BIN)/python -m pip install --quiet decord
	$(BIN)/python tests/benchmarks/data_pipeline.py

cluster128: $(VENV)/.ready
	$(BIN)/python -m tests.cluster.start 16 128

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The environment is rebuilt when its description changes. The stamp is written last: an interrupted install is never taken for a whole one.
$(VENV)/.ready: setup.py tools/check_system.sh
	@sh tools/check_system.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
