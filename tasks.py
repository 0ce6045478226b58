"""The paper's experiments as tables, and nothing else; kit/settings.py reads them.

A cell is TASK-RATIO (`hopper-medium-0.01`), a run is PROFILE/CELL/METHOD/seedN
(`mini/hopper-medium-0.01/lamo/seed0`). A run's name determines its whole configuration:

    configuration = DEFAULTS | SEQUENCE | TASKS[task] | METHODS[method], each with its parts for the
    suite, the task and the profile; the baselines have none of SEQUENCE

    python3 -m kit.settings                                         # every cell, as `make list` prints it
    python3 -m kit.settings paper/hopper-medium-0.01/lamo/seed0     # one run's configuration, as JSON

To add a task, add a row to TASKS (docs/extending.md). Published scores stand in paper/scores.csv.
Sources: LaMo, arXiv 2310.20587 (camera-ready), and its released code, srzer/LaMo-2023@3e4fcc8.
"""

# What every method has. A comment names the source where it is not appendix table 6 or run.sh.
DEFAULTS = {
    "pixels": False,           # states are frames (4, 84, 84) of bytes
    "discrete": False,         # actions are numbers of buttons
    "least_std": 0.0,          # states are divided by their deviation, or by this where it is smaller
    "batch_size": 64,
    "steps": 100_000,
    "lr": 1e-4,
    # checkpoints and evaluation
    "eval_every": 2_500,       # steps between checkpoints, each of which is evaluated
    "score_window": 8,         # the score averages so many last evaluations: the last 20K steps
    "episodes": 20,            # a target return
    "at_once": 40,             # episodes played side by side
    "log_every": 100,          # steps a row of train.csv averages over
    "state_every": 5.0,        # minutes between two savings of what a killed run goes on from
}

# What sequence models add, train.py: LaMo's D4RL runs, appendix tables 6 and 7, run.sh, experiment.py.
SEQUENCE = {
    "kind": "sequence",
    "released": False,         # what the released code does where ours does otherwise, docs/differences.md
    # model
    "lm": "gpt2",              # a hub name, a folder, a GGUF file, or a name in LANGUAGE_MODELS
    "lm_layers": 0,            # its first blocks alone, so many of them; 0 for all
    "trunk": "pretrained",     # "pretrained": the LM; "random": its shape alone; "dt": a small transformer
    "train": "lora",           # what trains in the trunk: "lora", "all" or "nothing"
    "embeddings": "mlp",       # "mlp": residual blocks and an MLP head; "linear": linear and tanh
    "lora": "loralib",         # "loralib": q, k and v each have an A, biases train; "peft": one A, no biases
    "lora_rank": 16,
    "lora_alpha": 32,
    "lm_bin": False,           # its weights may come as .bin, a pickle, of which the tensors alone are read
    "adapter": "",             # a folder in peft's format that LoRA starts from
    "dropout": 0.1,
    "dtype": "auto",           # of the trunk's matrix products: "bfloat16" where that is fast, else "float32"
    "channels": 32,            # of the CNN's first layer, twice as many of the others
    "quick_init": False,       # small time embeddings and, of frames, He's initialisation of the CNN
    # data
    "context": 20,             # K, environment steps the model sees
    # optimisation
    "warmup": 2_500,           # steps of linear warm-up
    "schedule": "constant",    # after the warm-up; or "cosine" to a tenth
    "weight_decay": 1e-5,
    "adam_eps": 1e-6,
    "grad_clip": 0.25,
    # language loss: loss = action_loss + lm_weight * language_loss
    "lm_weight": 0.0,
    "lm_batch_size": 2,
    "lm_block": 1024,          # tokens of a text block
    # evaluation
    "clip_rewards": False,     # the return still to come counts rewards by their sign
}

