# Each target does its own set-up: `make demo` or `make test` on a fresh machine needs nothing before it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## virtual environment in .venv with pinned versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: demo
demo: $(READY) ## TNA on real digits, every weight ternary: a minute on two idle cores, no download, no GPU
	$(BIN)/python -m tna_lightning resume=false

.PHONY: test
test: $(READY) ## the tests
	$(BIN)/python -m pytest -m 'not slow' -n auto --dist loadfile

.PHONY: test-slow
test-slow: $(READY) ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

MINUTES ?= 10
.PHONY: torture
torture: $(READY) ## kills, full disks, damaged and hostile files for MINUTES=10; what was wrong, and a table of counts
	$(BIN)/python tests/torture --minutes $(MINUTES)

.PHONY: cross
cross: ## what the tests of the C code for other processors need (Debian, Ubuntu; as root)
	apt-get install -y --no-install-recommends qemu-user clang gcc-aarch64-linux-gnu gcc-riscv64-linux-gnu \
		gcc-arm-linux-gnueabihf gcc-s390x-linux-gnu libc6-dev-arm64-cross libc6-dev-riscv64-cross \
		libc6-dev-armhf-cross libc6-dev-s390x-cross \
		qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi

BENCH := .venv-bench
BENCH_PIP := $(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c benchmarks/constraints.txt

.PHONY: bench-setup
bench-setup: $(BENCH)/.ready ## environment of the benchmarks in .venv-bench: this package and the libraries beside it

$(BENCH)/.ready: pyproject.toml constraints.txt benchmarks/constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH_PIP) torch
	$(BENCH_PIP) -e '.[export]'
	$(BENCH_PIP) loguru matplotlib SciencePlots tensorboard h5py scipy tqdm packaging
	$(BENCH_PIP) --no-deps spikingjelly  # it asks for torchvision, which its core does not use
	@touch $@

.PHONY: bench
bench: $(BENCH)/.ready ## speed and memory beside ReLU and other libraries, into benchmarks/results: keep the machine quiet
	$(BENCH)/bin/python -m benchmarks.speed

.PHONY: lint
lint: $(READY) ## format and lint checks, and that no room imports one above it
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

.PHONY: format
format: $(READY) ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: conf
conf: $(READY) ## conf/signatures anew, from the signatures of what takes the settings
	$(BIN)/python -m tna_lightning.running.signatures

DOCS := $(VENV)/.docs

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

.PHONY: docs
docs: $(DOCS) ## the site, into site/, with its links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # not --quiet, which does not count warnings, and so checks no links

.PHONY: hooks
hooks: ## git runs lint and type before a commit, the tests before a push
	git config core.hooksPath .ci/hooks

RELEASE := build/release
FEW := epochs=1 compile=none model.width=0.25 trainer.limit_train_batches=2

.PHONY: release
release: $(READY) ## wheel and sdist into dist/, each tried in an empty environment
	rm -rf dist $(RELEASE)
	$(BIN)/python -m hatchling build
	for file in dist/*.whl dist/*.tar.gz; do \
		rm -rf $(RELEASE) && $(PYTHON) -m venv $(RELEASE)/env && \
		$(RELEASE)/env/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $$file && \
		(cd $(RELEASE) && env/bin/tna-lightning --version && env/bin/tna-lightning $(FEW) output_dir=runs && \
			env/bin/python -m tna_lightning.export runs/* --format packed --output packed.safetensors && \
			env/bin/python -c 'import tna_lightning; tna_lightning.load_packed("packed.safetensors")') || exit 1; \
	done
	@ls -l dist

.PHONY: type
type: $(READY) ## static types
	$(BIN)/mypy
