# Everything from nothing: each target makes .venv and installs what it needs.
# `csx` has an environment of its own: cerebras-pytorch needs an old torch and numpy (6 GB).
# TORCH: which torch to install. A CPU build is enough; on Linux the default index gives CUDA builds.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
WHEEL := .env-wheel
JOBS ?= 2
CSX := .venv-csx

.PHONY: demo test check format wheel csx clean

demo: $(VENV)/.demo
	$(BIN)/crystalmix demo --out demo

test: check
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The wheel, alone in another environment and from another folder.
wheel: $(VENV)/.dev
	rm -rf build dist $(WHEEL)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/pip install --quiet -c constraints/modern.txt "$(TORCH)"
	$(WHEEL)/bin/pip install --quiet -c constraints/modern.txt "$$(ls dist/crystalmix-*.whl)[train]"
	there=$$(mktemp -d) && cd "$$there" && "$(CURDIR)/$(WHEEL)/bin/crystalmix" --help \
	  && "$(CURDIR)/$(WHEEL)/bin/crystalmix" demo --tiny --out "$$there/demo" && rm -rf "$$there"

# What needs cstorch: training on its CPU backend, workers, lowering, the flow of a cluster's run;
# and what we and cstorch write for each other, each in its own environment.
csx: $(CSX)/.ready $(VENV)/.dev
	OMP_NUM_THREADS=1 $(CSX)/bin/python -m pytest -n $(JOBS) --dist loadfile tests/train/cerebras
	$(BIN)/python -m pytest -n $(JOBS) \
	  tests/train/modelzoo/test_convert_checkpoint.py tests/train/weights/test_mdl.py tests/train/modelzoo/test_write_params_2x.py

$(CSX)/.ready: pyproject.toml constraints/csx.txt
	$(PYTHON) -m venv $(CSX)
	$(CSX)/bin/pip install --quiet -c constraints/csx.txt -e '.[csx]' \
	  pytest pytest-xdist hypothesis safetensors
	touch $@

$(VENV)/.demo: pyproject.toml constraints/modern.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints/modern.txt "$(TORCH)"
	$(BIN)/pip install --quiet -c constraints/modern.txt -e '.[train]'
	mkdir -p $(VENV)/link && ln -sfn ../.. $(VENV)/link/crystalmix  # where pyright finds the package
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet -c constraints/modern.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(WHEEL) $(CSX) build dist demo *.egg-info
