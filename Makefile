# Each command makes what it needs and then runs. Needs Python 3.11 or newer; uses uv where it is installed.
# ARGS are passed on:           make chat ARGS="-m folder"     make test ARGS="tests/store -k damage"
# PYTHON names the one to use:  make clean test PYTHON=python3.13

VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
PYTHON = $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$p && break; done)

# Tests run side by side, and a process that is done takes some of another's; make test WORKERS= runs them in turn.
WORKERS = --numprocesses=auto --maxprocesses=4 --dist=worksteal

help:
	@echo "make chat    open the chat; with stdin or stdout in a pipe: print one reply"
	@echo "make test    run the tests"
	@echo "make lint    ruff, pyright, mypy on the documentation, who may import whom, and whether each import is declared"
	@echo "make bench   speed and memory against mlx-lm on this machine, in 15 minutes; make bench-full takes hours"
	@echo "make figures       the figures of docs/, from what bench-full found"
	@echo "make screenshots   the pictures of README.md and docs/chat.md"
	@echo "make docs    the documentation site, in build/site; ARGS=serve shows it on this machine"
	@echo "make real-models   fetch and convert SmolLM2 135M and Gemma 3 270M, for the tests marked real"
	@echo "make test-real   the tests on SmolLM2's weights, which it makes first"
	@echo "make dist    build the sdist and the wheel into dist/, and check them"
	@echo "make installs      install the sdist with uv in an empty home, and the checkout with pip"
	@echo "make tutor   train the built-in model anew; make tutor-eval measures it"
	@echo "make clean   remove all that these made"

chat: $(VENV)/ready-chat
	@$(BIN)/mlxkv $(ARGS)

test: $(VENV)/ready-test
	@$(BIN)/python -m pytest $(WORKERS) $(ARGS)

lint: $(VENV)/ready-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/python -m tests.docs.typed_blocks
	$(BIN)/lint-imports
	$(BIN)/deptry mlxkv tui models --extend-exclude models/training
	$(BIN)/deptry tests bench models/training examples packaging --non-dev-dependency-groups test,train,real,bench --ignore DEP002

bench: $(VENV)/ready-chat
	@$(BIN)/python -m bench $(ARGS)

bench-full: $(VENV)/ready-chat
	@$(BIN)/python -m bench --set full --json bench/results/full.json $(ARGS)

figures: $(VENV)/ready-bench
	@$(BIN)/python -m bench.figures $(ARGS)

# ARGS="smollm2" makes that one alone. The folders: build/real-models, or what MLXKV_REAL_MODELS names.
real-models: $(VENV)/ready-real
	@$(BIN)/python -m bench.real_weights $(ARGS)

# Without pytest's cache, which has what failed of the other tests: .ci/run runs these beside them.
test-real:
	@$(MAKE) real-models ARGS=smollm2
	@$(MAKE) test WORKERS= ARGS="-p no:cacheprovider tests/real -k 'smollm2 or perplexity'"

docs: $(VENV)/ready-docs
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees docs build/site
	@echo "make: the site is in build/site; open build/site/index.html"
	@$(if $(filter serve,$(ARGS)),$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site)

screenshots: $(VENV)/ready-test
	@$(BIN)/python -m bench.screenshots $(ARGS)

dist: $(VENV)/ready-release
	@$(BIN)/python packaging/distributions.py dist

installs: dist
	@$(BIN)/python packaging/installs.py uv=$$(ls dist/*.tar.gz) $(ARGS)
	@rm -rf build/with-pip
	@echo "What is a KV cache?" | $(MAKE) --silent UV= VENV=build/with-pip ARGS=--no-save chat | tee build/reply.txt
	@grep --quiet "keys and values" build/reply.txt

# Three quarters of an hour on two cores. ARGS go to the training: make tutor ARGS="--steps 100".
tutor: $(VENV)/ready-train
	@OMP_NUM_THREADS=1 $(BIN)/python -m mlxkv.models.training.train --out build/tutor $(ARGS)
	@$(BIN)/python -m mlxkv.models.training.export build/tutor models/tutor

tutor-eval: $(VENV)/ready-chat
	@$(BIN)/python -m mlxkv.models.training.evaluate $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache snapshot_report.html
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help chat test lint bench real-models test-real screenshots docs dist installs bench-full figures tutor tutor-eval clean

# -- what they need: a virtual environment, and a stamp in it for each set of packages that is installed -----------
# All of it speaks on stderr and leaves stdin alone: both belong to the chat in `echo question | make -s chat`.

groups_chat :=
groups_test := --group test
groups_docs := --group docs
groups_release := --group test --group release
groups_real := --group real
groups_lint := --group test --group lint --group bench
groups_train := --group train
groups_bench := --group bench
groups_ci := $(groups_lint) $(groups_docs) $(groups_release) $(groups_real)
also_test := chat
also_release := test chat
also_lint := test chat bench
also_bench := chat
also_ci := test chat bench lint docs release real

PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
EXACTLY := --constraint constraints.txt --build-constraint constraints.txt

$(VENV)/ready-%: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt mlxkv/__init__.py
	@echo "make: installing what '$*' needs into $(VENV) (the first time takes a while)" >&2
ifdef UV
	@$(UV) pip install --python $(BIN)/python $(EXACTLY) $(groups_$*) --editable . >&2 </dev/null
else
	@# A pip of our own first: the one that comes with Python 3.11 knows no groups, and uv's environments have none.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >&2 </dev/null
	@$(PIP) install --constraint constraints.txt --upgrade pip >&2 </dev/null
	@$(PIP) install $(EXACTLY) $(groups_$*) --editable . >&2 </dev/null
endif
	@touch $@ $(addprefix $(VENV)/ready-,$(also_$*)) # whose packages are among these

# For .ci/run: uv in a folder of its own, which PATH can name.
build/uv/uv:
	@$(PYTHON) -m venv --clear build/uv/env >&2
	@build/uv/env/bin/python -m pip --quiet install --constraint constraints.txt uv >&2
	@ln -s env/bin/uv $@

# Made anew where it is missing or its Python is gone.
ifneq ($(shell $(BIN)/python -c "print('works')" 2>/dev/null),works)
.PHONY: $(VENV)/pyvenv.cfg
endif

$(VENV)/pyvenv.cfg:
ifdef UV
	@$(UV) venv --clear --python "$(or $(PYTHON),>=3.11)" $(VENV) >&2 </dev/null
else
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; install one, or uv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) >&2 </dev/null
endif
