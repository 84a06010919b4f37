# Everything installs itself: a clean machine with Python 3.11 to 3.13 and make is enough.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export UV_SYSTEM_CERTS := 1
# Never fetch an interpreter: the one that is here is the one that is meant.
export UV_PYTHON_DOWNLOADS := never
# Images of containers set it: each process would then compile anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# uv from PATH, else one of our own in .uv/.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
export UV
PYTHON ?= $(shell for v in python3.11 python3.12 python3.13 python3; do \
	command -v $$v >/dev/null 2>&1 && $$v -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && { echo $$v; break; }; done)
BIN := .venv/bin
MEMBERS := shared services/ingest services/dispatcher services/worker-edge services/worker-remote services/judge services/console cli
# One by one: two files named conftest.py are one module to mypy.
TESTS := deploy/docker/check tests/contract tests/conformance tests/console tests/chaos tests/e2e tests/bench tests/fuzz tests/mutation $(wildcard tests/unit/*)
SOURCES := $(MEMBERS) migrations tests examples deploy
SERVICES := ingest dispatcher judge worker-edge worker-remote console
LOCKS := deploy/docker/requirements

.PHONY: help setup demo test test-kills test-crashes chaos soak test-node test-console test-planted test-edge test-edge-kills test-batch test-unit check check-deploy format bench bench-scale bench-plots bench-doors bench-tenants bench-edge bench-judge bench-fusion bench-fusion-real bench-views bench-console screenshots soak-edge image-check fuzz mutation audit sbom lock docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.uv/bin/uv:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 found: install one, or name it with make PYTHON=…"; exit 2; }
	@$(PYTHON) -m venv .uv && .uv/bin/python -m pip install -q --disable-pip-version-check 'uv>=0.9,<1'

.venv/.ready: requirements.lock $(addsuffix /pyproject.toml,$(MEMBERS)) | $(filter .uv/bin/uv,$(UV))
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 found: install one, or name it with make PYTHON=…"; exit 2; }
	@test -x $(BIN)/python || $(UV) venv -q --python $(PYTHON) .venv
	@$(UV) pip install -q --python $(BIN)/python --require-hashes -r requirements.lock
	@$(UV) pip install -q --python $(BIN)/python --no-deps $(addprefix -e ./,$(MEMBERS))
	@touch $@

setup: .venv/.ready ## install everything into .venv (leaves .venv/bin/fusewire)

demo: setup ## fuse 14 prompts with small models on this machine; SMALL=1 takes the smallest alone
	@$(BIN)/fusewire demo

test: setup ## run all tests (PostgreSQL and NATS are started by the tests); ARGS="…" goes to pytest
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-kills: setup ## run schedules of kills, freezes and outages from ten seeds; writes build/kills.jsonl
	@mkdir -p build && rm -f build/kills.jsonl
	@KILL_SEEDS=$(or $(SEEDS),10) KILL_SECONDS=$(or $(SECONDS),30) KILL_REPORT=build/kills.jsonl $(BIN)/python -m pytest tests/e2e/test_kills.py $(ARGS)

test-crashes: setup ## kill a process at each crash point, ROUNDS (3) times on each database; writes build/crashes.jsonl
	@mkdir -p build && rm -f build/crashes.jsonl
	@CRASH_ROUNDS=$(or $(ROUNDS),3) CHAOS_REPORT=build/crashes.jsonl $(BIN)/python -m pytest tests/chaos/test_crash_points.py $(ARGS)

chaos: setup ## break a stack in all ways under load: PARTS, PROMPTS (2000), KILLS (60), SEED; writes build/chaos.json
	@tests/chaos/faketime
	@$(BIN)/python tests/chaos/run.py $(if $(PARTS),--parts $(PARTS)) $(if $(PROMPTS),--prompts $(PROMPTS)) \
		$(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

soak: setup ## keep a stack at half of its capacity for MINUTES (30) and see whether it grows; writes build/soak.json
	@MINUTES=$(or $(MINUTES),30) $(BIN)/python tests/chaos/soak.py

test-node: setup ## run clients of node against a running stack; they are installed from npm
	@mkdir -p build/node && cp tests/e2e/node/package.json tests/e2e/node/calls.mjs build/node
	@cd build/node && npm install --silent --no-package-lock --no-audit --no-fund
	@$(BIN)/python -m pytest -n 2 tests/e2e/node/clients.py $(ARGS)

test-console: setup ## test the console's pages in Chromium, which is installed if there is none and this is Debian
	@tests/console/chromium
	@$(BIN)/python -m pytest tests/console/watching.py tests/console/story.py tests/console/pages.py $(ARGS)

test-planted: setup ## find planted strengths in SEEDS (200) samples, where make test takes 30
	@PLANTED_SEEDS=$(or $(SEEDS),200) $(BIN)/python -m pytest tests/unit/shared/test_ranking.py $(ARGS)

test-edge: setup ## run SCHEDULES (200) random schedules of 16 prompts through the edge engine
	@SCHEDULES=$(or $(SCHEDULES),200) $(BIN)/python -m pytest -n auto tests/unit/worker-edge/test_schedules.py $(ARGS)

test-edge-kills: setup ## kill an edge engine KILLS (50) times while it answers
	@KILLS=$(or $(KILLS),50) $(BIN)/python -m pytest -s tests/conformance/test_edge_kills.py $(ARGS)

test-batch: setup ## kill a batch of 2,000 lines whole, and go on with it
	@BATCH_LINES=2000 $(BIN)/python -m pytest tests/e2e/test_batch.py -k killed_run $(ARGS)

test-unit: setup ## run the tests of pure code alone; ARGS="…" goes to pytest
	@$(BIN)/python -m pytest -n auto --dist worksteal tests/unit tests/contract $(ARGS)

check: setup ## ruff, complexity, names, mypy, import contracts, lock, docs, known vulnerabilities
	@$(BIN)/python tests/lint/audit.py > /dev/null 2>&1 &
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check -q $(SOURCES) || { echo "run make format"; exit 1; }
	@$(BIN)/complexipy --plain --failed --color no --max-complexity-allowed 10 $(MEMBERS) deploy/checks
	@$(BIN)/python tests/lint/names.py $(MEMBERS) deploy/checks
	@$(BIN)/mypy $(addsuffix /fusewire*,$(MEMBERS))
	@$(BIN)/mypy -p checks
	@for folder in $(TESTS); do $(BIN)/mypy --no-error-summary $$folder || exit 1; done
	@$(BIN)/lint-imports
	@$(UV) pip check -q --python $(BIN)/python
	@! grep -n '://' requirements.lock
	@$(BIN)/python -m fusewire_cli.reference --check
	@$(BIN)/python deploy/helm/config_schema.py --check
	@$(BIN)/python tests/lint/audit.py

check-deploy: setup ## check deploy/ without a cluster, and plant faults to see each found (fetches tools)
	@deploy/check --faults

format: setup ## let ruff mend what it can
	@$(BIN)/ruff check -q --fix $(SOURCES); $(BIN)/ruff format -q $(SOURCES)

bench: setup ## measure overhead, throughput and CPU per fusion; writes build/bench.json
	@PYTHONPATH=tests/bench $(BIN)/python -m cost

bench-scale: setup ## measure a fusion with more in flight, stored and running (takes 20 GB); writes build/bench-scale.json
	@PYTHONPATH=tests/bench $(BIN)/python -m cost.scale

bench-plots: setup ## draw docs/scale.png of what bench-scale measured
	@PYTHONPATH=tests/bench $(BIN)/python -m cost.plots

bench-doors: setup ## measure the API's overhead, intake, memory and streaming; writes build/bench-doors.json
	@PYTHONPATH=tests/bench $(BIN)/python tests/bench/doors.py

bench-tenants: setup ## measure what a tenant's batch costs another's prompts; writes build/bench-tenants.json
	@PYTHONPATH=tests/bench $(BIN)/python tests/bench/tenants.py $(ARGS)

bench-edge: setup ## measure edge models beside llama.cpp (downloads 1.7 GB), or some PARTS and MODELS; writes build/bench-edge.json
	@PYTHONPATH=tests/bench $(BIN)/python -m edge $(if $(PARTS),--parts $(PARTS)) $(if $(MODELS),--models $(MODELS))

bench-judge: setup ## measure edge judges on 288 pairs of answers, with the models that have been pulled
	@PYTHONPATH=tests/bench $(BIN)/python tests/bench/judge.py

bench-fusion: setup ## measure how well the strategies fuse, simulated; writes build/bench-fusion.json
	@PYTHONPATH=tests/bench $(BIN)/python -m fusion

bench-fusion-real: setup ## what fusing recorded answers of real small models, or of DATA, is worth; writes build/bench-fusion-real.json
	@PYTHONPATH=tests/bench $(BIN)/python -m fusion.real $(if $(DATA),--data $(DATA))

bench-views: setup ## measure the views on OUTCOMES (1,000,000) of both databases (takes 20 GB); writes build/bench-views.json
	@$(BIN)/python tests/bench/views.py

bench-console: setup ## measure the console's pages on OUTCOMES (1,000,000) in Chromium; writes build/bench-console.json
	@tests/console/chromium
	@$(BIN)/python tests/bench/console.py

screenshots: setup ## take the pictures of the console in docs/img anew
	@tests/console/chromium
	@$(BIN)/python tests/console/screenshots.py

image-check: setup ## build all images with buildah, and run a batch through them with podman; BUILD_OPTIONS="…" goes to buildah
	@$(BIN)/python deploy/docker/check
	@deploy/check --kube-play

soak-edge: setup ## keep an edge worker busy for MINUTES (20) and see whether it grows; writes build/soak-edge.json
	@MINUTES=$(or $(MINUTES),20) $(BIN)/python tests/bench/soak_edge.py

fuzz: setup ## fuzz what reads model files and strangers' text, SECONDS (60) each, and run state machines for EXAMPLES (300)
	@for target in models:gguf models:safetensors models:config models:onnx parsers:jsonl parsers:sse parsers:stream parsers:verdict; do \
		$(BIN)/python tests/fuzz/$${target%:*}.py $${target#*:} --seconds $(or $(SECONDS),60) 2>&1 | tail -n 3; \
		test $${PIPESTATUS[0]} -eq 0 || exit 1; done
	@MACHINE_EXAMPLES=$(or $(EXAMPLES),300) $(BIN)/python -m pytest -o timeout=0 tests/conformance/test_fan_in_machine.py \
		tests/conformance/test_ledger_machine.py tests/conformance/test_outbox_machine.py

mutation: setup ## break pure code and count what no unit test notices, or in some PARTS; writes build/mutation.json
	@$(BIN)/python tests/mutation/run.py $(PARTS)

audit: setup ## look for known vulnerabilities of what is locked, now; make check does so once a day
	@rm -f build/audit.json && $(BIN)/python tests/lint/audit.py

SBOM := build/sbom
LIST = @mkdir -p $(SBOM) && { $(BIN)/cyclonedx-py requirements --no-validate --output-reproducible -o $@ --pyproject
$(SBOM)/fusewire.cdx.json: requirements.lock pyproject.toml
	$(LIST) pyproject.toml $< 2> $@.log || { cat $@.log; exit 1; }; }
$(SBOM)/%.cdx.json: $(LOCKS)/%.lock
	$(LIST) $(or $(wildcard services/$*/pyproject.toml),cli/pyproject.toml) $< 2> $@.log || { cat $@.log; exit 1; }; }
