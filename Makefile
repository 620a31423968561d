# One vocabulary for people and for CI. PYTHON picks the interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help:  ## show these verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## install, then pretrain on embedded synthetic images and probe with few labels (no data needed)
	@$(BIN)/jigsawssl demo out=runs/demo

test: lint  ## install with the test tools, lint, then run the tests and the examples in the docstrings
	@$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed-test  ## check the style, the format and the types, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy jigsawssl

format: $(VENV)/.installed-test  ## fix the style and the format in place
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed  ## measure this project beside its peers and print the ratios (half an hour)
	@$(BIN)/python benchmarks/peers.py

clean:  ## remove the virtual environment, caches and builds (runs/ stays)
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv writes: where it is missing, the environment is made (again)
$(BIN)/pip:
	@echo "Making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# The stamps spare a second install until the dependencies change; the code itself is installed editable.
$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/pip
	@echo "Installing jigsawssl into $(VENV) (PyTorch is large: some minutes the first time)"
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(BIN)/pip
	@echo "Installing jigsawssl and its test tools into $(VENV) (PyTorch is large: some minutes the first time)"
	@$(PIP) install --quiet --editable ".[test]"
	@touch $(VENV)/.installed $@
