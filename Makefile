# make install | demo | test | bench | clean.  Another interpreter: make install PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Real data for tests and benchmarks; without it the tests that need it skip and say so.
ifneq ($(wildcard ../shared/data/.),)
export PPL_VAE_DATA ?= $(abspath ../shared/data)
endif

.PHONY: install demo test bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[test,bench]"
	touch $@

demo: install
	$(BIN)/ppl-vae demo

# Two processes of one thread each: several multi-threaded torch processes on a few cores slow each other down badly.
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

bench:
	@echo "Run one with: $(BIN)/python <script>"
	@ls benchmarks/*.py 2>/dev/null || echo "(no scripts yet)"

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
