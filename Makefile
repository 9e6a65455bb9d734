# `make run` and `make test` are all the set-up: either builds .venv first when it is missing or out of date.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# A new folder for each run, so nothing that was measured is ever overwritten.
RUN_DIR ?= runs/microworld-$(shell date +%Y%m%d-%H%M%S)
override RUN_DIR := $(RUN_DIR)

# Of a novel, which the model in the box has never read.
QUESTIONS := "who won the race?" "a lawyer crosses the sea to fetch the boy" "why does the old earl walk with a stick?"

TORCH := torch==2.13.0
# Of transformers, for a checkpoint's own code: the lowest that it takes, some between, the newest that the package takes.
VERSIONS ?= 4.57.1 4.57.6 5.0.0 5.3.0 5.6.2 5.12.1 5.*
BIN := .venv/bin
INSTALLED := .venv/.installed
TYPES := .cache/types

# One thread per worker: torch would otherwise start one per core in each of them.
QUIET := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST := -m pytest -n 2 --dist loadfile -q -rsfE --tb=short

.PHONY: help run check test lint docs dist audit lock versions lowest newest

help:
	@echo "make run    search a novel; pretrain, analyse, fine-tune and report on the microworld, into new folders of runs/"
	@echo "make check  the fast core of the tests, in about a minute"
	@echo "make test   lint, types and every test"
	@echo "make lint   ruff and mypy only"
	@echo "make docs   the documentation site, into site/"
	@echo "make dist   the wheel, into a new folder dist/"
	@echo "make audit  known vulnerabilities of what is installed; needs the network, and says when it could not ask"
	@echo "make lock   write the installed versions to constraints.txt, which the set-up installs"
	@echo "make versions         a checkpoint as remote code with old and new transformers (VERSIONS), in new environments"
	@echo "make lowest, newest   the fast core with the lowest, or newest, of all that pyproject.toml allows, likewise"

$(INSTALLED): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"concept-encoder needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}. Name another one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,eval,dev]"
	@touch $@

run: $(INSTALLED)
	$(BIN)/concept-encoder encode box --dataset_name scripts/corpora/little_lord_fauntleroy.txt --output_dir $(RUN_DIR)-search
	$(BIN)/concept-encoder search $(RUN_DIR)-search $(QUESTIONS) --k 2
	@echo 'Look into it: $(BIN)/concept-encoder explore box --corpus $(RUN_DIR)-search'
	$(BIN)/concept-encoder pretrain microworld --output_dir $(RUN_DIR)
	$(BIN)/concept-encoder analyze $(RUN_DIR)
	$(BIN)/concept-encoder similarity $(RUN_DIR) --tasks microworld_similarity
	$(BIN)/concept-encoder finetune $(RUN_DIR) --protocol quick --tasks microworld_entailment
	$(BIN)/concept-encoder report $(RUN_DIR)
	@echo 'Look into its concepts: $(BIN)/concept-encoder explore $(RUN_DIR)'

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy knows the package by its folder's name, which for a root-mapped package is the name of the checkout.
	@mkdir -p $(TYPES) && ln -sfn ../.. $(TYPES)/concept_encoder
	$(BIN)/mypy

check: $(INSTALLED)
	$(QUIET) $(BIN)/python $(PYTEST)

test: lint
	$(QUIET) $(BIN)/python $(PYTEST) -m ""

audit: $(INSTALLED)
	$(BIN)/python scripts/dev/audit.py

# After `pip install -U` of what shall be newer, and `make test`.
lock: $(INSTALLED)
	@{ head -2 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | grep == | sed 's/+[a-z0-9.]*$$//'; } > constraints.new
	@mv constraints.new constraints.txt

# mkdocs-material announces MkDocs 2 on every build otherwise.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

dist: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# A checkpoint is written here and read where the package is not: by its own code, in a new environment for each version.
versions: $(INSTALLED)
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; cp tests/model/versions.py "$$folder"; failed=; \
	$(QUIET) PYTHONPATH=tests/support $(BIN)/python tests/support/checkpoint_set.py "$$folder/checkpoints"; \
	for version in $(VERSIONS); do \
		$(PYTHON) -m venv "$$folder/$$version"; python="$$folder/$$version/bin/python"; \
		"$$python" -m pip install --quiet "$(TORCH)"; \
		"$$python" -m pip install --quiet "$(TORCH)" "transformers==$$version" accelerate pytest "sentence-transformers>=5.4"; \
		"$$python" -c 'import transformers; print("transformers", transformers.__version__)'; \
		(cd "$$folder"; $(QUIET) CHECKPOINTS="$$folder/checkpoints" HF_HOME="$$folder/cache" HF_HUB_OFFLINE=1 \
			"$$python" -m pytest -q -p no:cacheprovider versions.py) || failed="$$failed $$version"; \
		rm -rf "$$folder/$$version"; \
	done; \
	[ -z "$$failed" ] || { echo "failed with transformers$$failed"; exit 1; }

# torch stays as it is, its lowest is 2 GB of CUDA from PyPI; without what it needs, which uv would not lower any more.
lowest: RESOLUTION := lowest-direct
newest: RESOLUTION := highest
lowest newest:
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; python="$$folder/bin/python"; \
	$(PYTHON) -m venv "$$folder"; "$$python" -m pip install --quiet --no-deps "$(TORCH)" uv; echo "$(TORCH)" > "$$folder/torch"; \
	"$$folder/bin/uv" pip install --python "$$python" --resolution $(RESOLUTION) -c "$$folder/torch" -e ".[test]"; \
	$(QUIET) "$$python" $(PYTEST) -p no:cacheprovider
