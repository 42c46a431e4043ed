# Every target does its own set-up: a virtual environment in .venv, remade when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# peers for tests and benches, without what they drag in (their torchvision breaks CPU builds of torch)
PEERS := k-diffusion==0.1.1 azula==0.11.1 pyro-ppl==1.9.2 pyro-api==0.1.2 opt_einsum==3.4.0 numpyro==0.22.0 jax==0.10.2 \
  jaxlib==0.10.2 ml_dtypes==0.6.0 multipledispatch==1.0.0 storchastic==0.3.7 entmax==1.3
STAMP = $(VENV)/.$(1)-$(shell cat pyproject.toml constraints.txt Makefile | cksum | tr ' ' '-')
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench docs data
demo: $(call STAMP,cli)
	$(BIN)/wayfield demo --out runs/demo

# real sets of pictures from other registries, into ~/.cache/wayfield; see docs/real-data.md
data: $(call STAMP,data)
	$(BIN)/python -m wayfield.data.get

test: $(call STAMP,test)
	@$(BIN)/python -m wayfield.data.get --patience 60 || echo "tests of the sets that are not available are skipped"
	$(BIN)/python -m pytest -n 2

lint: $(call STAMP,test)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

bench: $(call STAMP,test)
	$(BIN)/wayfield bench steps
	$(BIN)/wayfield bench guidance
	$(BIN)/wayfield bench diffusers
	$(BIN)/wayfield bench vi

docs: $(call STAMP,docs)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs site

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# torch first and by exact version: asked for as a range, some indexes answer with gigabytes of another build
$(VENV)/.%: | $(BIN)/pip
	@echo "installing ($(firstword $(subst -, ,$*)))"
	@$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(firstword $(subst -, ,$*))]"
	@if echo $* | grep -q '^test'; then \
	  $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt ruff basedpyright && \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(PEERS); fi
	@touch $@
