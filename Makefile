# Every target makes the virtual environment that it needs: once, and again when pyproject.toml or constraints.txt
# change.
PYTHON ?= python3
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
BENCH_ARGS ?=
GPU_ARGS ?=
VLLM_VENV := .venv-vllm
GPU_VENV := .venv-gpu
# `make gpu GPU_PYTHON=...` uses an environment that is there. Without a GPU it is that of the tests with vLLM.
GPU_PYTHON ?=
GPU_READY := $(if $(GPU_PYTHON),,$(if $(shell command -v nvidia-smi),$(GPU_VENV)/.ready,$(VLLM_VENV)/.ready))
EVALPLUS_VENV := .venv-evalplus
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait for each other give up their core: on a busy machine spinning ones make a step ten times slower.
export OMP_WAIT_POLICY ?= passive

.PHONY: help demo picture test test-fast test-launch test-vllm test-nightly check notebook docs docs-serve recipes bench gpu evalplus clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.with-report ## distil a tiny teacher into a tiny student on the CPU; results in outputs/demo
	$(BIN)/fire-opd demo --output_dir outputs/demo

picture: $(VENV)/.with-test ## the README's picture: the page that the demo has made, in a browser
	PYTHONPATH=tests $(BIN)/python -m support.browser outputs/demo/inspect.html docs/inspect_demo.png \
		--trajectory 2.138 --shade gap --beside opposite --section desk --token 15 --width 1200 --height 872

# One after the other, also under `make -j`: launches have a time limit, and would share two cores with all others.
test: ## run all tests (PYTEST_ARGS="-k ..." for fewer)
	$(MAKE) test-fast
	$(MAKE) test-launch
	$(MAKE) test-vllm

# 5 is pytest's exit code when PYTEST_ARGS leaves nothing to do.
test-fast: $(VENV)/.with-test ## tests of one process, two at a time
	$(BIN)/python -m pytest -q -n 2 -m "not launch and not nightly" $(PYTEST_ARGS) || [ $$? -eq 5 -a -n "$(PYTEST_ARGS)" ]

# Two files at a time: a test whose two ranks wait leaves a core free, and a file keeps its launches to itself.
test-launch: $(VENV)/.with-test ## tests of several processes, two files at a time
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "launch and not nightly" $(PYTEST_ARGS) || [ $$? -eq 5 -a -n "$(PYTEST_ARGS)" ]

test-nightly: $(VENV)/.with-test ## slow tests: a real language model, whole benchmarks, further launchers
	$(BIN)/python -m pytest -q -m nightly $(PYTEST_ARGS)

# vLLM is told not to report its use, and finds the plugin that its CPU backend needs for training. An engine in the
# trainer's process leaves its ranks in the environment, hence a process for each file.
test-vllm: $(VLLM_VENV)/.ready ## test rollouts by vLLM, on the CPU, in an environment of its own
	@export VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 PYTHONPATH=tests/engine/plugin; \
	for file in tests/engine/test_*.py; do \
		echo "$$file"; timeout 600 $(VLLM_VENV)/bin/python -m pytest -q $$file $(PYTEST_ARGS) || \
			[ $$? -eq 5 -a -n "$(PYTEST_ARGS)" ] || exit 1; \
	done

check: $(VENV)/.with-dev ## lint, format and type check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

notebook: $(VENV)/.with-test ## execute the notebook of examples/ on the CPU, and keep its outputs
	$(BIN)/python tests/support/notebook.py

docs: $(VENV)/.with-docs ## build the site of the docs into site/, without network; a broken link fails
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet -c docs . site

docs-serve: docs ## show it on http://127.0.0.1:8000 (site/index.html also opens as a file)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

recipes: $(VENV)/.with-test ## the tables of docs/recipes.md, with what `fire-opd plan` says of each recipe
	PYTHONPATH=tests $(BIN)/python -m support.recipes_page

bench: $(VENV)/.with-report ## time and memory beside TRL's trainers, in outputs/bench (BENCH_ARGS="--preset tiny")
	env -u OMP_WAIT_POLICY $(BIN)/python -m benchmarks.throughput $(BENCH_ARGS)  # one process computes at a time

gpu: $(GPU_READY) ## ten minutes on one GPU, in docs/gpu; without one a rehearsal on the CPU, in outputs/gpu
	$(or $(GPU_PYTHON),$(dir $(GPU_READY))bin/python) -m benchmarks.gpu $(GPU_ARGS)

evalplus: $(EVALPLUS_VENV)/.ready ## the environment of evalplus, which judges code for `fire-opd evaluate`

clean: ## remove what make, the tools and the demo made
	rm -rf $(VENV) $(VLLM_VENV) $(GPU_VENV) $(EVALPLUS_VENV) build dist *.egg-info outputs/demo site
	rm -rf .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that a CPU build that is at hand is taken.
$(VENV)/.with-torch: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q $$(grep '^torch==' constraints.txt)
	@touch $@

# .with-EXTRA: the package, editable, with that extra of pyproject.toml
$(VENV)/.with-%: $(VENV)/.with-torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$*]'
	@touch $@

$(VLLM_VENV)/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install -q $$(grep '^torch==' constraints-vllm.txt)
	$(VLLM_VENV)/bin/python -m pip install -q --no-deps -r constraints-vllm.txt
	$(VLLM_VENV)/bin/python -m pip install -q --no-deps -e .
	@touch $@

# No constraints: vLLM wants one torch, and pip takes its build for CUDA.
$(GPU_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install -q pytest -e '.[vllm,deepspeed,peft,report]'
	@touch $@

$(EVALPLUS_VENV)/.ready: constraints-evalplus.txt
	$(PYTHON) -m venv --clear $(EVALPLUS_VENV)
	$(EVALPLUS_VENV)/bin/python -m pip install -q --no-deps -r constraints-evalplus.txt
	@touch $@
