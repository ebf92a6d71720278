# Everything a fresh machine needs: Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# faiss has one wheel for the CPU and one for NVIDIA GPUs, and a machine may hold only one of them.
FAISS := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: help install demo test heavy lint docs lock audit clean-demo

help:
	@echo "make demo   mine and train for several rounds on the bundled emoji set; ends with a table and runs/demo/report.html"
	@echo "make test   install what is needed and run the tests"
	@echo "make lint   ruff, mypy, import contracts"
	@echo "make docs   the docs site, in site/; a broken link is an error"
	@echo "make heavy  the long suites: every kill point, many bit flips"
	@echo "make lock   write requirements.lock from what is installed, and locks/, with hashes, from that"
	@echo "make audit  known vulnerabilities in what locks/ installs, where a database can be reached"

install: $(VENV)/installed-$(FAISS)

$(VENV)/installed-$(FAISS): pyproject.toml requirements.lock
	@echo "installing quintain with faiss-$(FAISS) into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip uninstall --quiet --yes faiss-cpu faiss-gpu 2>/dev/null
	rm -f $(VENV)/installed-*
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev,$(FAISS)]'
	@touch $@

demo: install
	$(BIN)/pipelines run --demo --run-dir runs/demo

# A file's tests stay together: they share what is made once.
test: install
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

heavy: install
	$(BIN)/python -m pytest -m heavy

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports

# The variable silences an announcement about MkDocs 2, which is not used.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock:
	{ echo "# Versions the project is tested with; 'make lock' writes this file."; \
	  $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v '^faiss-'; \
	  echo "faiss-cpu==1.15.1"; echo "faiss-gpu==1.15.1"; } > requirements.lock
	for faiss in cpu gpu; do $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	  --extra cluster --extra cloud --extra pretrained --extra build --extra $$faiss --constraint requirements.lock \
	  --default-index https://pypi.org/simple --no-annotate --no-header --quiet --output-file locks/$$faiss.txt || exit 1; done

audit: install
	$(BIN)/python .ci/audit.py

clean-demo:
	rm -rf runs/demo
