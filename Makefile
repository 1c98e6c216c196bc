# kvshare's front door. `make` lists what there is; each line is a thin wrapper over the kvshare tool.
.DEFAULT_GOAL := help
.PHONY: help setup demo up down engine doctor status top logs bundle verify canary bench plan ports key image ship push pull sbom-check lint test test-long test-faults rig rig-down test-unit test-upstream patches-edit patches locks generate benchmarks native test-gpu

NODE ?= all
DEVICE ?=
ARGS ?=
# For native and test-gpu: the Python of an environment with vLLM, LMCache and NIXL.
PYTHON ?= python3
KVSHARE := $(if $(DEVICE),DEVICE=$(DEVICE)) .venv/bin/kvshare
# Namespaces, a firewall and an ssh server, for the scenarios on two machines.
TEST_PACKAGES := iproute2 nftables openssh-server rootlesskit uidmap
PYTEST := .venv/bin/python -m pytest
GUARD := cd docker && ../.venv/bin/python -m guard

# Prints every "target: ## text" below, grouped by its "##@ Group" line.
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ From nothing to a proven run
demo: setup ## This machine, no GPU: build, start, verify, report
	@$(KVSHARE) demo $(ARGS)
down: ## Stop what demo or up started (the engine too, where demo started it)
	@if [ -x .venv/bin/kvshare ]; then $(KVSHARE) down $(ARGS); else echo "nothing was started from here"; fi
engine: setup ## The local Docker engine, where nothing else starts it (ARGS=start, ARGS=stop)
	@$(KVSHARE) engine $(ARGS)
native: ## Without a container engine: all three as plain processes, from PYTHON's vLLM, LMCache and NIXL
	@$(if $(DEVICE),DEVICE=$(DEVICE)) PYTHONPATH=tools $(PYTHON) -m kvshare.site.native

##@ Two machines
doctor: setup ## Whether the machines can run it, before anything is up; the link measured (ARGS="--write")
	@$(KVSHARE) doctor $(ARGS)
up: setup ## Start NODE=prefill (with the controller), NODE=decode, or both
	@$(KVSHARE) up $(NODE) $(ARGS)
status: setup ## What runs where, how it is, and what the controller knows of it
	@$(KVSHARE) status $(ARGS)
top: setup ## Live: where prompts' KV comes from, what peers pull, what runs (ARGS=--once: one look)
	@$(KVSHARE) top $(ARGS)
logs: setup ## Every node's log, merged by time (ARGS="--follow --since 10m --node decode")
	@$(KVSHARE) logs $(ARGS)
bundle: setup ## One archive to find a fault with, without secrets: FILE=name.tar.gz, or a name with the time
	@$(KVSHARE) bundle $(FILE) $(ARGS)
verify: setup ## Prove that KV cache is reused, with right answers (ARGS="--output json")
	@$(KVSHARE) verify $(ARGS)
canary: setup ## A small verification beside whatever traffic there is (ARGS="--node decode-2")
	@$(KVSHARE) canary $(ARGS)
bench: setup ## Measure what reuse is worth, and from which length on (ARGS="--concurrency 1,4,16")
	@$(KVSHARE) bench $(ARGS)
plan: setup ## From which length a pull would pay, without a server (ARGS="--gpu L4 --link 10GbE …")
	@$(KVSHARE) plan $(ARGS)
ports: setup ## Every port, and who must reach it; firewall rules (ARGS="--format nft --node prefill")
	@$(KVSHARE) ports $(ARGS)
key: setup ## ARGS=rotate: another cluster key for every node, one after the other
	@$(KVSHARE) key $(ARGS)

##@ Images
image: setup ## Build the images for DEVICE (cpu, or DEVICE=cuda), on every machine or NODE's
	@$(KVSHARE) image $(NODE) $(ARGS)
ship: setup ## Stream them to NODE from a machine that has them (ARGS="--from CONTEXT")
	@$(KVSHARE) ship $(NODE) $(ARGS)
push: setup ## Push them to REGISTRY=host:port/name, or .env's
	@$(KVSHARE) push $(ARGS)
