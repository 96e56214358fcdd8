# Needs Python 3.11 or newer, make and a package index. `make demo` and `make test` build .venv by themselves.
.DEFAULT_GOAL := help
.PHONY: help env demo test check format lock clean

PYTHONS := python3 python3.13 python3.12 python3.11 python3.14
PYTHON ?= $(shell for p in $(PYTHONS); do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin

help:
	@echo "make demo    fine-tune, measure and report on the embedded pictures"
	@echo "make test    the test suite"
	@echo "make check   style, types and import contracts"
	@echo "make format  mend what style tools can mend"
	@echo "make env     build or repair .venv only"
	@echo "make lock    requirements.lock anew from requirements.in"
	@echo "make clean   remove .venv and caches"

env:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	|| { echo "make: Python 3.11 or newer is needed$(if $(PYTHON), and '$(PYTHON)' is not,: none of $(PYTHONS) is). Install one, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) third_party/make_env.py

demo: env
	@$(BIN)/python tools/demo.py

test: env
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

check: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

format: env
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format

lock: env
	$(BIN)/uv pip compile -q requirements.in --universal --fork-strategy fewest --python-version 3.11 --no-header --no-annotate --upgrade -o requirements.lock

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