# What the baselines add, baselines.py: CORL's settings, which the paper took over (p. 17), for 100K
# steps instead of CORL's million. Atari: d3rlpy's.
BASELINE = {
    "kind": "baseline",
    "batch_size": 256,
    "lr": 3e-4,
    "actor_lr": 3e-4,
    "hidden": 256,             # units of a layer
    "hidden_layers": 2,
    "actor_dropout": 0.0,
    "quick_init": False,       # of frames, He's initialisation of the CNN
    "discount": 0.99,
    "target_rate": 0.005,      # how far the target networks move at an update
    "normalize_rewards": False,  # by 1000 / (largest - smallest return of the data)
    "recorded_rewards": False,   # Kitchen: D4RL's own, at each step how many sub-tasks are done
    "logit_penalty": 0.5,      # BC, discrete: on the squared log-probabilities
    "bc_alpha": 2.5,           # TD3+BC: the weight of Q against imitation
    "policy_noise": 0.2,       #   of the target's actions,
    "noise_clip": 0.5,         #   at most
    "policy_every": 2,         #   updates of the critics for one of the actor
    "expectile": 0.7,          # IQL
    "beta": 3.0,               #   inverse temperature of the advantages' weights
    "deterministic": False,    #   actor without a variance
    "cql_alpha": 10.0,         # CQL: the weight of the conservative term
    "cql_actions": 10,         #   sampled from each of three distributions
    "target_every": 8_000,     #   discrete: steps between copies of the target network
    # a hundredth of CORL's steps, so that values have to move faster
    "mini": {"steps": 10_000, "eval_every": 2_000, "log_every": 200, "lr": 1e-3, "actor_lr": 1e-3,
             "target_rate": 0.01},
}

# What a setting may be where a number has a range; its type is that of its default. [ and ] belong to it.
RANGES = {
    "least_std": "[0, 1e6]",
    "batch_size": "[1, 1e5]", "steps": "[1, 1e7)", "lr": "(0, 10]", "eval_every": "[1, 1e9]",
    "score_window": "[1, 1e6]", "episodes": "[1, 1e5]", "at_once": "[1, 1e4]", "log_every": "[1, 1e9]",
    "state_every": "[0, 1e6]", "lm_layers": "[0, 1000]", "lora_rank": "[1, 4096]", "lora_alpha": "(0, 1e6]",
    "dropout": "[0, 0.99]", "channels": "[1, 1024]", "context": "[1, 1e5]", "warmup": "[0, 1e9]",
    "weight_decay": "[0, 10]", "adam_eps": "(0, 1]", "grad_clip": "(0, 1e9]", "lm_weight": "[0, 1e6]",
    "lm_batch_size": "[1, 1e5]", "lm_block": "[2, 1e6]",
    "actor_lr": "(0, 10]", "hidden": "[1, 65536]", "hidden_layers": "[1, 1000]", "actor_dropout": "[0, 0.99]",
    "discount": "[0, 1]", "target_rate": "(0, 1]", "logit_penalty": "[0, 1e6]", "bc_alpha": "[0, 1e6]",
    "policy_noise": "[0, 1e3]", "noise_clip": "[0, 1e3]", "policy_every": "[1, 1e9]", "expectile": "(0, 1)",
    "beta": "[0, 1e6]", "cql_alpha": "[0, 1e6]", "cql_actions": "[1, 1e4]", "target_every": "[1, 1e9]",
    # of a task
    "target_returns": "[-1e9, 1e9]", "horizon": "[1, 1e6]", "max_timestep": "[1, 1e6]",
    "return_scale": "(0, 1e9]", "trajectories": "[1, 1e6]", "player_horizon": "[1, 1e6]",
    "minimum_return": "[-1e9, 1e9]", "player_noise": "[0, 100]",
}

CHOICES = {
    "trunk": ("pretrained", "random", "dt"), "train": ("lora", "all", "nothing"),
    "dtype": ("auto", "bfloat16", "float32"), "embeddings": ("mlp", "linear"),
    "lora": ("loralib", "peft"), "schedule": ("constant", "cosine"),
}

# What the mini profile changes, whatever the task (docs/calibration.md): small batches, of which a step takes
# a quarter of the time, few of them at a large rate that falls, so that the last checkpoint is about the
# best, and no dropout, which takes nearly half of a step's time on two CPU cores. DT's rate stands with DT.
MINI = {
    "lm": "mini",
    "dtype": "float32",        # on every machine, so that rows of several may stand side by side
    "quick_init": True,
    "dropout": 0.0,
    "batch_size": 16,
    "steps": 1_200,
    "warmup": 50,
    "lr": 2e-3,
    "schedule": "cosine",
    "lm_block": 256,           # the mini LM's context
    "eval_every": 400,
    "score_window": 2,
    "log_every": 25,
}

# What the three MuJoCo tasks share. ratios: the cells of the paper's tables.
MUJOCO = {
    "suite": "mujoco",
    "ratios": ("0.005", "0.01", "0.1", "1"),
    "horizon": 1000,                          # steps an episode is cut off after
    "return_scale": 1000.0,
}

