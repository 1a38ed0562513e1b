# Each target is one line over the `rft` command. CONF names a recipe, ARGS carries overrides (key=value).
CONF ?= research_tiny
ARGS ?=
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
RFT := $(BIN)/rft
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# A run's name or folder as it was typed, spaces and all: what stands on make's command line is in the shell's environment, too.
NAMED_RUN = $(if $(RUN),"$$RUN")

# With NEMO_RL_SRC set to a checkout of NeMo RL, what that imports is installed too.
NEMO := $(if $(NEMO_RL_SRC),.make/nemo-cpu)

# Idle OpenMP threads that spin starve the tool server on small machines.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help train resume prior regrade evaluate inspect report plan validate data tiny-base serve release model-server rehearse smoke cards verify-ledger evidence migrate test check bench faults install nemo-cpu

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo "  recipes: $(patsubst conf/%.yaml,%,$(wildcard conf/*.yaml))"

train: .make/local .make/data $(NEMO) ## prior check, training, evaluation, report (CONF=recipe ARGS="key=value ...")
	$(RFT) train $(CONF) $(ARGS)

resume: .make/local .make/data $(NEMO) ## go on with a run that was stopped (RUN=id ARGS="key=value ...")
	$(RFT) resume $(NAMED_RUN) $(ARGS)

prior: .make/local .make/data $(NEMO) ## can the base model sometimes do it? buckets, verdict, plots
	$(RFT) prior $(CONF) $(ARGS)

regrade: .make/local ## a run of before under another grader, without a model (RUN=id GRADER=name@version)
	$(RFT) regrade --run $(NAMED_RUN) --grader $(GRADER) $(ARGS)

evaluate: .make/local .make/data $(NEMO) ## base against tuned again, for a finished run (RUN=id)
	$(RFT) evaluate $(NAMED_RUN)

inspect: .make/local ## rollouts to read first: worst, suspicious, disputed (RUN=id ARGS="--list worst --limit 10")
	$(RFT) inspect $(NAMED_RUN) $(ARGS)

report: .make/local ## a run as one page, several beside each other (RUNS="id id")
	$(RFT) report $(RUNS) $(ARGS)

suite: .make/local .make/data $(NEMO) ## models side by side on the held-out rows (OF="base RUN http://host/v1\#MODEL" ARGS="-k 4")
	$(RFT) suite $(CONF) $(ARGS) $(foreach model,$(OF),--of '$(model)')

plan: .make/local ## memory, time and cost: what fits (CONF=recipe; without it all)
	$(RFT) plan $(if $(filter-out file,$(origin CONF)),$(CONF)) $(ARGS)

validate: .make/local ## every fault in the data sets at once, with file and line
	$(RFT) validate $(CONF) $(ARGS)

data: .make/local ## remake the generated data set and its corpus
	$(RFT) data

tiny-base: .make/local .make/data ## remake the tiny base model (about an hour)
	$(RFT) tiny-base

serve: .make/local .make/data ## tools and grader over HTTP
	$(RFT) serve $(CONF) $(ARGS)

release: .make/local ## releases (CMD="status | first SERVICE --agent A | create ... | promote | approve | rollback | history")
	$(RFT) release $(or $(CMD),status) $(if $(filter-out file,$(origin CONF)),--conf $(CONF)) $(ARGS)

model-server: .make/local ## a checkpoint behind OpenAI's chat API (CHECKPOINT=folder ARGS="--name NAME --port N")
	$(RFT) model-server --checkpoint $(or $(CHECKPOINT),models/research-tiny) $(ARGS)

rehearse: .make/local .make/data ## a good release and four bad ones, tried out on this machine (ARGS="good worse --run RUN")
	$(RFT) release rehearse $(ARGS)

smoke: .make/local ## call each tool of a running server once (URL=http://host:port)
	$(RFT) smoke $(if $(URL),--url $(URL)) $(CONF) $(ARGS)

cards: .make/local ## the newest job cards (Q="kind:eval grade<0.5 tool:search"); one as a story: rft card show ID
	$(RFT) card list $(ARGS) -- '$(Q)'

verify-ledger: .make/local ## every card, grade and label against what was recorded
	$(RFT) ledger verify $(ARGS)

evidence: .make/local ## a case as one signed file (CASE=name Q="run:... grade<0.5" BY=you)
	$(RFT) ledger evidence --case $(CASE) --by $(BY) --out $(CASE).zip $(ARGS) -- '$(Q)'

migrate: .make/local ## bring the job-card store's tables up to date
	$(RFT) migrate $(CONF) $(ARGS)

# Of some images: each of the hundred processes that the tests start would compile this code anew.
test: export PYTHONDONTWRITEBYTECODE :=
test: .make/test .make/data $(NEMO) ## every test that needs no GPU
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: .make/test ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/architecture

bench: .make/test .make/data ## every bench beside its peer (ARGS=--write keeps the figures)
	$(BIN)/python bench $(ARGS)

faults: .make/test ## hundreds of kills, full disks, clocks: an hour (ARGS="--kills 20 --only server database")
	$(BIN)/python -m bench.faults $(ARGS)

nemo-cpu: .make/nemo-cpu ## what NeMo RL imports for workers on the CPU (NEMO_RL_SRC=its checkout)

install: .make/local ## what `make train` needs, into $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

.make/local: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing (about a minute) ..."
	@$(PIP) torch==2.13.0
	@$(PIP) --editable '.[local]'
	@mkdir -p .make && touch $@

.make/test: .make/local
	@echo "installing what the tests need ..."
	@$(PIP) --editable '.[local,test]'
	@touch $@

.make/nemo-cpu: .make/local
	@echo "installing what NeMo RL imports (a few minutes) ..."
	@$(PIP) --editable '.[local,nemo-cpu]'
	@touch $@

.make/data: .make/local agent_rft/datasets/filings.py agent_rft/datasets/research.py
	@$(RFT) data --keep-rows
	@touch $@
