# lmloop on a machine with Python 3.11 or newer and make: everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check bench clean

help:
	@echo 'make demo       install lmloop, make a chat model from real conversations, serve it'
	@echo 'make test       run the tests that take seconds'
	@echo 'make test-slow  run the tests that take longer'
	@echo 'make check      look at style and types'
	@echo 'make bench      measure speed, other libraries beside'
	@echo 'make clean      remove what was installed and built; models in .lmloop stay'
	@echo 'With another Python: make demo PYTHON=/path/to/python3.12'

demo: $(VENV)/.demo
	$(BIN)/lmloop run recipes/chat.toml

test: $(VENV)/.test
	$(BIN)/pytest -m "not slow"

test-slow: $(VENV)/.test
	$(BIN)/pytest -m slow

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	@failed=0; \
	for file in benchmarks/bench_*.py; do \
		echo "$$file"; $(BIN)/python "$$file" || failed=1; \
	done; \
	exit $$failed

clean:
	rm -rf $(VENV) .venv-peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp says that a step ended well: an interrupted one is done again.
$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "lmloop needs Python 3.11 or newer, and there is no $(PYTHON): install it, or say make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lmloop needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): say make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	$(BIN)/pip install -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.python pyproject.toml
	$(BIN)/pip install -e '.[test]'
	@touch $(VENV)/.demo $@
