# Every target works on a fresh clone: the environment is made first where it is needed.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The newest CPython of 3.12 or later that is on the PATH or under pyenv.
PYTHON ?= $(shell for p in python3.13 python3.12 python3 $$HOME/.pyenv/versions/3.1[23]*/bin/python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
PY := $(VENV)/bin/python
PORT ?= 8443
CONFIG ?= configs/demo.toml
DATA ?= data/sample

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements.lock
	@test -n "$(PYTHON)" || { echo "error: no Python 3.12 or newer found; install one or run make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip install --python $(PY) --require-hashes --compile-bytecode -r requirements.lock
	touch $@

.PHONY: env
env: $(VENV)/.installed ## make the Python environment in .venv from the lock file

.PHONY: certs
certs: $(VENV)/.installed ## issue what is missing of CA, certificate, site keys, secret (SITE=name adds a site, ROTATE=1 renews the certificate)
	@$(PY) -m certs.issue $(if $(SITE),--site $(SITE)) $(if $(ROTATE),--rotate)

.PHONY: certs-check
certs-check: $(VENV)/.installed ## show subjects, names and days left; exit 1 if something is wrong
	@$(PY) -m certs.issue --check

.PHONY: sample-data
sample-data: $(VENV)/.installed ## record data/sample on a simulated arm: site-a, site-b and holdout
	@$(PY) -m federation.sample_data --out data/sample

.PHONY: demo
demo: certs $(if $(filter data/sample,$(DATA)),sample-data) ## a whole federated run on this machine (CONFIG=, DATA=, PORT=)
	@$(PY) -m server.demo --config $(CONFIG) --data $(DATA) --port $(PORT)

.PHONY: doctor
doctor: $(VENV)/.installed ## look at a site's data set, disk and device before it joins (DATA=folder)
	@$(PY) -m client.doctor --dataset $(DATA)

.PHONY: report
report: $(VENV)/.installed ## write report.html and plots of outputs/RUN again (RUN=name)
	@$(PY) -m server.report outputs/$(RUN)

.PHONY: lint
lint: $(VENV)/.installed ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

.PHONY: test
test: $(VENV)/.installed ## the whole test suite with coverage
	rm -f .coverage .coverage.*
	COVERAGE_FILE=$(CURDIR)/.coverage $(VENV)/bin/coverage run -m pytest $(PYTEST_ARGS)
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report

.PHONY: bench
bench: $(VENV)/.installed sample-data certs ## the benchmarks, about an hour on two cores; ratios as JSON in tests/benchmarks
	$(PY) -m tests.benchmarks.aggregation
	$(PY) -m tests.benchmarks.full_size_round
	$(PY) -m tests.benchmarks.codec_accuracy

.PHONY: lock
lock: $(VENV)/.installed ## resolve requirements.lock anew
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.12 --all-extras \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock

.PHONY: clean
clean: ## remove what the targets above made, except certificates and outputs
	rm -rf $(VENV) data .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