KITCHEN = {
    "suite": "kitchen",
    "env": "FrankaKitchen-v1",
    "state_dim": 60,
    "action_dim": 9,
    "horizon": 280,
    "max_timestep": 1000,                     # recorded episodes may be longer than those played
    "return_scale": 1.0,
    "target_returns": (5.0, 4.0),
    "lm_weight": 0.1,                         # the only tasks it helps on, appendix p. 17
    "at_once": 10,                            # an environment takes 100 MB
    # what hardly moves is observed with noise of less than 0.01, which must not count like the arm's ways
    "mini": {"least_std": 0.05, "episodes": 10},
}

# What the authors' Atari code shares: experiment-atari, cfgs/ and model.py.
ATARI = {
    "suite": "atari",
    "pixels": True,
    "discrete": True,
    "ratios": ("0.1", "1"),
    "state_dim": (4, 84, 84),
    "horizon": 4096,
    "return_scale": 1.0,
    "context": 30,
    "batch_size": 128,
    "steps": 100_000,
    "warmup": 442,                            # where the authors' warm-up ends (learning_rate in train.py)
    "schedule": "cosine",
    "grad_clip": 1.0,
    "adam_eps": 1e-8,
    "clip_rewards": True,                     # as the recorded rewards are; scores are not clipped
    "lora": "peft",
    "lora_rank": 32,
    "lora_alpha": 32,
    "episodes": 5,
    "mini": {"batch_size": 16, "warmup": 50, "lr": 1e-3, "steps": 600, "eval_every": 150,
             "player_horizon": 10_000},                          # whole games
}

# Where buttons mostly repeat, a model that sees them learns to repeat (docs/calibration.md).
ONE_STEP = {"context": 1, "batch_size": 240, "channels": 16, "lr": 2e-3, "steps": 900, "eval_every": 300}

