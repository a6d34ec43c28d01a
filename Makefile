# `make` alone says what there is.
.DEFAULT_GOAL := help
.PHONY: help serve test fast lint check size bench docs lock proto clean

ARGS ?= --model smollm2-135m-instruct
SIZE_LIMIT_MB := 500

help: ## say what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/' | expand -t 16

serve: ## install and serve a chat model; ARGS="--model ..." for others
	@scripts/setup serve
	@.venv/bin/ds-serve $(ARGS)

test: ## install and run all tests; ARGS are pytest's, and leave out those that need PyTorch
	@scripts/setup dev
	@scripts/test $(if $(filter command,$(origin ARGS)),$(ARGS))
	@$(if $(filter command,$(origin ARGS)),,scripts/setup quantize && scripts/test --quantize)

fast: ## the tests that take a moment
	@scripts/setup dev
	@scripts/test --fast

lint: ## style and layout
	@scripts/setup dev
	@scripts/lint

check: ## style, types, import contracts, generated code
	@scripts/setup dev
	@scripts/check

size: ## size of the serving environment, and whether it is within its limit
	@scripts/setup serve
	@scripts/size .venv $(SIZE_LIMIT_MB)

bench: ## benchmarks, added to docs/benchmarks.md; PARTS="mlp start-up" picks some, ARGS are theirs
	@scripts/setup dev
	@.venv-dev/bin/python -m loadtests.bench $(PARTS) $(if $(filter command,$(origin ARGS)),$(ARGS))

docs: ## build the documentation as a site, into build/site; a link that leads nowhere ends it
	@scripts/setup docs
	@.venv-docs/bin/python scripts/site

lock: ## resolve requirements/*.txt anew; ARGS are uv's
	@scripts/setup dev
	@scripts/lock $(if $(filter command,$(origin ARGS)),$(ARGS))

proto: ## generate the stubs from proto/*.proto
	@scripts/setup dev
	@.venv-dev/bin/python scripts/proto

clean: ## remove the environments and caches
	rm -rf .venv .venv-dev .venv-docs .venv-quantize build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
