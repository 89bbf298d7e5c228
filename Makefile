# Two commands: `make quickstart` and `make test`. Both make .venv if it is missing.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
QUICKSTART := cfg/quickstart.yaml

.PHONY: quickstart test test-fast lint format docs lock clean

quickstart: $(INSTALLED)
	$(PY) -m data.prepare --config $(QUICKSTART)
	$(PY) main.py --config $(QUICKSTART)
	$(PY) sample.py --config $(QUICKSTART)

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

# All but the slow tests, within 90 seconds on two cores.
test-fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow"

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# All documents as a site that needs no network: build/site/index.html.
docs: $(INSTALLED)
	$(PY) -m bench.site

# The versions in requirements.txt are installed, not the ranges of pyproject.toml.
$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: Python 3.10 or newer is needed; $(PYTHON) is older. Try: make $(or $(MAKECMDGOALS),quickstart) PYTHON=python3.12"; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

lock:
	uv pip compile --universal --python-version 3.10 --extra dev --extra baselines --extra encoders --extra export --extra docs --extra slides --no-annotate --no-header pyproject.toml -o requirements.txt

clean:
	rm -rf $(VENV) prepared runs build *.egg-info
