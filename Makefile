# `make demo` and `make test` need Python 3.11 or later, make and git; each keeps its virtual environment.
PYTHON ?= python3
BACKENDS := jax tensorflow torch
JOBS := $(shell getconf _NPROCESSORS_ONLN)
export TF_CPP_MIN_LOG_LEVEL := 2
# Without bytecode each process takes 12 to 22 seconds to import a backend, with it 4 to 7; and the tests start dozens.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo docs test test-all test-quick test-oldest bench lint format release-check clean

demo: .venv-demo/done
	KERAS_BACKEND=$${KERAS_BACKEND:-jax} .venv-demo/bin/python examples/demo.py $(ARGS)

# The site, in `site/`: a broken link, or a public name without a docstring or a page, is an error.
docs: .venv-docs/done
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/done: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet griffe-inherited-docstrings mkdocs-jupyter mkdocs-material "mkdocstrings[python]" ruff
	touch $@

# As many parts at a time as there are cores, each of which keeps one busy: the longest first. See "Tests" in CONTRIBUTING.md.
test: lint
	$(MAKE) --jobs $(JOBS) --output-sync=target test-torch test-jax test-across test-tensorflow \
	    OPTIONS='-m "not slow"' COMPILE=--xla_backend_optimization_level=0

# LLVM does not optimize JAX's programs in `make test`, which saves a third of their time. The tests of several devices,
# which are slow ones, would sometimes wait forever.
ifdef COMPILE
test-jax test-across: export XLA_FLAGS := $(COMPILE) $(XLA_FLAGS)
endif

# Every test on every backend: for a release.
test-all: lint
	$(MAKE) --jobs $(JOBS) --output-sync=target test-tensorflow test-jax test-across test-torch OPTIONS=--all

lint: .venv/done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/done
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Threads of PyTorch and scikit-learn wait for each other in loops that keep a core busy: twenty times the time where two
# suites run.
$(BACKENDS:%=test-%) test-across test-quick: export OMP_NUM_THREADS := 1
# Many of JAX's are equal, in one process or another; and in the next run of the tests all are.
test-jax test-across: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.venv/jax-cache
test-jax test-across: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0

# One file on one backend: make test-torch TESTS=tests/test_search.py
TESTS := tests --ignore tests/across

.PHONY: $(BACKENDS:%=test-%) test-across
$(BACKENDS:%=test-%): test-%: .venv/done
	KERAS_BACKEND=$* .venv/bin/python -m pytest $(TESTS) $(OPTIONS)

test-across: .venv/done
	.venv/bin/python -m pytest tests/across $(OPTIONS)

# While one writes: the quickest backend, on two cores.
test-quick: .venv/done
	KERAS_BACKEND=torch .venv/bin/python -m pytest $(TESTS) -m "not slow" --numprocesses 2 --dist loadfile

# Random arguments and inputs, others for each seed: make fuzz CASES=10000 SEED=1
.PHONY: fuzz
CASES := 2000
SEED := 0
fuzz: .venv/done
	KERAS_BACKEND=$${KERAS_BACKEND:-torch} OMP_NUM_THREADS=1 .venv/bin/python tests/support/fuzz.py --cases $(CASES) --seed $(SEED)

# Which faults do the tests find? A sample of mutmut's mutants, others for each seed: make mutants SAMPLE=100 SEED=1
.PHONY: mutants
SAMPLE := 300
mutants: export KERAS_BACKEND := torch
mutants: export OMP_NUM_THREADS := 1
mutants: .venv-mutants/done
	# A single mutant: mutmut makes those of all files, and records which functions each test runs.
	.venv-mutants/bin/mutmut run --max-children 1 keras_vqvae.x___getattr____mutmut_1
	.venv-mutants/bin/mutmut run --max-children 1 \
	    $$(.venv-mutants/bin/python -m benchmarks.mutants --sample $(SAMPLE) --seed $(SEED))
	.venv-mutants/bin/python -m benchmarks.mutants