# A dict inside a row holds only where its name says: a suite ("atari"), a task ("hopper-medium"), a profile
# ("mini"), or profile and suite or task ("mini-atari", "mini-hopper-medium").
# Data, target returns (appendix table 6) and horizon in environment units. reference: the returns of a
# random player and of an expert (Atari: a human), where d4rl's infos.py has none.
TASKS = {
    "hopper-medium": MUJOCO | {
        "env": "Hopper-v4",
        "dataset": "hopper-medium-v2",        # in d4rl's infos.py: URL and reference scores
        "sha256": "5bdf1bc4a713c829",         # of D4RL's file, first 16 digits
        "state_dim": 11,
        "action_dim": 3,
        "target_returns": (3600.0, 1800.0),
        "embeddings": "linear",               # appendix p. 17 and run_hopper.sh
        "mini": {"player": "hopper", "trajectories": 2186},
    },
    "halfcheetah-medium": MUJOCO | {
        "env": "HalfCheetah-v4",
        "dataset": "halfcheetah-medium-v2",
        "sha256": "41324e8487a9556d",
        "state_dim": 17,
        "action_dim": 6,
        "target_returns": (12000.0, 8000.0),
        # every episode is 1000 steps long, and one is much like another
        "mini": {"player": "halfcheetah", "trajectories": 1000, "episodes": 10},
    },
    "walker2d-medium": MUJOCO | {
        "env": "Walker2d-v4",
        "dataset": "walker2d-medium-v2",
        "sha256": "cf00f43add04c17f",
        "state_dim": 17,
        "action_dim": 6,
        "target_returns": (5000.0, 2500.0),
        "mini": {"player": "walker2d", "trajectories": 1190, "steps": 900, "eval_every": 300},
    },
    "reacher2d-medium": {
        # The authors' dataset is not public, so both profiles play one: 50 episodes of mean return 36.
        "suite": "reacher2d",
        "env": "Reacher2d",
        "dataset": "reacher2d-medium",
        "reference": (0.0, 100.0),
        "ratios": ("0.1", "0.3", "1"),
        "state_dim": 12,
        "action_dim": 2,
        "horizon": 100,
        "return_scale": 10.0,
        "target_returns": (76.0, 40.0),
        "context": 5,
        "player": "reacher2d",
        "player_noise": 1.75,                 # which is not recorded
        "trajectories": 50,
        "minimum_return": 21.0,               # the authors keep what earns more than 20
    },
    "kitchen-complete": KITCHEN | {
        "dataset": "kitchen-complete-v0",
        "mirror": "https://raw.githubusercontent.com/Farama-Foundation/minari-dataset-generation-scripts/"
                  "f3e76d31f96f6b0787e2474685936497558ca174/scripts/kitchen/d4rl_datasets/",
        "ratios": ("0.3", "0.5", "1"),
        "mini": KITCHEN["mini"] | {
            "player": "kitchen-complete", "trajectories": 19, "minimum_return": 4.0},
    },
    "kitchen-partial": KITCHEN | {
        "dataset": "kitchen-partial-v0",
        "ratios": ("0.01", "0.1", "1"),
        "mini": KITCHEN["mini"] | {"player": "kitchen-partial", "trajectories": 601},
    },
    "breakout-medium": ATARI | {
        "env": "BreakoutNoFrameskip-v4",
        "dataset": "Breakout",                # DQN replay's folder: run 1, checkpoint 10 of 50
        "reference": (1.70, 31.80),
        "action_dim": 4,
        "target_returns": (120.0, 90.0),
        "lr": 1e-3,
        "weight_decay": 1e-2,
        "steps": 50_000,
        "score_window": 4,                    # the last 10K of 50K steps, appendix p. 18
        "mini": ATARI["mini"] | {
            "score_window": 2, "player": "breakout", "player_env": "BreakoutNoFrameskip-v0",
            "trajectories": 250, "target_returns": (40.0, 20.0), "lr": 2e-3},
    },
    "qbert-medium": ATARI | {
        "env": "QbertNoFrameskip-v4",
        "dataset": "Qbert",
        "reference": (163.90, 13455.00),
        "action_dim": 6,
        "target_returns": (14000.0,),
        "lr": 1e-3,
        "weight_decay": 1e-5,
        "mini": ATARI["mini"] | ONE_STEP | {
            "player": "qbert", "player_env": "QbertNoFrameskip-v0",
            "trajectories": 400, "target_returns": (100.0, 50.0)},
    },
    "pong-medium": ATARI | {
        "env": "PongNoFrameskip-v4",
        "dataset": "Pong",
        "reference": (-20.70, 9.30),
        "action_dim": 6,
        "target_returns": (20.0, 10.0),
        "lr": 3e-4,
        "weight_decay": 1e-1,
        "mini": ATARI["mini"] | ONE_STEP | {
            "player": "pong", "player_env": "PongNoFrameskip-v0",
            "trajectories": 300, "player_horizon": 4096,  # even players may play for hours
            "target_returns": (0.0, -10.0), "lr": 1e-3, "steps": 1_200, "eval_every": 600},
    },
}

# Each method states only what differs from LaMo. "suites" are those it exists for, if not for all.
CONTINUOUS = ("mujoco", "kitchen", "reacher2d")
# for discrete BC and CQL: as many frames as the sequence models see on Breakout and Pong
FRAMES = {"quick_init": True, "batch_size": 192, "steps": 1_500, "eval_every": 300, "log_every": 50}
RECORDED = {"paper-kitchen": {"recorded_rewards": True}}  # which D4RL's own loader reads
# to play with it costs as much as to train, and float32 nearly three times as much (docs/speed.md)
SMOLLM2 = {"steps": 400, "eval_every": 400, "score_window": 1, "dtype": "auto"}

