# make run   fresh clone → .venv, install, the quickstart recipe: report, plots, a GGUF file
# make test  fresh clone → .venv, install, the whole test suite
PYTHON ?= python3
# which torch: this version has a CPU build on plain indexes; a GPU machine may say TORCH=torch
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run test install
run: install
	$(BIN)/fablesmith run quickstart

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

install: $(VENV)/.installed

# torch goes first: an open range would bring several GB of CUDA packages along
$(VENV)/.installed: pyproject.toml
	@echo "Installing into $(VENV). llama.cpp is compiled once: 4 to 10 minutes on two cores, without output."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@