# Without the cached results of an earlier version: benchmarks/mutants.py changes a function of mutmut.
.venv-mutants/done: pyproject.toml
	$(PYTHON) -m venv .venv-mutants
	.venv-mutants/bin/pip install --quiet --editable ".[test]" mutmut==3.8.1
	rm -rf mutants
	touch $@

# The oldest Keras that the package claims. PyTorch is the quickest; its indexing warns there.
test-oldest: test-oldest-torch
.PHONY: $(BACKENDS:%=test-oldest-%)
$(BACKENDS:%=test-oldest-%): test-oldest-%: .venv-oldest/done
	KERAS_BACKEND=$* OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest $(CONTRACT) \
	    -W "ignore:Using a non-tuple sequence:UserWarning"

# The next Keras, from a clone of its repository: make test-next KERAS_SOURCE=FOLDER
test-next: $(BACKENDS:%=test-next-%) test-next-across
.PHONY: test-next $(BACKENDS:%=test-next-%) test-next-across
$(BACKENDS:%=test-next-%) test-next-across: export PYTHONPATH := $(KERAS_SOURCE):$(CURDIR)
$(BACKENDS:%=test-next-%) test-next-across: export OMP_NUM_THREADS := 1
$(BACKENDS:%=test-next-%): test-next-%: .venv/keras-source
	KERAS_BACKEND=$* XLA_FLAGS="$$(cat .venv/xla-flags)" .venv/bin/python -m pytest $(CONTRACT)

test-next-across: .venv/keras-source
	.venv/bin/python -m pytest tests/across/test_replicas.py

.PHONY: .venv/keras-source
.venv/keras-source: .venv/done .venv/xla-flags
	test -d "$(KERAS_SOURCE)/keras" || { echo "KERAS_SOURCE must be a clone of Keras. Received: '$(KERAS_SOURCE)'"; exit 1; }
	.venv/bin/python -c "import keras; print(keras.__version__, keras.__file__)"

CONTRACT := tests/test_contract*.py tests/test_vqvae.py tests/test_priors*.py

.venv-oldest/done: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --editable . "keras==3.10.0" jax tensorflow-cpu torch==2.13.0 \
	    hypothesis matplotlib pytest scikit-learn
	touch $@

# What a release is made of: both archives are what an index takes, and the wheel's package, not this folder's, keeps the
# contract.
release-check: .venv/done .venv-release/done
	rm -rf dist
	.venv-release/bin/python -m build --no-isolation
	.venv-release/bin/twine check --strict dist/*
	folder=$$(mktemp -d) && cp -r tests pyproject.toml $$folder && cd $$folder && \
	$(CURDIR)/.venv/bin/pip install --quiet --no-deps --target . $(CURDIR)/dist/*.whl && \
	KERAS_BACKEND=torch OMP_NUM_THREADS=1 $(CURDIR)/.venv/bin/python -m pytest tests/test_contract*.py && \
	$(CURDIR)/.venv/bin/python -c "import keras_vqvae; assert keras_vqvae.__file__.startswith('$$folder')" && \
	rm -r $$folder

.venv-release/done: pyproject.toml
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install --quiet build hatchling twine
	touch $@

# A short form; each script says how to run the whole.
bench: $(BACKENDS:%=bench-%)

.PHONY: $(BACKENDS:%=bench-%)
$(BACKENDS:%=bench-%): bench-%: .venv-bench/done
	KERAS_BACKEND=$* .venv-bench/bin/python -m benchmarks.search
	KERAS_BACKEND=$* .venv-bench/bin/python -m benchmarks.step
	KERAS_BACKEND=$* .venv-bench/bin/python -m benchmarks.memory

.venv-bench/done: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --editable ".[bench]"
	touch $@

# Without the bytecode of thousands of files that are never imported, here as below.
.venv/done: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --no-compile --editable ".[test]"
	touch $@

.venv-demo/done: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet --no-compile --editable ".[jax,examples]"
	touch $@

clean:
	rm -rf .venv .venv-* demo dist mutants site benchmarks/results
