# Everything sets itself up: `make demo` and `make test` need only make and Python 3.11 or newer.
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SCRIPTS := infoxlm.py run_mlqa.py run_pretraining.py run_tatoeba.py run_xnli.py

# What is resolved by `make newest`: everything that a Python of ours may be asked to install.
EXTRAS := test,eval,st,onnx,plots,tracking,peft,gpu,demo,docs
# What meets other libraries most closely: tried in each other set of versions.
CLIENT_TESTS := tests/test_modeling.py tests/test_loading.py tests/test_packed.py tests/training/test_trainer.py \
	tests/training/test_contrast.py tests/training/test_safe_trainer.py tests/training/test_heldout_evaluation.py tests/faults \
	tests/hub/test_export.py tests/hub/test_formats.py tests/evaluation/finetuning

.PHONY: help setup demo demo-compare study-smoke test test-pins newest audit bench gpu-wheels gpu-check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo          pre-train a small encoder on real sentence pairs and show what it learnt (minutes)"
	@echo "make demo-compare  the same, with an MLM+TLM-only run beside it"
	@echo "make study-smoke   a study of three arms in small, to see that studies work (a minute)"
	@echo "make test          lint, format check, types, import rules, security, tests"
	@echo "make test-pins     the tests that other libraries can break, in the versions of PINS=constraints-oldest.txt"
	@echo "make newest        resolve the newest versions anew, into constraints-newest.txt (needs the network)"
	@echo "make audit         look for known vulnerabilities in the pinned versions (needs the network)"
	@echo "make bench         measure speed and memory against plain transformers; writes docs/results/speed.md"
	@echo "make gpu-check     certify this machine's GPU and measure it; writes docs/results/gpu (ten minutes)"
	@echo "make gpu-wheels    collect what a GPU machine without a network lacks beside its torch, into .gpu/wheels"
	@echo "make setup         only the virtual environment in $(VENV)"
	@echo "make clean         remove $(VENV), caches, builds and the demo's output"

setup: $(INSTALLED)

# A stamp file, not the folder: after a failed or interrupted install the next make installs again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
		"Python 3.11 or newer is needed, but $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@# torch first: its build is then chosen by the pin alone, before anything else asks for a newer one.
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test,eval,st,onnx,plots,tracking,peft]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

demo-compare: setup
	$(BIN)/python examples/demo.py --compare

study-smoke: setup
	$(BIN)/infoxlm study studies/smoke.yaml

# One torch thread a worker: two workers with all cores each only get in each other's way.
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive modeling_infoxlm benchmarks examples $(SCRIPTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Only what differs from $(VENV) is installed, in front of it: seconds, where a whole environment takes minutes.
PINS ?= constraints-newest.txt
test-pins: setup
	$(PYTHON) -m venv --clear $(VENV)/pins
	printf '%s\n' "$(CURDIR)" "$$($(CURDIR)/$(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
		> $$(echo $(VENV)/pins/lib/python3*/site-packages)/shared.pth
	$(VENV)/pins/bin/python -m pip install --quiet --no-deps --requirement $(PINS)
	OMP_NUM_THREADS=1 $(VENV)/pins/bin/python -m pytest -n 2 $(CLIENT_TESTS)

# torch stays as it is: its builds are large, and which one is right depends on the machine.
newest: setup
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --report $(VENV)/newest.json \
		"$$(grep '^torch==' constraints.txt)" '.[$(EXTRAS)]' pip-audit
	$(BIN)/python .ci/pins.py $(VENV)/newest.json > constraints-newest.txt

# pip-audit is needed for nothing else, and asks the network about each version.
audit: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

bench: setup
	$(BIN)/python -m benchmarks

# Where .gpu/wheels lie they are installed in front of what the machine has, without a network: its torch stays.
ifneq ($(wildcard .gpu/wheels),)
gpu-check:
	$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target .gpu/site .gpu/wheels/*.whl
	PYTHONPATH=.gpu/site:. HF_HUB_OFFLINE=1 $(PYTHON) -m benchmarks.gpu_check
else
gpu-check: setup
	$(BIN)/python -m benchmarks.gpu_check
endif

GPU_PYTHON ?= 3.12
gpu-wheels: setup
	mkdir -p .gpu/wheels
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --dest .gpu/wheels \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
		$$(grep -iE '^($(GPU_PACKAGES))==' constraints.txt)
GPU_PACKAGES := transformers|huggingface_hub|tokenizers|httpx2|httpcore2|truststore|zstandard|click|datasets|dill|multiprocess|evaluate|hypothesis|pytest-timeout|PyYAML|hf-xet|safetensors|typer

clean:
	rm -rf $(VENV) .gpu build dist demo_output .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -rf modeling_infoxlm.egg-info modeling_infoxlm_*.egg-info
	find modeling_infoxlm benchmarks examples tests -name __pycache__ -type d -exec rm -rf {} +
