# Every target sets up what it needs on a Debian or Ubuntu machine with Python >= 3.11.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
ARGS ?=
# Passed to pip, for example an index with CPU-only torch wheels: PIP_ARGS='--extra-index-url URL'
PIP_ARGS ?=
# Processes that share the tests, a file at a time
TEST_WORKERS ?= 2

.PHONY: demo demo-finetune test check docs metrics bench gpu-check cluster128 format clean help

help:
	@echo "make demo           prepare the embedded clips, pre-train nano, evaluate, report (6 to 14 min, 2 cores)"
	@echo "make demo ARGS=--fresh   the same from scratch"
	@echo "make demo-finetune  fine-tune the demo's checkpoint on one small benchmark of every task"
	@echo "make test           run the tests (ARGS='-k name' selects)"
	@echo "make check          format, lint, types, import rules, docs with broken links as errors"
	@echo "make docs           build the documentation into build/site"
	@echo "make metrics        figures about the code: names, folders, comments, docstrings, words"
	@echo "make bench          speed of training and of the data path against a named bound and peer"
	@echo "make gpu-check      check numerics, waits, speed, DALI and resume on this node's GPUs (12 min)"
	@echo "make cluster128     start 16 and 128 ranks on an emulated Slurm (root, slurm-wlm, munge, 20 GB)"

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
	$(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.ready
	$(BIN)/mkdocs build --strict

metrics: $(VENV)/.ready
	$(BIN)/python tests/benchmarks/code_metrics.py

bench: $(VENV)/.ready
	$(BIN)/python tests/benchmarks/train_step.py
	$(BIN)/python -m pip install --quiet decord
	$(BIN)/python tests/benchmarks/data_pipeline.py

gpu-check: $(VENV)/.ready
	$(BIN)/python -m tests.gpu.check $(ARGS)

cluster128: $(VENV)/.ready
	$(BIN)/python -m tests.cluster.start 16 128

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The environment is rebuilt when its description changes. The stamp is written last, so an
# interrupted install is never taken for a complete one.
$(VENV)/.ready: pyproject.toml tools/check_system.sh
	@sh tools/check_system.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
