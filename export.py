"""Write a trained run's LoRA in the format of the peft library.

    python export.py mini/hopper-medium-0.01/lamo/seed0 adapter/

The folder can be loaded onto the language model with peft's PeftModel.from_pretrained, or back here with
--adapter adapter/. The embeddings and the head of trajectories are not part of it.
"""

from kit import fail, settings, signals

OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("run", type=settings.run_name, help="PROFILE/CELL/METHOD/seedN")
OPTIONS.add_argument("folder", help="where the adapter goes")

if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take seconds

from evaluate import load_checkpoint, load_run
from kit.adapters import export_peft
from kit.language_models import load_language_model


def export(run, folder):
    settings.parse_run(run)
    config, model, checkpoints = load_run(run)
    if config.get("train") != "lora":
        fail(f"{run} has no LoRA to export; its method is {config['method']}")
    if config["trunk"] != "pretrained":
        fail(f"{run} has LoRA on {config['trunk']} weights, which nobody else has; export one of lamo")
    load_checkpoint(model, checkpoints[-1], config)
    frozen = load_language_model(config["lm"], 0.0, layers=config.get("lm_layers", 0),
                                 bins=config.get("lm_bin", False))
    export_peft(model.trunk, folder, frozen, config["lm"])
    print(f"{folder}: the adapter of {run}, for peft; the trajectories' embeddings are not in it")


if __name__ == "__main__":
    export(**vars(ARGS))
