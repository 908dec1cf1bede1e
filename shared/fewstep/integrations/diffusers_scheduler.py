"""A fewstep solver as a diffusers scheduler.

    pipe.scheduler = FewstepScheduler.from_diffusers(pipe.scheduler, DPMpp2M())

keeps the process that the pipeline's network was trained on and replaces how it is solved. `step` is one linear
combination of the states and raw network outputs so far (fewstep.sampling.fold). Where a solver makes several
evaluations per step, `timesteps` has an entry for each, as diffusers' Heun has.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fewstep.artifacts import build, describe
from fewstep.estimate import Estimate
from fewstep.grids import Grid
from fewstep.integrations.diffusers_config import Clip, grid_times, read
from fewstep.integrations.diffusers_grids import FlowSpacing
from fewstep.integrations.diffusers_labels import Labelled
from fewstep.integrations.diffusers_plan import Call, Calls, begin, cut
from fewstep.paths import Path, expand
from fewstep.prediction import Prediction
from fewstep.solvers.base import Row, Solver, State, advance

Description = Mapping[str, Any]


class StepOutput(Sequence[Tensor]):
    """`prev_sample`, and `pred_original_sample` computed when asked for: as attributes, by these names, or as a tuple
    of two.
    """

    def __init__(self, prev_sample: Tensor, x0: Callable[[], Tensor]) -> None:
        self.prev_sample, self._x0 = prev_sample, x0

    @property
    def pred_original_sample(self) -> Tensor:
        """The x0 that this evaluation predicts."""
        return self._x0()

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key if isinstance(key, str) else ("prev_sample", "pred_original_sample")[key])

    def __len__(self) -> int:
        return 2


class FewstepScheduler(SchedulerMixin, ConfigMixin):
    """Scheduler of a solver and a grid on a path; objects, or their descriptions as `config` holds them.

    Args:
        path: the process, without anchor.
        prediction: what the network outputs, how its input is scaled and its time labelled.
        solver, grid: any of fewstep's.
        init_noise_sigma: factor of the pipeline's initial noise; None: s at the first time of the grid.
        clip: applied to every x0, which is then also what eps follows from; None does nothing.
        num_train_timesteps: what pipelines ask `config` for.
        settings: further entries of `config` that pipelines look up, such as those of the scheduler that was replaced.
    """

    def __init__(
        self,
        path: Path | Description,
        prediction: Prediction | Description,
        solver: Solver | Description,
        grid: Grid | Description,
        init_noise_sigma: float | None = None,
        clip: Clip | Description | None = None,
        num_train_timesteps: int = 1000,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.prediction = _built(path, Path), _built(prediction, Prediction)
        self.solver, self.grid, self.clip = _built(solver, Solver), _built(grid, Grid), _built(clip, object)
        if self.path.anchored:
            raise ValueError(f"{type(self.path).__name__} has an anchor, which a diffusers pipeline cannot give")
        self._init_noise_sigma = init_noise_sigma
        own = {k: describe(getattr(self, k)) for k in ("path", "prediction", "solver", "grid", "clip")}
        own |= {"init_noise_sigma": init_noise_sigma, "num_train_timesteps": num_train_timesteps}
        self.register_to_config(**{**(settings or {}), **own, "settings": dict(settings or {})})
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self.times = torch.empty(0, dtype=torch.float64)  # (n + 1,), of the grid; `timesteps` are the labels of calls
        self._plan: Calls | None = None
        self._begin_index: int | None = None

    @classmethod
    def from_diffusers(
        cls, scheduler: Any, solver: Solver | None = None, grid: Grid | None = None
    ) -> "FewstepScheduler":
        """The process of a diffusers scheduler (or of its configuration, or of one of ours) with this solver and grid;
        each defaults to the scheduler's."""
        config = scheduler if isinstance(scheduler, Mapping) else scheduler.config
        if isinstance(scheduler, cls):
            found, init, steps, settings = scheduler, config["init_noise_sigma"], len(scheduler), config["settings"]
        else:
            found = read(scheduler)
            init, steps = found.init_noise_sigma, found.steps
            settings = {k: v for k, v in config.items() if not k.startswith("_")}
        own = found.path, found.prediction, solver or found.solver, grid or found.grid
        return cls(*own, init, found.clip, steps, settings)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in ConfigMixin; `settings` are repeated at the top level for pipelines, and not expected by `__init__`
        there.
        """
        extra = set(config_dict.get("settings") or {}) - cls._get_init_keys(cls)
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k not in extra}, **kwargs)

    # --- time ---------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan n steps of the grid, or steps at given labels or sigmas; see `grid_times`.

        Flow pipelines always pass sigmas, evenly from 1 to 1/n where the user gave none. Those even ones stand for n
        where the grid is not diffusers' own.
        """
        if sigmas is not None and not isinstance(self.grid, FlowSpacing) and _even(sigmas):
            num_inference_steps, sigmas = len(sigmas), None
        self.times = grid_times(self.path, self.prediction, self.grid, num_inference_steps, timesteps, sigmas, mu)
        self._rows = self.solver.plan(self.path, self.times)
        self._plan = self._whole = cut(self._rows, self.path, self.prediction, self.clip is None)
        self.num_inference_steps = len(self.times) - 1
        self.timesteps = torch.tensor(self._plan.labels, dtype=torch.float32, device=device)
        self._begin_index = self._step_index = None
        self._first, self._state = 0, None

    @property
    def calls(self) -> Calls:
        """The plan being followed."""
        if self._plan is None:
            raise ValueError("call set_timesteps before sampling")
        return self._plan

    @property
    def order(self) -> int:
        """Entries of `timesteps` per step."""
        return 1 if self._plan is None else self._whole.per_step

    @property
    def sigmas(self) -> Tensor:
        """Levels of all calls and of the end: s on a rectified flow, s/a elsewhere."""
        times = torch.tensor([c.row.t for c in self._whole.calls] + [self.times[-1].item()], dtype=torch.float64)
        a, _, s = self.path.schedule(times)
        flow = torch.allclose(a + s, torch.ones_like(a))
        return (s if flow else s / a).float()

    @property
    def init_noise_sigma(self) -> float:
        """Factor of the standard normal noise that pipelines begin with."""
        given = self._init_noise_sigma
        if given is None:
            first = torch.tensor(self.path.t_max, dtype=torch.float64) if self._plan is None else self.times[0]
            given = self.path.schedule(first)[2].item()
        return given if self._plan is None else self._whole.start_scale(given)

    @property
    def step_index(self) -> int | None:
        """The number of the next call; None before the first."""
        return None if self._plan is None else self._step_index

    @property
    def begin_index(self) -> int | None:
        """The call at which the pipeline begins, where it said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this entry of `timesteps` (image to image)."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The entry of a label; the second one where it occurs twice, which is where a step begins."""
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (known == torch.as_tensor(timestep).to(known)).nonzero()
        if len(found) == 0:
            raise ValueError(f"timestep {float(timestep):g} is not one of scheduler.timesteps")
        return int(found[min(1, len(found) - 1)])

    def _begin(self, timestep: float | Tensor) -> int:
        """Fix where the trajectory begins, and the plan from there on."""
        first = self._begin_index
        if first is None:  # the first entry may have the label of the second
            first = 0 if float(timestep) == self.timesteps[0].item() else self.index_for_timestep(timestep)
        if first:
            rows = begin(self._rows, first, self.solver, self.path, self.times)
            self._plan = cut(rows, self.path, self.prediction, self.clip is None)
            labels = self._whole.labels[first:]
            if len(labels) != len(self._plan.calls) or not np.allclose(labels, self._plan.labels):
                raise ValueError(
                    f"{type(self.solver).__name__} cannot begin at call {first} of {len(self._whole.calls)}: its start "
                    "takes other evaluations than its later steps; choose another solver"
                )
        self._first = first
        return first

    def _call(self, timestep: float | Tensor) -> Call:
        calls = self.calls
        if self._step_index is None:
            self._step_index = self._begin(timestep)
            calls = self.calls
        return calls.calls[self._step_index - self._first]

    # --- sampling -----------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """What the network is shown of the state."""
        i = self._call(timestep).at.i
        return sample if i == 1.0 else sample * i

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> StepOutput:
        """The state after one network evaluation at `sample`.

        Args:
            model_output: (B, C, ...) as the network gives it; of 2 C channels (learned variance) the first half is
                used.
            timestep: the entry of `timesteps`; decides where to begin, later calls follow in order.
            sample: (B, C, ...) the state, whether or not it is the one returned last; half precision is computed in
                float32.
            eta: DDIMPipeline's; noise is the solver's here, so only 0.
            use_clipped_model_output: DDIMPipeline's; a clipped x0 always changes eps here, so not False beside a clip.
            generator: of the noise of stochastic solvers, one or one per sample.
            return_dict: pipelines pass it; the result serves as either.
        """
        if eta != 0.0:
            raise ValueError(
                f"eta={eta} has no effect on {type(self.solver).__name__}; use the solver Ancestral({eta})"
            )
        if use_clipped_model_output is False and self.clip is not None:
            raise ValueError("use_clipped_model_output=False: where x0 is clipped, eps always follows from it here")
        call = self._call(timestep)
        kind = torch.float32 if sample.dtype in (torch.float16, torch.bfloat16) else sample.dtype
        x, out = sample.to(kind), model_output[:, : sample.shape[1]].to(kind)
        new = out if self.clip is None else self._estimate(call, x, out)
        before = self._state or State((x,))
        state, keep = before._replace(xs=(x, *before.xs[1:])), self.calls.keep
        state = advance(state, new, call.row, self._noise(call.row, x, generator), keep)
        for row in call.after:
            state = advance(state, None, row, self._noise(row, x, generator), keep)
        self._state = state
        self._step_index = (self._step_index or 0) + 1
        k = call.at.x0
        return StepOutput(
            state.xs[0].to(sample.dtype),
            lambda: (new.x0 if isinstance(new, Estimate) else k[0] * x + k[1] * out).to(sample.dtype),
        )

    def _estimate(self, call: Call, x: Tensor, out: Tensor) -> Estimate:
        """x0 clipped, and eps = (x - a x0)/s from it."""
        t = torch.tensor(call.row.t, dtype=torch.float64)
        a, _, s = (v.item() for v in self.path.schedule(t))
        x0 = self.clip(call.at.x0[0] * x + call.at.x0[1] * out)
        return Estimate(x0, lambda: (x - a * x0) / s)

    @staticmethod
    def _noise(row: Row, x: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor | None:
        if not isinstance(row.noise, Tensor) and row.noise == 0.0:
            return None
        return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    # --- noising ------------------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """a x0 + s eps at the times of these labels, (B,); at the beginning where `set_begin_index` has said which."""
        times = self._noise_times(timesteps).to(original_samples.device)
        a, _, s = self.path.schedule(times)
        return expand(a, original_samples) * original_samples + expand(s, noise) * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name and the argument order of flow schedulers."""
        return self.add_noise(sample, noise, timestep)

    def _noise_times(self, labels: Tensor) -> Tensor:
        labels = torch.as_tensor(labels).reshape(-1).double().cpu()
        if self._plan is not None:
            calls = self._whole.calls
            if self._begin_index is not None:
                k = self._begin_index if self.step_index is None else min(self.step_index, len(calls) - 1)
                return torch.full_like(labels, calls[k].row.t)
            known = self.timesteps.double().cpu()
            if all((known == v).any() for v in labels):
                return torch.tensor([calls[self.index_for_timestep(v)].row.t for v in labels], dtype=torch.float64)
        return self.prediction.time(labels) if isinstance(self.prediction, Labelled) else labels

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]


def _built(given: Any, kind: type) -> Any:
    """The object of a description, or the object itself."""
    found = build(given, where="scheduler") if isinstance(given, Mapping) else given
    if found is not None and not isinstance(found, kind):
        raise ValueError(f"expected a {kind.__name__}, or its description, not {type(found).__name__}")
    return found


def _even(sigmas: Sequence[float]) -> bool:
    """Whether these are linspace(1, 1/n, n)."""
    return bool(np.allclose(np.asarray(sigmas, dtype=float), np.linspace(1.0, 1 / len(sigmas), len(sigmas)), atol=1e-6))
