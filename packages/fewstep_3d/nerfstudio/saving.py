"""Artifacts of fewstep beside nerfstudio's checkpoints, and the held-out figures at the end of a training."""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import cast

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.utils.comms import is_main_process
from nerfstudio.utils.misc import step_check
from nerfstudio.utils.rich_utils import CONSOLE
from torch import nn

import fewstep
from fewstep_3d.nerfstudio.run_folder import ARTIFACT


def saving(attributes: TrainingCallbackAttributes, model: Callable[[], nn.Module]) -> list[TrainingCallback]:
    """Callbacks that write `model()` into the run's folder: whenever nerfstudio saves, and at the end with its figures."""
    trainer, pipeline = attributes.trainer, attributes.pipeline
    assert trainer is not None and pipeline is not None
    config = trainer.config

    def save(step: int, scores: dict[str, float] | None = None) -> None:
        if is_main_process():
            provenance = {
                "method": config.method_name,
                "data": str(pipeline.datamanager.get_datapath()),
                "seed": config.machine.seed,
                "iterations": step + 1,
                "scores": scores or {},
            }
            fewstep.save(model(), trainer.base_dir / ARTIFACT, provenance)

    def at_checkpoint(step: int) -> None:
        if step_check(step, config.steps_per_save):
            save(step)

    def at_end(step: int) -> None:
        scores: dict[str, float] = {}
        if pipeline.datamanager.eval_dataset:
            found = cast(dict[str, float], pipeline.get_average_eval_image_metrics(step))
            scores = {k: v for k, v in found.items() if k.startswith("psnr")}
        save(step, scores)
        told = "".join(f"{k} {v:.2f} dB of pictures that were held out; " for k, v in scores.items())
        CONSOLE.print(f"{told}artifact: {trainer.base_dir / ARTIFACT}")

    return [
        TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], at_checkpoint),
        TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], at_end),
    ]
