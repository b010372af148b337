# ShiftMaster operations. `make` alone explains the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
SHELL_SCRIPTS := .ci/run molecule/closed/files/prepare_directories scripts/apt_directory scripts/bootstrap scripts/docker scripts/images scripts/lock scripts/pack_example scripts/test_api_types scripts/test_awx scripts/test_example scripts/test_mtail scripts/test_rules scripts/with_services
RUN := .venv/bin/python scripts/run_tests.py
DEMO := .venv/bin/python scripts/demo.py

.PHONY: help bootstrap docker images lint format unit readme alerts test test-affected since test-all test-rest bench lock clean \
	demo demo-deploy demo-rollback demo-health demo-fault demo-diagnose demo-backup demo-restore demo-clean

help: ## Show this list
	@echo "ShiftMaster operations: deploy, roll back and check ShiftMaster."
	@echo "Needs git, make and Python 3.12 or later; scenarios and the demo also need Docker."
	@echo "As root on Debian or Ubuntu what is missing gets installed."
	@echo
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-26s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

bootstrap: ## Make .venv with the locked requirements
	@scripts/bootstrap

docker:
	@scripts/bootstrap --docker
	@scripts/docker start

images: docker ## Build the images that scenarios and the demo run on
	@scripts/images

lint: bootstrap ## ruff, yamllint, codespell, ansible-lint (production), shellcheck where present
	@failed=; run() { echo "--- $$*"; "$$@" || failed="$$failed $$1"; }; \
	run ruff check --output-format concise .; \
	run ruff format --check --output-format concise .; \
	run yamllint --strict .; \
	run codespell; \
	run ansible-lint --offline --strict; \
	if command -v shellcheck >/dev/null; then run shellcheck $(SHELL_SCRIPTS); \
		else echo "--- shellcheck is not installed: not run"; fi; \
	test -z "$$failed" || { echo "Not clean:$$failed" >&2; exit 1; }

format: bootstrap ## Let ruff format the Python
	ruff check --fix .
	ruff format .

unit: bootstrap ## Unit tests
	PYTHONDONTWRITEBYTECODE= python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

readme: bootstrap ## Write each role's README.md from its argument specification and its defaults
	python scripts/role_readme.py

alerts: bootstrap ## Write the alert rules and the runbooks from monitoring/
	python scripts/alerts.py

test: docker ## What .ci/run runs: lint, unit tests, and scenarios chosen by what a regression would cost
	@scripts/images base trixie
	@$(RUN) test

since: # before the images are built
	@test -z "$$SINCE" || git rev-parse --verify --quiet --end-of-options "$$SINCE^{commit}" >/dev/null || \
		{ echo "ERROR: There is no commit $$SINCE here." >&2; exit 1; }

test-affected: since images ## The steps that the changes since a commit touch, completely (SINCE=commit; else since the branch began)
	@$(RUN) affected $(SINCE)

test-all: images ## Every step
	@$(RUN) all

test-rest: images ## The steps that have not passed on what is here: goes on with an interrupted test-all
	@$(RUN) rest

bench: images ## Measurements, side by side
	@$(RUN) bench

scenario-%: images ## (make scenario-base) One scenario of molecule/, or another step of scripts/steps.yml
	@$(RUN) $*

demo: docker ## ShiftMaster, Prometheus, Alertmanager and backups on a container that plays the host (VERSION=2.0.0)
	@scripts/images base trixie
	@$(DEMO) up

demo-deploy: ## Deploy another version to the demo under load, VERSION=2.1.0
	@$(DEMO) deploy $(VERSION)

demo-rollback: ## Take the demo back (TO=release, SCHEMA=keep|reverse|restore)
	@$(DEMO) rollback

demo-fault: ## Break something: NAME=idle-transaction, full-disk, redis-stopped, expired-certificate, memory-leak, slow-query, none
	@$(DEMO) fault $(NAME)

demo-health: ## The demo's health
	@$(DEMO) health

demo-diagnose: ## What is broken in the demo, and the address of the report
	@$(DEMO) diagnose

demo-backup: ## A backup of the demo, verified by a restore
	@$(DEMO) backup

demo-restore: ## A test restore of the demo's backup
	@$(DEMO) restore

demo-clean: ## Remove the demo, its container, its images and what it left
	@if [ -x .venv/bin/python ]; then $(DEMO) clean; fi
	@if command -v docker >/dev/null && docker info >/dev/null 2>&1; then scripts/images clean; fi
	@scripts/docker stop

lock: ## Resolve requirements.in again into requirements.txt, with hashes (Python 3.12)
	@scripts/lock

clean: ## Remove .venv and everything that runs left
	rm -rf .venv .cache .ansible
