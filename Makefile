# Every target works on a fresh clone: the environment is made first where it is needed.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Where pipx puts uv, which a fresh shell's PATH may lack.
export PATH := $(PATH):$(HOME)/.local/bin
# CPython 3.12 or 3.13, from the PATH, from pyenv, or from uv, which fetches one where it may.
PYTHON ?= $(shell for p in python3.13 python3.12 python3 "$$HOME"/.pyenv/versions/3.1[23]*/bin/python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && exit; \
	done; uv python find --system 3.12 2>/dev/null)
NO_PYTHON := no Python 3.12 or 3.13 found. Debian 13, Ubuntu 24.04: apt install python3-venv. Debian 12, Ubuntu 22.04: \
	apt install pipx && pipx install uv, then make fetches one. Fedora, RHEL: dnf install python3.12. macOS: brew \
	install python@3.13. Anywhere: make PYTHON=/path/to/python
VENV := .venv
PY := $(VENV)/bin/python
# As modules: so they are this checkout's, whatever is installed in a .venv that several share.
SERVER := $(PY) -m server.cli
SITE_COMMAND := $(PY) -m client.cli
PORT ?= 8443
CONFIG ?= configs/demo.toml
DATA ?= data/sample

# $(call needs,target,VARIABLE or VARIABLE|VARIABLE,how to call it): ends make with one line and code 2, before
# anything is made, if `target` is asked for and no such variable is set.
needs = $(if $(filter $(1),$(MAKECMDGOALS)),$(if $(strip $(foreach name,$(subst |, ,$(2)),$($(name)))),,$(error \
	$(1) needs $(subst |, or ,$(2)): make $(1) $(3))))
$(call needs,resume,RUN,RUN=demo-20261123-184002)
$(call needs,rollback,RUN,RUN=demo-20261123-184002 ROUND=7)
$(call needs,rollback,ROUND,RUN=demo-20261123-184002 ROUND=7)
$(call needs,report,RUN,RUN=demo-20261123-184002)
$(call needs,simulate,RUN|POLICY,RUN=demo-20261123-184002 or POLICY=folder)
$(call needs,serve,RUN|POLICY,RUN=demo-20261123-184002 or POLICY=folder)
$(call needs,compare,A,A=policy folder B=policy folder)
$(call needs,compare,B,A=policy folder B=policy folder)
$(call needs,site-revoke,NAME,NAME=lab-b)

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements.lock
	@test -n "$(PYTHON)" || uv python install 3.12 2>/dev/null || { echo "error: $(NO_PYTHON)" >&2; exit 2; }
	"$(or $(PYTHON),$$(uv python find --system 3.12))" -m venv $(VENV)
	@# What installs and builds the others comes first, out of the same lock.
	awk '/^[^ #]/ {on = /^(setuptools|uv)==/} on' requirements.lock >$(VENV)/first.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/first.lock
	$(VENV)/bin/uv pip install --python $(PY) --require-hashes --no-build-isolation-package docopt \
		--compile-bytecode -r requirements.lock
	@# so100-server and so100-site. A .venv that is a link belongs to another checkout.
	test -L $(VENV) || $(VENV)/bin/uv pip install --python $(PY) --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: env
env: $(VENV)/.installed ## make the Python environment in .venv from the lock file

# What names data of your own, in .env or the environment; docker/prepare.sh says which of them are needed.
OWN_DATA = $(strip $(shell docker/env.sh SITE_A_DATA SITE_B_DATA EVALUATION_DATA))

.PHONY: certs
certs: keys $(if $(filter certs up,$(MAKECMDGOALS)),$(if $(OWN_DATA),,sample-data)) ## what `docker compose up` needs: keys, sample data unless .env names your own, .env
	@docker/prepare.sh

.PHONY: keys
keys: $(VENV)/.installed ## issue what is missing of CA, certificate, site keys, secret (SITE=name adds a site, ROTATE=1 renews the certificate)
	@$(SERVER) keys $(if $(SITE),--site "$(SITE)") $(if $(ROTATE),--rotate)

.PHONY: certs-check
certs-check: $(VENV)/.installed ## show subjects, names and days left; exit 1 if something is wrong
	@$(SERVER) keys --check

.PHONY: sample-data
sample-data: $(VENV)/.installed ## record data/sample on a simulated arm: site-a, site-b and holdout
	@$(SERVER) sample-data

