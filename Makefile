# `make` lists the targets. Everything is installed into .venv; nothing else on the machine changes.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# A plain torch brings gigabytes of CUDA. Without a GPU it comes from here, if this can be reached.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

# Used only when .venv is made.
SUITABLE = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
    $$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)

.PHONY: help setup demo bench-export bench-serve bench-transports architectures kill-exports soak fuzz check format-check lint types unit test e2e format constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## install everything into .venv

demo: $(STAMP) ## fetch a model, export it, serve it, generate text, stop the server
	@$(BIN)/python -m gptport.demo

.PHONY: reference
reference: $(STAMP) ## write docs/generation.md and docs/metrics.md from their tables
	@$(BIN)/python -m gptport_backend.reference docs

check: format-check lint types unit ## format, lint, types and unit tests

format-check: $(STAMP)
	@$(BIN)/ruff format --quiet --check . || { echo "make format puts it right"; exit 1; }

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .

types: $(STAMP)
	@$(BIN)/mypy --no-error-summary

# In processes beside each other, as many tests only wait; what shares a server or a file stays in one. WORKERS=0: in this one.
WORKERS ?= 2
IN_WORKERS = -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

unit: $(STAMP)
	@$(BIN)/pytest -q $(IN_WORKERS) -m "not e2e"

test: check e2e ## check, and the tests that run the real tritonserver

e2e: check
	@$(BIN)/pytest -q $(IN_WORKERS) -m e2e -o timeout=900

# Root on Debian gets the programs that are missing; for others, the tests that need them are skipped and say so.
PROGRAMS := haproxy prometheus curl
.PHONY: deployment
deployment: $(STAMP) ## the tests of docker/ and kubernetes/, with HAProxy, Prometheus and a package registry
	@for program in $(PROGRAMS); do PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || missing=yes; done; \
	    [ -z "$$missing" ] || [ "$$(id -u)" -ne 0 ] || { apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(PROGRAMS) >/dev/null; } || true
	@GPTPORT_DEPLOYMENT=1 $(BIN)/pytest -q tests/deployment -o timeout=900

architectures: $(STAMP) ## export a small model of each architecture that transformers knows; writes docs/architectures.md
	@$(BIN)/python tests/exporter/architectures.py

bench-export: $(STAMP) ## measure decoding and exporting against peers; about 20 minutes once the peers are installed, BENCH=--quick for less
	@$(BENCHMARK) all $(BENCH)

bench-serve: $(STAMP) ## measure serving, through Triton, against vLLM; about 25 minutes, BENCH=--quick for less
	@$(BENCHMARK) serve $(BENCH)

bench-transports: $(STAMP) ## measure what a token costs in each loop and over each transport; about 10 minutes, BENCH=--quick for less
	@$(BENCHMARK) transports $(BENCH)

kill-exports: $(STAMP) ## kill 30 exports at random moments; each time the repository must still load
	@KILLS=30 $(BIN)/pytest -q -s tests/exporter/test_killed.py

MINUTES ?= 30
soak: $(STAMP) ## half an hour of mixed load, clients killed: no wrong answer, nothing left; MINUTES=5 for less
	@SOAK_MINUTES=$(MINUTES) $(BIN)/pytest -q -s tests/e2e/test_soak.py

REQUESTS ?= 100000
fuzz: $(STAMP) ## 100,000 requests of all kinds over HTTP: all are answered, nothing breaks; REQUESTS=1000 for less
	@FUZZ_REQUESTS=$(REQUESTS) $(BIN)/pytest -q -s tests/e2e/test_fuzz.py

format: $(STAMP) ## format the code, and repair what the linter can
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

# Resolves without installing, for torch with CUDA too; pip's settings for this machine are left aside.
constraints: $(STAMP) ## write anew what the chosen packages of constraints.txt need
	@sed '/^# What they need/q' constraints.txt >$(VENV)/constraints.txt
	@PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= $(PIP) install --quiet --dry-run --ignore-installed -c $(VENV)/constraints.txt \
	    --report $(VENV)/resolved.json '.[export,serve,structured,gateway,bench,dev]' 'onnxruntime-gpu[cuda,cudnn]'
	@$(BIN)/python -c "$$NEEDED" $(VENV)/constraints.txt $(VENV)/resolved.json >>$(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt constraints.txt

define NEEDED
import json, sys
chosen = open(sys.argv[1]).read()
found = [each["metadata"] for each in json.load(open(sys.argv[2]))["install"]]
pins = [each["name"] + "==" + each["version"].split("+")[0] for each in found if each["name"] != "gptport"]
print(*sorted((pin for pin in pins if pin not in chosen.split()), key=str.lower), sep="\n")
endef
export NEEDED

clean: ## remove .venv and all caches; exported models and checkpoints stay
	@rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Runs a command, and shows what it said only if it fails.
QUIETLY := quietly() { said=$$("$$@" 2>&1) || { echo "$$said"; return 1; }; }; quietly
BENCHMARK = $(QUIETLY) $(PIP) install --quiet -c constraints.txt -e '.[bench]' && \
    TORCH_CPU_INDEX=$(TORCH_CPU_INDEX) $(BIN)/python -m benchmarks
HAS_GPU := nvidia-smi -L >/dev/null 2>&1
REACHABLE := import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)

$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c '$(SUITABLE)' 2>/dev/null || { echo "gptport needs Python 3.11 or 3.12 and tried" \
	    "$(or $(PYTHON),python3 python3.12 python3.11). Install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments;" \
	    "on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV). The first time that takes some minutes."
	@$(BIN)/python -c '$(SUITABLE)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@PYTHONPATH=exporter $(BIN)/python -m gptport.libpython $(VENV)/lib
	@$(HAS_GPU) || ! $(BIN)/python -c '$(REACHABLE)' $(TORCH_CPU_INDEX) 2>/dev/null || \
	    $(PIP) install --quiet --no-deps --index-url $(TORCH_CPU_INDEX) -c constraints.txt torch 2>/dev/null || true
	@$(QUIETLY) $(PIP) install --quiet -c constraints.txt -e '.[export,serve,structured,gateway,dev]'
	@! $(HAS_GPU) || { $(install-onnxruntime-for-gpu); }
	@touch $@

# Both packages hold the module onnxruntime, and either may have written over the other: both go before one comes.
define install-onnxruntime-for-gpu
$(PIP) uninstall --quiet --yes onnxruntime onnxruntime-gpu 2>/dev/null && \
	    $(QUIETLY) $(PIP) install --quiet -c constraints.txt 'onnxruntime-gpu[cuda,cudnn]'
endef
