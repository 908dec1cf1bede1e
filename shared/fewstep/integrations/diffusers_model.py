"""A diffusers network as the network of a Denoiser: forward(x, label, **conditions) -> output, conditions by the
model's own names.

denoiser = Denoiser.from_diffusers(pipe)
denoise = CFG(denoiser, 7.5, {"encoder_hidden_states": negative}).bind({"encoder_hidden_states": prompt})
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from fewstep.integrations.diffusers_config import read
from fewstep.paths import Path
from fewstep.prediction import Prediction

# Models whose pipelines pass them a thousandth of the scheduler's timestep.
PER_MILLE = frozenset(
    f"{name}Transformer2DModel"
    for name in ("AuraFlow", "Chroma", "Flux", "Flux2", "LongCatImage", "OvisImage", "QwenImage", "QwenImage21")
)


class DiffusersNetwork(nn.Module):
    """A diffusers model built from its configuration; `of` takes one that exists.

    Shapes: x (B, C, ...) or tokens (B, L, C); label (B,); output as x: of a model that also predicts variances (2 C
    channels) the first half. Conditions that the model's forward does not name go into its `added_cond_kwargs` (SDXL's
    text_embeds and time_ids).

    Args:
        name: class in diffusers.
        config: its configuration.
        label_scale: factor of the label; None: 0.001 for models whose pipelines divide the timestep by 1000, else 1.
    """

    def __init__(self, name: str, config: Mapping[str, Any], label_scale: float | None = None) -> None:
        super().__init__()
        model = getattr(import_module("diffusers"), name, None)
        if not (isinstance(model, type) and issubclass(model, nn.Module) and hasattr(model, "from_config")):
            raise ValueError(f"{name!r} is not a model class of diffusers")
        self._hold(model.from_config(dict(config)), label_scale)  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def of(cls, model: nn.Module, label_scale: float | None = None) -> "DiffusersNetwork":
        """The network of an existing model, which is not copied."""
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._hold(model, label_scale)
        return network

    def _hold(self, model: nn.Module, label_scale: float | None) -> None:
        arguments = inspect.signature(model.forward).parameters
        state = next((name for name in ("sample", "hidden_states") if name in arguments), None)
        if state is None or "timestep" not in arguments or "return_dict" not in arguments:
            raise ValueError(
                f"{type(model).__name__}.forward takes {', '.join(arguments)}; a network needs sample or hidden_states, "
                "timestep and return_dict"
            )
        self.name, self.state = type(model).__name__, state
        self.arguments = frozenset(arguments)
        config = getattr(model, "config", {})
        self.config = {k: v for k, v in config.items() if not k.startswith("_")}
        self.label_scale = (0.001 if self.name in PER_MILLE else 1.0) if label_scale is None else label_scale
        self.model = model

    def forward(self, x: Tensor, label: Tensor, **conditions: Any) -> Tensor:
        """The model's output for x: (B, ...) at labels (B,)."""
        time = label if self.label_scale == 1.0 else label * self.label_scale
        named = {
            k: v for k, v in conditions.items() if k in self.arguments or "added_cond_kwargs" not in self.arguments
        }
        if added := {k: v for k, v in conditions.items() if k not in named}:
            named["added_cond_kwargs"] = {**named.get("added_cond_kwargs", {}), **added}
        out = self.model(**{self.state: x}, timestep=time, **named, return_dict=False)[0]
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def parts(source: Any, scheduler: Any | None = None) -> tuple[DiffusersNetwork, Path, Prediction]:
    """(network, path, prediction) of a pipeline, or of a model with its scheduler (or the scheduler's
    configuration).
    """
    model = source
    if not isinstance(source, nn.Module):
        model = next((m for n in ("unet", "transformer") if isinstance(m := getattr(source, n, None), nn.Module)), None)
        scheduler = getattr(source, "scheduler", None) if scheduler is None else scheduler
    if model is None:
        raise ValueError(
            f"{type(source).__name__} has no unet or transformer; give the network itself and its scheduler"
        )
    if scheduler is None:
        raise ValueError(f"give the scheduler of {type(source).__name__}: it says what the network predicts")
    if isinstance(getattr(scheduler, "path", None), Path):  # one of ours
        return DiffusersNetwork.of(model), scheduler.path, scheduler.prediction
    found = read(scheduler)
    return DiffusersNetwork.of(model), found.path, found.prediction