.PHONY: demo
demo: keys $(if $(subst data/sample,,$(DATA)),,sample-data) ## a whole federated run on this machine (CONFIG=, DATA=, PORT=)
	@$(SERVER) demo --config "$(CONFIG)" --data "$(DATA)" --port $(PORT)

.PHONY: arm
arm: keys ## a federated run on an easier task, whose policy drives the simulated arm at its end (PORT=)
	@$(SERVER) sample-data --out data/arm --scenes left,right --episodes 100 --eval-episodes 8
	@$(SERVER) demo --config configs/arm.toml --data data/arm --port $(PORT)

.PHONY: resume
resume: keys ## go on with an interrupted run after its last complete round, as it began (RUN=name, or other CONFIG=, DATA=, PORT=)
	@$(SERVER) resume "$(RUN)" $(if $(filter-out file,$(origin DATA)),--data "$(DATA)") \
		$(if $(filter-out file,$(origin CONFIG)),--config "$(CONFIG)") --port $(PORT)

.PHONY: rollback
rollback: $(VENV)/.installed ## take a run back to a checkpoint, then make resume (RUN=name ROUND=7)
	@$(SERVER) rollback "$(RUN)" "$(ROUND)"

.PHONY: report
report: $(VENV)/.installed ## write report.html and plots of outputs/RUN again (RUN=name)
	@$(SERVER) report "$(RUN)"

.PHONY: simulate
simulate: $(VENV)/.installed ## let a policy drive the simulated arm (RUN=name or POLICY=folder, EPISODES=20, SCENES=left,right)
	@$(SERVER) simulate $(if $(POLICY),--policy "$(POLICY)","$(RUN)") $(if $(EPISODES),--episodes $(EPISODES)) \
		$(if $(SCENES),--scenes "$(SCENES)")

.PHONY: compare
compare: $(VENV)/.installed ## which of two policy folders drives the simulated arm better (A= B= EPISODES=50 SCENES=)
	@$(SERVER) compare "$(A)" "$(B)" $(if $(EPISODES),--episodes $(EPISODES)) $(if $(SCENES),--scenes "$(SCENES)")

.PHONY: serve
serve: $(VENV)/.installed ## LeRobot's asynchronous inference for a robot (RUN=name or POLICY=folder, SERVE_PORT=8080)
	@$(SERVER) serve $(if $(POLICY),--policy "$(POLICY)","$(RUN)") $(if $(SERVE_PORT),--port $(SERVE_PORT))

.PHONY: lint
lint: $(VENV)/.installed ## ruff, mypy, and a scan for secrets in what git holds
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	git ls-files -z | xargs -0 $(VENV)/bin/detect-secrets-hook --exclude-files '\.lock$$' \
		--disable-plugin Base64HighEntropyString --disable-plugin HexHighEntropyString

# Two halves that take the same time: the unit tests with these behind them, the other integration tests.
AFTER_UNIT := $(patsubst %,tests/integration/test_%.py,lerobot_tools membership owner_rules proxies stop superlink_guard superlink_upgrade)
TESTS_unit := tests/unit
TESTS_integration := tests/integration
TESTS_after-unit := $(AFTER_UNIT)
TESTS_beside := tests/integration $(AFTER_UNIT:%=--ignore=%)

.PHONY: test
test: $(VENV)/.installed ## the whole test suite with coverage: unit tests, and those with real processes, on two cores
	rm -f .coverage .coverage.*
	@$(MAKE) --no-print-directory --jobs 2 test-first-half test-beside
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report

.PHONY: test-first-half
test-first-half:
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-after-unit

.PHONY: test-unit test-integration test-after-unit test-beside
test-unit test-integration test-after-unit test-beside: test-%: $(VENV)/.installed
	@set -o pipefail; COVERAGE_FILE="$(CURDIR)/.coverage" $(VENV)/bin/coverage run -m pytest $(TESTS_$*) $(PYTEST_ARGS) \
		2>&1 | sed -u 's/^/$*: /'

.PHONY: unit
unit: $(VENV)/.installed ## the unit tests that take no seconds, on two cores: what to run while you work
	@$(MAKE) --no-print-directory --jobs 2 unit-server unit-others

