"""nerfstudio's model of `fewstep-distill`: a few-step student of triplanes, distilled by the methods of `prd.py` as a recipe sets them up.

The recipe is one of `fewstep recipes` (3d/shapes_sds, _anchored, _members, _asd, _csd, _dmd, _vsd, _sim, _prd2, _prd4) or a file like them; of it the model
section is used, its teacher and iterations replaced. nerfstudio's trainer optimises: gradients of student and critics come from one
backward, as in fewstep's own shell, and the learning rates follow the recipe's schedule.
"""
# pyright: reportMissingImports=false

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from nerfstudio.cameras.cameras import Cameras as NerfstudioCameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter

from fewstep.artifacts import ArtifactError
from fewstep.command import UsageError
from fewstep.recipes import find
from fewstep_3d.cameras import Rays
from fewstep_3d.nerfstudio.saving import saving
from fewstep_3d.nerfstudio.scene_model import set_rates
from fewstep_3d.opacity import NeuS
from fewstep_3d.renderer import Renderer
from fewstep_3d.triplane_generator import TriplaneGenerator

if TYPE_CHECKING:
    from fewstep_3d.prd import Rendering


@dataclass
class DistillModelConfig(ModelConfig):
    """A few-step generator of triplanes, taught by a multi-view model"""

    _target: type = field(default_factory=lambda: DistillModel)
    enable_collider: bool = False
    """Rays are cut to the scene box."""
    eval_num_rays_per_chunk: int = 2**16
    """Rays at a time in the viewer."""
    recipe: str = "3d/shapes_sds"
    """Student and method: a shipped recipe, or a yaml file."""
    ema: float = 0.99
    """Decay of the average of the student, which is what is shown and saved."""
    shown: int = 0
    """The class that the viewer shows."""


class DistillModel(Model):
    """See the module."""

    config: DistillModelConfig

    def populate_modules(self) -> None:
        """Teacher, student and method."""
        super().populate_modules()
        # These import Lightning, which `ns-train --help` need not.
        from fewstep.train.ema import EMA

        self.shell, self.ema = recipe_shell(self.config.recipe, **self.kwargs["metadata"]), EMA(self.config.ema)
        # Of what Lightning tells its callbacks this one uses the module alone.
        self.ema.setup(cast(Any, None), self.shell, "fit")
        self.averaged = cast(TriplaneGenerator, self.shell.averaged)
        self.shell.to(self.kwargs.get("device", "cpu"))

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """ "student", and "fake" where the method has a critic."""
        trained = self.shell.trained().items()
        return {name: [p for p in network.parameters() if p.requires_grad] for name, network in trained}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Schedules at the start of every iteration, averages at its end; artifacts."""
        trainer, optimizers = training_callback_attributes.trainer, training_callback_attributes.optimizers
        assert trainer is not None and optimizers is not None
        shell, ema = self.shell, self.ema
        shell.iterations = trainer.config.max_num_iterations
        ema.on_fit_start(cast(Any, None), shell)

        def begin(step: int) -> None:
            shell.done = step
            set_rates(optimizers, shell.schedule(step, shell.iterations))

        def end(step: int) -> None:
            shell.moved = shell.turn("student")
            shell.after_step()
            shell.done = step + 1
            shell.iteration.fill_(shell.done)
            ema.on_train_batch_end(cast(Any, None), shell, None, None, step)

        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], begin),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], end),
            *saving(training_callback_attributes, lambda: self.averaged),
        ]

    def get_outputs(self, ray_bundle: RayBundle | NerfstudioCameras) -> dict[str, Any]:
        """In training the cameras, for the loss; in the viewer normals of the shown class as rgb (N, 3), accumulation and depth (N, 1)."""
        if isinstance(ray_bundle, NerfstudioCameras):
            return {"cameras": ray_bundle}
        rays = Rays(ray_bundle.origins[None], ray_bundle.directions[None])
        label = torch.full((1,), self.config.shown, device=self.device)
        field = self.averaged({"label": label}, generator=torch.Generator().manual_seed(0))
        out = Renderer(NeuS(64.0), normals=True)(field, rays)
        assert out.normals is not None
        opacity = out.opacity[0, :, None]
        return {
            "rgb": (0.5 + 0.5 * out.normals[0]) * opacity + 1 - opacity,
            "accumulation": opacity,
            "depth": out.depth[0, :, None],
        }

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The terms of the method for these cameras and classes."""
        poses = outputs["cameras"].camera_to_worlds
        last = poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(poses), 1, 4)
        return self.shell.loss({**batch, "c2w": torch.cat([poses, last], 1)})

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """There are no pictures to compare with."""
        return {}, {"img": outputs["rgb"]}


def recipe_shell(recipe: str, teacher: str, classes: int, looks: int) -> "Rendering":
    """The method of a recipe, with this teacher; SystemExit with one line where it cannot be used.

    Args:
        classes: of the teacher; looks: rigs per object that the data hold.
    """
    from fewstep.train.fit import RecipeError, instantiate
    from fewstep_3d.prd import Rendering

    options = (f"--model.init_args.teacher.init_args.source={teacher}", "--trainer.logger=false")
    try:
        file = Path(recipe) if recipe.endswith(".yaml") else find(recipe)
        shell = instantiate(file, [*options, f"--seed_everything={torch.initial_seed() % 2**32}"]).model
    except (RecipeError, UsageError, ArtifactError) as err:
        raise SystemExit(f"fewstep-distill: {recipe}: {err}") from err
    if not isinstance(shell, Rendering):
        raise SystemExit(f"fewstep-distill: {recipe} is about {type(shell).__name__}, not a method of fewstep_3d.prd")
    student = cast(TriplaneGenerator, shell.student)
    if student.net.classes != classes or student.steps != looks:
        raise SystemExit(
            f"fewstep-distill: {recipe} has {student.net.classes} classes and {student.steps} evaluations, the teacher {classes} "
            f"classes and the data {looks} looks; --pipeline.datamanager.looks is the number of evaluations"
        )
    return shell