pull: setup ## Pull them from there, for NODE
	@$(KVSHARE) pull $(NODE) $(ARGS)
sbom-check: setup ## Their Python packages against known advisories (ARGS="--advisories FILE")
	@$(KVSHARE) sbom-check $(ARGS)

##@ For whoever works on kvshare
setup: ## Install what is missing: Docker and its plugins, the tool in .venv
	@setup/setup.sh
lint: ## ruff, mypy, import-linter, shellcheck, hadolint, detect-secrets, compose-lint
	@setup/setup.sh docker/locks/dev.txt
	@tests/lint.sh
test: ## Everything, on a clean machine: lint, unit, configuration, images, scenarios on the real stack
	@setup/setup.sh docker/locks/dev.txt $(TEST_PACKAGES)
	@tests/run.sh
test-long: ## The same, each scenario in its long form
	@setup/setup.sh docker/locks/dev.txt $(TEST_PACKAGES)
	@tests/run.sh --long
test-faults: ## Every fault in its long form, into docs/reliability.md (ARGS="-k partition": that one)
	@setup/setup.sh docker/locks/dev.txt $(TEST_PACKAGES)
	@tests/faults.sh $(ARGS)
rig: ## Two engines on this machine, each host with an address of its own; prints what to put into .env
	@setup/setup.sh docker/locks/dev.txt $(TEST_PACKAGES)
	@.venv/bin/python -m tests.rig up $(ARGS)
rig-down: ## Stop them again (ARGS=--purge removes their images too)
	@.venv/bin/python -m tests.rig down $(ARGS)
test-unit: ## Only what needs no Docker engine
	@setup/setup.sh docker/locks/dev.txt
	@$(PYTEST) --numprocesses auto tests/unit
test-upstream: ## LMCache's own tests of this mode, against the patched package in the CPU engine's image
	@setup/setup.sh docker/locks/dev.txt
	@trap '.venv/bin/kvshare engine stop' EXIT; .venv/bin/kvshare engine start && $(PYTEST) tests/upstream $(ARGS)
test-gpu: ## On a machine with a GPU, from PYTHON's vLLM, LMCache and NIXL: measure it into docs/gpu.md
	@$(PYTHON) -m benchmarks.gpu $(ARGS)
	@$(PYTHON) -m benchmarks.gpu --docs
patches-edit: ## The patches as git repositories in build/patches, a commit a patch, to be edited there
	@setup/setup.sh docker/locks/dev.txt
	@$(GUARD).edit open
patches: setup ## Those commits as docker/patches again, with their hashes and docs
	@$(GUARD).edit save
	@($(GUARD) --docs) > docs/patches.md
	@$(GUARD) --upstream ../docs/upstream
locks: ## Try newer versions (VLLM=0.33.0 LMCACHE=0.5.7rc2, either or both) into docs/upgrade.md
	@setup/setup.sh docker/locks/dev.txt
	@$(GUARD).upgrade $(if $(VLLM),--vllm $(VLLM)) $(if $(LMCACHE),--lmcache $(LMCACHE))
generate: ## Rewrite what is generated: docs from code and from measured data, every golden file
	@setup/setup.sh docker/locks/dev.txt
	@($(GUARD) --docs) > docs/patches.md
	@$(GUARD) --upstream ../docs/upstream
	@.venv/bin/python -m benchmarks --docs
	@.venv/bin/python -m benchmarks.gpu --docs
	@.venv/bin/python -m benchmarks.models --docs
	@.venv/bin/python -m tests.scenarios.under_faults --docs
	@$(PYTEST) --update-golden tests/config tests/unit/test_report.py tests/unit/test_bench_page.py tests/unit/test_doctor_report.py tests/unit/test_docs.py tests/unit/test_ports.py tests/unit/test_schemas.py
benchmarks: ## Measure this machine and write docs/benchmarks.md
	@setup/setup.sh docker/locks/dev.txt
	@.venv/bin/python -m benchmarks $(ARGS)