.PHONY: unit-server unit-others
unit-server unit-others: unit-%: $(VENV)/.installed
	@set -o pipefail; $(VENV)/bin/python -m pytest -q -m "not slow" $(PYTEST_ARGS) \
		$(if $(filter server,$*),tests/unit/server,tests/unit --ignore=tests/unit/server) 2>&1 | sed -u 's/^/$*: /'

.PHONY: faults
faults: $(VENV)/.installed ## take processes away in the middle of runs; writes tests/integration/faults/MATRIX.md
	FAULT_MATRIX=tests/integration/faults/MATRIX.md $(PY) -m pytest -q \
		tests/integration/test_hostile_sites.py tests/integration/faults/test_faults.py \
		tests/integration/faults/slow_faults.py

.PHONY: bench
bench: $(VENV)/.installed sample-data keys ## the benchmarks, about an hour and a half on two cores; ratios as JSON in tests/benchmarks
	$(PY) -m tests.benchmarks.aggregation
	$(PY) -m tests.benchmarks.block_size
	$(PY) -m tests.benchmarks.round_trip
	$(PY) -m tests.benchmarks.full_size_round
	$(PY) -m tests.benchmarks.codec_accuracy
	$(PY) -m tests.benchmarks.data_loading
	$(PY) -m tests.benchmarks.judgement
	$(PY) -m tests.benchmarks.step_time
	$(PY) -m tests.benchmarks.step_time --size smolvla --batch-sizes 1 --pairs 8 --round-steps 2
	$(PY) -m tests.benchmarks.process_start
	$(PY) -m tests.benchmarks.inference
	$(PY) -m tests.benchmarks.inference_modes
	$(PY) -m tests.benchmarks.poisoning

.PHONY: study
study: $(VENV)/.installed ## federated against centralised training on four simulated sites, about an hour on two cores
	$(PY) -m tests.benchmarks.study

# Docker
.PHONY: base-image
base-image: ## where no image registry can be reached: make the images' base from Debian packages, set .env accordingly
	@docker/base-image.sh

.PHONY: images
images: ## build the images, that of the sites too where none is here
	docker compose --profile sites-here build

.PHONY: up
up: certs ## start the cluster as containers and submit the run (CONFIG= and GPU=1, for NVIDIA, are kept in .env)
	docker compose up --detach
	docker compose logs --follow --no-log-prefix run

.PHONY: down
down: ## stop the containers; state, outputs and caches stay in their volumes
	docker compose down

.PHONY: test-container
test-container: $(VENV)/.installed ## the container tests; they need a Docker engine and the images
	$(VENV)/bin/python -m pytest tests/container $(PYTEST_ARGS)

.PHONY: site-revoke
site-revoke: $(VENV)/.installed ## shut a site out for good (NAME=lab-b)
	@$(SERVER) revoke "$(NAME)" $(if $(CONTROL),--control $(CONTROL))

.PHONY: doctor
doctor: $(VENV)/.installed ## look at datasets and this machine before joining (DATA=folder, SUPERLINK=host:port, FULL=1)
	@$(SITE_COMMAND) doctor --dataset "$(DATA)" $(if $(FULL),--full) \
		$(if $(SUPERLINK),--superlink $(SUPERLINK) --ca certs/generated/superlink/ca.crt)

.PHONY: repair
repair: $(VENV)/.installed ## what can be saved of a damaged or an old dataset, in a new folder (DATA=folder, NEW=folder, WITHOUT=3,7)
	@$(SITE_COMMAND) repair "$(DATA)" $(if $(NEW),"$(NEW)") $(if $(WITHOUT),--without "$(WITHOUT)")

.PHONY: lock
lock: $(VENV)/.installed ## resolve requirements.lock and the images' subsets of it anew
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.12 --all-extras \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.12 \
		--constraint requirements.lock --custom-compile-command "make lock" pyproject.toml -o docker/train.lock
	$(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.12 --extra sim \
		--constraint docker/train.lock --custom-compile-command "make lock" pyproject.toml -o docker/server.lock
	echo flwr | $(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.12 \
		--constraint requirements.lock --custom-compile-command "make lock" - -o docker/superlink.lock

.PHONY: clean
clean: ## remove the environment, caches and the sample data; recordings of your own, certificates and outputs stay
	@test ! -e data || test -z "$(PYTHON)" || PYTHONDONTWRITEBYTECODE=1 "$(PYTHON)" -m server.simulation.sample_folder data/sample data/arm
	rm -rf $(VENV) .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis build so100_federation.egg-info
