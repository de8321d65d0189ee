# `make demo` and `make test` each do all set-up: a virtual environment in .venv/, the pinned libraries, the project.
# EXTRA=cuda takes fbgemm's CUDA build in place of the CPU one.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check install -c constraints.txt
# One thread a test process: two processes that each start two threads wait for one another on two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

.PHONY: demo test test-long lint clean .venv
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/helm-gym demo

test: lint
	@echo "== tests"
	@$(PYTEST)

test-long: lint
	@echo "== tests, the long ones too"
	@$(PYTEST) -m "long or not long"

lint: .venv/installed
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: .venv/installed

# torch first and alone: drawn in by another package, pip could take another build of it, with gigabytes of CUDA.
.venv/installed: pyproject.toml constraints.txt
	@echo "== setting up .venv (about a minute; more where torch is downloaded)"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@$(PIP) -e ".[$(EXTRA),dev]"
	@echo "== compiling kernels for this machine (a minute or two)"
	-@$(BIN)/helm-gym warm
	@touch $@
