# Every target sets up what it needs: uv (a local copy if it is missing), then .venv with the
# versions of constraints.txt. The first set-up compiles llama.cpp for this processor, which takes some minutes.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check workflows types docs bench distilgpt2 constraints clean

UV := $(shell command -v uv || echo .tools/bin/uv)
READY := .venv/.ready
READY_ALL := .venv/.ready-all
CHROMIUM := $(or $(shell command -v chromium || command -v google-chrome),/usr/bin/chromium)
NPM := $(or $(shell command -v npm),/usr/bin/npm)
BENCHED := dgpt2-quant-bench/storybook

help:            ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: $(READY)  ## .venv with the versions of constraints.txt (every target does it)

demo: $(READY)   ## convert, run and compare the bundled model
	.venv/bin/dgpt2-quant demo

test: $(READY)   ## the test suite: offline, a few minutes
	.venv/bin/pytest -n 2 --dist worksteal

test-all: $(READY_ALL) | $(CHROMIUM)  ## the tests that need PyTorch and other peers, a browser, or many minutes; a skipped test fails
	.venv/bin/pytest -n 2 --dist worksteal -m "peer or slow or browser" --no-skips

check: $(READY)  ## lint and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

workflows: $(READY)  ## check the CI workflows against GitHub's schema
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

types: $(READY)  ## type-check the built package (checkers do not follow the editable install)
	rm -rf build .types
	$(UV) pip install --quiet --no-deps --target .types .
	MYPYPATH=.types .venv/bin/mypy -p dgpt2_quant

docs: $(READY)   ## regenerate the generated pages (a test fails when they are stale)
	.venv/bin/python tools/generate_docs.py

bench: $(READY)  ## all quant types of the bundled model compared: the tables and plots of docs/benchmarks.md
	DGPT2_QUANT_CACHE=$(BENCHED)/cache .venv/bin/dgpt2-quant bench -m storybook -t f16 -t q8_0 -t q6_k -t q5_k -t q4_k \
		-t q4_0 -t q3_k -o $(BENCHED) --overwrite
	cp $(BENCHED)/bench.json docs/bench/storybook.json
	for plot in size_kld speed_kld; do cp $(BENCHED)/plots/$$plot.svg docs/bench/storybook-$$plot.svg; done
	.venv/bin/python tools/generate_docs.py

distilgpt2: $(READY)  ## the release of DistilGPT2, from the Hub: its folder, and the README's table
	.venv/bin/python tools/release_distilgpt2.py distilgpt2-GGUF
	.venv/bin/python tools/generate_docs.py

constraints: $(UV)  ## resolve the dependencies again, to the newest versions that pyproject.toml allows
	rm -f uv.lock
	$(UV) export --quiet --extra serve --no-emit-project --no-header --no-annotate -o constraints.txt

clean:           ## remove what the targets made
	rm -rf .venv .tools .types build dist *.egg-info dgpt2-quant-demo dgpt2-quant-bench

.tools/bin/uv:
	python3 -m venv .tools
	.tools/bin/pip install --quiet uv

$(READY): pyproject.toml constraints.txt | $(UV)
	@echo "Setting up .venv; the first time compiles llama.cpp, which takes some minutes."
	$(UV) venv --quiet --allow-existing
	$(UV) pip install --quiet --python .venv -r constraints.txt
	$(UV) pip install --quiet --python .venv --no-deps --editable .
	@touch $(READY)

# The rest is as in `make test`, llama.cpp included. UV_TORCH_BACKEND=cpu takes PyTorch's CPU build from PyTorch's own
# index; uv does not read PIP_FIND_LINKS, where a machine may name a folder with that build.
$(READY_ALL): $(READY) | $(NPM)
	$(UV) pip install --quiet --python .venv $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) \
		-c constraints.txt --group all --editable '.[peers]'
	npm install --silent --no-audit --no-fund --prefix .venv/node @huggingface/gguf@0.4.6
	@touch $(READY_ALL)

/usr/bin/chromium /usr/bin/npm:
	@. /etc/os-release && test "$$ID" = debian -a "$$(id -u)" = 0 || \
		{ echo "The tests need $(@F). Install it, or run this as root on Debian." >&2; exit 1; }
	apt-get update -qq
	apt-get install -qq -y --no-install-recommends $(@F)
