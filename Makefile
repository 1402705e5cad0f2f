# Each target makes its environment first if it is missing. One torch thread: faster than two on a shared machine.
export OMP_NUM_THREADS ?= 1
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test check bench zoo

quickstart: $(VENV)/.installed
	$(BIN)/subnet-search quickstart

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# All networks of torchvision and one of each family of timm; SHARD=1/4 does a quarter, what is known is not done again.
zoo: $(VENV)/.installed
	$(BIN)/python -m benchmarks.evidence.zoo $(if $(SHARD),--shard $(SHARD))

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