sbom: setup $(SBOM)/fusewire.cdx.json $(patsubst $(LOCKS)/%.lock,$(SBOM)/%.cdx.json,$(wildcard $(LOCKS)/*.lock)) ## list what is locked, in all and for each image, as CycloneDX in build/sbom

EXPORT = $(UV) export -q --frozen --no-emit-workspace --no-header
lock: | $(filter .uv/bin/uv,$(UV)) ## resolve dependencies anew into requirements.lock, and those of each image
	@$(UV) lock -q && $(EXPORT) --all-packages > requirements.lock
	@for name in $(SERVICES); do \
		$(EXPORT) --no-dev --package fusewire-$$name --package fusewire --extra otel > $(LOCKS)/$$name.lock || exit 1; done
	@$(EXPORT) --no-dev --package fusewire-cli > $(LOCKS)/tools.lock
	@$(EXPORT) --no-dev --package fusewire-cli --extra analyst --extra parquet > $(LOCKS)/tools-analyst.lock
	@printf 'setuptools\nuv>=0.9,<1\n' | $(UV) pip compile -q --universal --generate-hashes --no-header --no-annotate - \
		> $(LOCKS)/build.lock

docs: setup ## write the generated references anew
	@$(BIN)/python -m fusewire_cli.reference
	@$(BIN)/python deploy/helm/config_schema.py

clean: ## remove what was installed and built (not .fusewire, your data)
	@rm -rf .venv .uv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .complexipy_cache
