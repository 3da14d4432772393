# make install | demo | test | docs | notebooks | arviz1 | dist | bench | clean.  Another interpreter: make install PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Real data for tests and benchmarks; without it the tests that need it skip and say so.
ifneq ($(wildcard ../shared/data/.),)
export PPL_VAE_DATA ?= $(abspath ../shared/data)
endif

# ArviZ 1.x wants Python >= 3.12: an environment of its own, without torch, where such a Python is found.
NEWER ?= $(shell for python in python3.14 python3.13 python3.12 $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python3); do \
	$$python -c "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))" 2>/dev/null && echo $$python && break; done)
ARVIZ1 := .venv-arviz1

.PHONY: install demo test docs notebooks arviz1 dist bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into .venv, 2 GB or more: minutes, without a word"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: install
	$(BIN)/ppl-vae demo

# Two processes of one thread each: several multi-threaded torch processes on a few cores slow each other down badly.
test: install arviz1
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

# Never fails: without such a Python, or a package registry, its test skips and says so.
arviz1:
	@if [ $(ARVIZ1)/.installed -nt constraints-arviz1.txt ]; then :; \
	elif [ -z "$(NEWER)" ]; then echo "No Python >= 3.12 with venv: ArviZ 1.x is not tested (name one: make arviz1 NEWER=...)"; \
	elif rm -rf $(ARVIZ1) && $(NEWER) -m venv $(ARVIZ1) && \
		$(ARVIZ1)/bin/python -m pip install -qq --disable-pip-version-check --retries 1 -r constraints-arviz1.txt; \
	then touch $(ARVIZ1)/.installed; \
	else echo "ArviZ 1.x could not be installed, and is not tested"; fi

# Warnings are errors; nothing is fetched but the extra itself, once.
docs: .venv/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -a -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.venv/.docs: $(STAMP)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

# Source and wheel; the wheel goes into an environment of its own, where a user's program is run and its types are checked, of
# which a wrong one has to be found. For each Python: make dist PYTHON=python3.12
USER := .venv-dist
dist:
	rm -rf dist $(USER)
	$(PYTHON) -m venv $(USER)
	$(USER)/bin/python -m pip install -qq --disable-pip-version-check build
	$(USER)/bin/python -m build --outdir dist . >/dev/null
	$(USER)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt dist/*.whl mypy
	ls -l dist
	cp tests/user/program.py $(USER) && cd $(USER) && bin/python --version && bin/python -I -W error program.py
	cd $(USER) && bin/ppl-vae --version && bin/mypy --config-file= --strict program.py
	cd $(USER) && ! bin/mypy --config-file= -c 'import ppl_vae as pv; pv.fit(1, 2, epochs="3")' >wrong && grep '"epochs"' wrong
	rm -rf $(USER)

# At full size and in place, with the real data: minutes each. The tests run them at small size, and change no file.
notebooks: install
	$(BIN)/python notebooks/execute.py

bench:
	@echo "Run one with: $(BIN)/python <script>"
	@ls benchmarks/*.py 2>/dev/null || echo "(no scripts yet)"

clean:
	rm -rf .venv $(ARVIZ1) $(USER) dist docs/_build .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
