# make repro   every stale stage of the active profile, JOBS at a time
# make test    the default tests (under 10 minutes on 2 cores)
# make test-services   tests with real servers on loopback: S3, Prefect, workers, a browser (under 12 minutes)
# make check   formatting, lint, types, import contracts, generated files
# make smoke   the whole pipeline at the smallest scale, in a temporary clone that shares the cache

PYTHON ?= python3
JOBS ?= 2
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 1

.PHONY: repro test test-services test-slow check smoke bench
.DEFAULT_GOAL := repro

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
	.venv/bin/python -m flows.locks install
	touch $@

repro: .venv/installed
	python -m flows.walk --jobs $(JOBS)

test: .venv/installed
	python -m pytest -n 2 --dist loadfile

test-services: .venv/installed
	python -m pytest -m "services and not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	python -m pytest -m slow

check: .venv/installed
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	unforge catalogue --check

smoke: .venv/installed
	python -m flows.smoke --jobs $(JOBS)

bench: .venv/installed
	for file in benchmarks/*.py; do python $$file || exit 1; done
