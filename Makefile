# Everything a newcomer and CI need. `make demo` and `make test` set up what they use by themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
FOLDER ?= screenshots
HOT    := $(addprefix src/castling/kinds/postgres/,messages.py changes.py copying.py copystream.py decoder.py drafts.py spool.py)
SEEDS  ?= 10000
START  ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup servers demo test lint sim test-faults test-scale test-mutants bench-postgres bench-apply bench-audit audit-power docs screenshots lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Castling needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV) || { [ "$$(id -u)" = 0 ] && apt-get -qq update && \
	    apt-get -qq install -y python3-venv && $(PYTHON) -m venv $(VENV); } || \
	    { echo "Python can't make virtual environments here: install the package python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

# the modules through which every change goes are compiled, where gcc and Python's headers are at hand (see setup.py)
$(VENV)/.built: $(VENV)/.ready setup.py $(HOT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

setup: $(VENV)/.built ## a virtual environment with what the lock file names

demo: setup ## two nodes, real servers, faults on purpose, and the proof (ARGS="--report FILE")
	$(BIN)/castling demo $(ARGS)

servers:
	@.ci/debian-servers

test: setup servers lint ## lint, then every test but the long runs
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

lint: setup ## ruff, mypy strict, import layers
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

sim: setup ## simulate SEEDS whole groups in virtual time
	$(BIN)/python -m castling.testing.sim --seeds $(SEEDS) --start $(START) $(ARGS)

test-faults: setup servers ## at least 200 random faults on real servers
	$(BIN)/python -m pytest -m faults tests/real $(ARGS)

test-scale: setup servers ## large transactions, rows and backlogs, and the memory that each process takes
	$(BIN)/python -m pytest -m slow -s tests/real/test_scale.py $(ARGS)

test-mutants: setup ## broken builds that the tests must notice
	$(BIN)/python -m castling.testing.mutants $(ARGS)

bench-postgres: setup ## side by side with native replication, ~20 min (ARGS="--parts catchup sync seed rpo overhead apply")
	$(BIN)/python bench/postgres.py $(ARGS)

bench-apply: setup ## apply alone, from hardened journals (ARGS="--native --rounds 5 --scale 4")
	$(BIN)/python bench/apply.py $(ARGS)

bench-audit: setup ## audits beside md5(t::text) of both ends, in turn (ARGS="--rows 400000 --rounds 5")
	$(BIN)/python bench/audit.py $(ARGS)

audit-power: setup ## fifty pieces of each class of damage under load: found, imagined, repaired (ARGS="--pieces 50")
	$(BIN)/python bench/audit_power.py $(ARGS)

screenshots: setup servers ## every page of the portal, two sizes, light and dark (FOLDER=screenshots)
	$(BIN)/python tests/browser/screenshots.py $(FOLDER)

docs: setup ## write the generated pages of docs/reference
	$(BIN)/python -m castling.cli.reference

lock: setup ## resolve the lock file anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-header \
	    --universal --python-version 3.11 -o requirements.lock

clean: ## remove what setup and the tools made
	rm -rf $(VENV) build src/castling/kinds/postgres/*.so src/*__mypyc*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