METHODS = {
    "lamo": {},
    "dt": {                                   # Decision Transformer: 3 layers of 128, one head
        "lm": None,
        "trunk": "dt",
        "train": "all",
        "embeddings": "linear",
        "weight_decay": 1e-4,                 # appendix p. 22, figure 11
        "adam_eps": 1e-8,                     # the released code's optimiser when nothing is pre-trained
        "lm_weight": 0.0,
        "atari": {"lr": 3e-4},                # figure 11
        "mini": {"lr": 1e-3},
        "mini-breakout-medium": {"lr": 2e-3},  # docs/calibration.md
    },
    "wiki": {                                 # Wiki-RL: the LM is fine-tuned whole, with DT's settings
        "train": "all",
        "embeddings": "linear",
        "weight_decay": 1e-4,
        "lm_weight": 0.0,
        "atari": {"lr": 3e-4},
        "mini": {"lr": 5e-4},
        "mini-atari": {"lr": 1e-3},
    },
    "bc": BASELINE | {
        "update": "bc",
        "atari": {"batch_size": 100, "lr": 1e-3},
        "mini": BASELINE["mini"] | {"steps": 2_000, "eval_every": 400, "log_every": 100},
        "mini-reacher2d": {"steps": 10_000, "eval_every": 2_000},
        "mini-kitchen": {"actor_lr": 3e-4},
        "mini-atari": FRAMES,
    },
    "td3bc": BASELINE | RECORDED | {"update": "td3bc", "suites": CONTINUOUS},
    "iql": BASELINE | RECORDED | {
        "update": "iql",
        "suites": CONTINUOUS,
        "hopper-medium": {"deterministic": True, "normalize_rewards": True, "target_rate": 0.001},
        "kitchen": {"beta": 0.5, "actor_dropout": 0.1},      # the settings of IQL's authors
    },
    "cql": BASELINE | RECORDED | {
        "update": "cql",
        "hidden_layers": 3,
        "actor_lr": 3e-5,
        "hopper-medium": {"normalize_rewards": True},
        "atari": {"batch_size": 32, "lr": 6.25e-5, "cql_alpha": 1.0},
        # CQL samples 30 actions a state, which two cores do not do in minutes
        "mini": {"batch_size": 128, "hidden_layers": 2, "cql_actions": 3, "lr": 3e-4, "actor_lr": 1e-4,
                 "steps": 6_000, "eval_every": 1_200, "log_every": 200},
        "mini-atari": FRAMES | {"lr": 5e-4, "target_every": 250},
    },
    # ablations of the paper's section 5.5 and appendix
    "lamo-random": {"trunk": "random"},       # the LM's shape with random weights, frozen all the same
    "lamo-random-corpus": {"lm": None, "mini": {"lm": "mini-random"}},
    "lamo-early": {"lm": None, "mini": {"lm": "mini-early"}},
    "lamo-markov": {"lm": None, "mini": {"lm": "mini-markov"}},  # not the paper's: Wang et al., 2310.00771
    "lamo-linear": {"embeddings": "linear"},
    "lamo-mlp": {"embeddings": "mlp"},        # Hopper's LaMo has linear ones
    "lamo-full": {"train": "all", "mini": {"lr": 5e-4}, "mini-atari": {"lr": 1e-3}},
    "lamo-frozen": {"train": "nothing", "lm_weight": 0.0},  # a frozen LM learns nothing from text
    "lamo-lm0": {"lm_weight": 0.0},
    "lamo-lm0.1": {"lm_weight": 0.1},         # as in run_cotrain.sh
    "lamo-lm1": {"lm_weight": 1.0},
    "lamo-rank4": {"lora_rank": 4, "lora_alpha": 8, "atari": {"lora_alpha": 4}},
    "lamo-rank64": {"lora_rank": 64, "lora_alpha": 128, "atari": {"lora_alpha": 64}},
    "lamo-medium": {"lm": "gpt2-medium", "mini": {"lm": None}},
    "lamo-smollm2": {"lm": "smollm2", "mini": SMOLLM2},
    "lamo-smollm2-random": {"lm": "smollm2", "trunk": "random", "mini": SMOLLM2},
    # its first blocks alone, which cost less, and the same with random weights
    "lamo-smollm2-2": {"lm": "smollm2", "lm_layers": 2, "mini": SMOLLM2},
    "lamo-smollm2-2-random": {"lm": "smollm2", "lm_layers": 2, "trunk": "random", "mini": SMOLLM2},
    "lamo-smollm2-8": {"lm": "smollm2", "lm_layers": 8, "mini": SMOLLM2},
    "lamo-smollm2-8-random": {"lm": "smollm2", "lm_layers": 8, "trunk": "random", "mini": SMOLLM2},
    "lamo-released": {"released": True, "suites": ("kitchen", "atari"), "atari": {"dropout": 0.0}},
}

TRAINED = ("hopper", "halfcheetah", "walker2d", "reacher2d")  # players with weights; the others are scripts

LANGUAGE_MODELS = {
    "mini": "mini/weights/lm",                      # pre-trained on English prose, see mini/README.md
    "mini-random": "mini/weights/lm-random",        # equally long, on shuffled tokens
    "mini-early": "mini/weights/lm-early",          # stopped after a tenth of the tokens
    "mini-markov": "mini/weights/lm-markov",        # on a Markov chain of 100 states instead of text
}

PROFILES = ("mini", "paper")
