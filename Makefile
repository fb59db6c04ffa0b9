# make demo and make test work from a fresh clone; each installs what it needs first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check format clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: install          ## the whole path on generated clips with the embedded pair: demo-out/
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
