# Needs Python 3.11 or newer, make and git; everything else goes into .venv, from hash-locked requirements.
# PYTHON=/path/to/python chooses the interpreter; ARGS="..." is handed on to the tool that is run.

PYTHON ?= python3.13 python3.12 python3.11 python3
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench lock clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY)  ## show the whole product at work on an embedded PostgreSQL
	@$(BIN)/multitenant demo $(ARGS)

test: $(READY)  ## run all the tests (ARGS="-k naming -n0" for some, in one process)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

lint: $(READY)  ## style, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# asks for the newest version otherwise
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)  ## measure against plain SQLAlchemy
	@$(BIN)/python -m benchmarks $(ARGS)

# uv reads neither pip's settings nor its variables: a mirror that pip uses is handed over here.
# An unchanged lock is left untouched, so that .venv need not be made again.
lock: .venv/.locked  ## write requirements/dev.txt from pyproject.toml (ARGS=--upgrade: newest of all)
	@index="$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}"; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi; \
	cp requirements/dev.txt .venv/lock.txt && \
	$(BIN)/uv pip compile pyproject.toml --group dev --all-extras \
	  --universal --python-version 3.11 --no-strip-extras --generate-hashes --no-annotate --quiet \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --output-file .venv/lock.txt $(ARGS) && \
	{ cmp -s .venv/lock.txt requirements/dev.txt || cp .venv/lock.txt requirements/dev.txt; }

clean:  ## remove what the targets made
	rm -rf .venv dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment holds the lock and nothing else: a new lock, a new environment.
# Candidates are tried by running them, since a pyenv shim may exist for a version that is not there.
.venv/.locked: requirements/dev.txt
	@found=; bare=; \
	for p in $(PYTHON); do \
	  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	  if "$$p" -c 'import ensurepip, venv' >/dev/null 2>&1; then found=$$p; break; fi; \
	  bare=$$p; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	  echo "error: $$bare cannot make virtual environments (no ensurepip)." >&2; \
	  echo "       On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	if [ -z "$$found" ]; then \
	  echo "error: none of these is a Python 3.11 or newer that runs: $(PYTHON)" >&2; \
	  echo "       Name one: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; \
	fi; \
	echo "setting up .venv with $$("$$found" --version) ..."; \
	"$$found" -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

$(READY): .venv/.locked pyproject.toml
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check >/dev/null || \
	  { $(BIN)/python -m pip check; echo "error: the lock lacks something: run make lock" >&2; exit 1; }
	@touch $@
