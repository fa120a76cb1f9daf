# Every target that needs the environment makes it first; once it is there that costs nothing.

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
ARGS ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
EXTRAS ?= cpu,dev
export VENV EXTRAS

BIN := $(VENV)/bin
# Threads of OpenMP spin for a while when they have nothing to do, and whoever shares the cores with them
# waits: where they sleep, a part of the kernels' tests takes 12 s of processor time instead of 25 s.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install serve test test-all test-browser deploy-check kernels-check lint format client docs bench release-check clean

help: ## Show this list
	@echo "Heed: make TARGET [NAME=value …]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Set up .venv, or check that it is up to date (VENV, EXTRAS=cuda,dev, PYTHON)
	@$(PYTHON) scripts/setup_environment.py

serve: install ## Serve in the foreground (PORT, HOST, MODEL, ARGS="any heed or vLLM flag")
	@exec $(BIN)/heed serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: lint ## Lint, type-check, and run all tests but the slow ones (ARGS for pytest)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: lint ## The same with the slow tests
	$(PYTEST) --hypothesis-profile random $(ARGS)

test-browser: install ## Try the playground in a headless Chromium, where one is installed (ARGS for pytest)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/browser/requirements.txt
	$(PYTEST) tests/browser tests/live/test_playground.py $(ARGS)

deploy-check: install ## Test the containers' files and the Helm chart with all that this takes (ARGS for pytest)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/deploy/requirements.txt
	PATH="$(abspath $(BIN)):$$PATH" $(PYTEST) --no-skips tests/deploy/test_chart.py tests/deploy/test_containers.py $(ARGS)
	$(PYTEST) tests/deploy/test_alerts.py $(ARGS)  # skipped, and said so, without promtool, which pip does not have

kernels-check: install ## Prove the Triton kernels without a GPU: interpreter, mutants, compile gate (ARGS="--all")
	$(PYTEST) -m "not slow" --deselect tests/kernels/triton/test_gate.py tests/kernels/triton
	$(BIN)/python tests/kernels/triton/mutants.py --sample 16
	$(BIN)/python tests/kernels/triton/gate.py --self-test $(ARGS)

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Put the code into shape
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

client: install ## Write the methods of the clients from their schemas
	$(BIN)/python scripts/make_clients.py

docs: install ## Build the documentation site into build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: install ## Measure speed and effects on this machine (a quarter of an hour)
	$(BIN)/python benchmarks/host.py
	$(BIN)/python benchmarks/host_scheduler.py
	$(BIN)/python benchmarks/kernel_cpu.py
	$(BIN)/python benchmarks/serving.py --starts 2 --rounds 5
	$(BIN)/python benchmarks/effects.py

release-check: install ## Build sdist and wheel, install them into a clean environment, and serve (minutes)
	$(BIN)/python scripts/release_check.py $(ARGS)

clean: ## Remove the environment, caches and build output
	rm -rf "$(VENV)" "$(VENV).lock" build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
