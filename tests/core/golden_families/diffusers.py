"""Family diffusers: schedulers rebuilt from their configuration alone."""

import re
from dataclasses import replace

import torch
from golden_cases import Case, counted

from fewstep.estimate import Estimate
from fewstep.guidance.thresholding import Thresholded
from fewstep.integrations.diffusers_config import read
from fewstep.integrations.diffusers_labels import Labelled
from fewstep.integrations.diffusers_scheduler import FewstepScheduler
from fewstep.integrations.diffusers_solvers import StridedDDIM, TCDSampling
from fewstep.paths import EDM, Coeffs
from fewstep.sampling import sample
from fewstep.solvers import Ancestral


def at_level(space, level):
    """(a, s) of a level as the space lists it: alpha_bar, s/a, s/a of states in EDM scale, or the flow time."""
    level = torch.as_tensor(level, dtype=torch.float64)
    ratio = (1 + level**2).rsqrt()
    return {
        "vpidx": lambda: (level.sqrt(), (1 - level).sqrt()),
        "vp": lambda: (ratio, level * ratio),
        "edm": lambda: (torch.ones_like(level), level),
        "fm": lambda: (1 - level, level),
    }[space]()


def level_of(space, path, times):
    """The levels of times, as the space lists them."""
    a, _, s = path.schedule(torch.as_tensor(times, dtype=torch.float64))
    return a**2 if space == "vpidx" else s if space == "fm" else s / a


class Still(EDM):
    """A path that stands still at (a, s)."""

    def __init__(self, a, s):
        object.__setattr__(self, "level", (a, s))

    def schedule(self, t):
        a, s = self.level
        return torch.full_like(t, a), torch.zeros_like(t), torch.full_like(t, s)


class Recorded:
    """The exact model as the network of the scheduler's prediction; each call takes the next of the listed levels."""

    def __init__(self, case, reading):
        self.case, self.reading, self.calls = case, reading, 0

    def scale(self, t):
        """What diffusers' state at time t is of ours."""
        a = self.reading.path.schedule(torch.tensor(t, dtype=torch.float64))[0]
        return 1 / a if self.reading.scale == "edm" else torch.ones_like(a)

    def output(self, x, t):
        """The network's output for our state x at time t."""
        a, s = at_level(self.case["space"], self.case.array("levels")[self.calls])
        self.calls += 1
        estimate = self.case.mixture(self.case["mixture"], Still(a.item(), s.item()))(x * self.scale(t), 0.5)
        if self.reading.scale == "edm":  # v is that of the variance-preserving process
            a, s = at_level("vp", s)
        one = torch.ones(1, 1, dtype=torch.float64)
        # The rates are those of a rectified flow, whose velocity is the only prediction that looks at them.
        c = Coeffs(a * one, 0 * one, s * one, -one, 0 * one, one)
        prediction = self.reading.prediction
        return (prediction.inner if isinstance(prediction, Labelled) else prediction).target(
            estimate.x0, estimate.eps, c
        )

    def __call__(self, x, t):
        out, c = self.output(x, t), self.reading.path.coeffs(torch.tensor([t], dtype=torch.float64), x)
        k = self.reading.prediction.affine(c)
        return Estimate(k.x0_x * x + k.x0_out * out, k.eps_x * x + k.eps_out * out)


def noises(case):
    """Recorded noise, one array per stochastic step, as a function of the row; None where there is none."""
    if "noise" not in case:
        return None
    rest = iter(case.array("noise"))
    return lambda row: next(rest)


def reading_of(case):
    """The configuration as read; `eta` of DDIM and TCD is an argument of their step."""
    found = read({"_class_name": case["function"], **case["config"]})
    eta = (case.get("step_kwargs") or case.get("sample_kwargs") or {}).get("eta")
    if eta is None:
        return found
    return replace(
        found, solver=TCDSampling(eta) if isinstance(found.solver, TCDSampling) else StridedDDIM(Ancestral(eta))
    )


def diffusers(case: Case):
    reading = reading_of(case)
    given = {("n" if k == "num_inference_steps" else k): v for k, v in case["set_timesteps"].items()}
    times, model = reading.times(**given), Recorded(case, reading)
    first = times[0].item()
    start = reading.path.schedule(times[0])[2].item() if reading.init_noise_sigma is None else reading.init_noise_sigma
    x = case.array(re.search(r"x_init/\w+", case["x_init"]).group())
    stated = re.search(r"\(([\d.e+-]+)\)", case.get("init", ""))
    if stated:
        sigma = torch.tensor(float(stated.group(1)), dtype=torch.float64)
        yield "init_noise_sigma", start * model.scale(first), sigma
    x = x * (start if stated else 1 / model.scale(first))
    denoise = model if reading.clip is None else Thresholded(model, reading.clip, reading.path)
    end = sample(denoise, x, reading.path, reading.solver, times, generator=noises(case))
    yield "out", end * model.scale(times[-1].item()), case.array("out")
    yield counted(case, model.calls)
    if "noise" not in case:
        yield from stepped(case, reading, x)


def stepped(case, reading, x):
    """The same through the scheduler, call by call: labels, levels where steps begin, and the states."""
    scheduler, model = (
        FewstepScheduler.from_diffusers({"_class_name": case["function"], **case["config"]}),
        Recorded(case, reading),
    )
    scheduler.set_timesteps(**case["set_timesteps"])
    calls, labels, official = scheduler.calls, scheduler.timesteps.double(), case.array("timesteps")
    # Labels that are rounded or cut to integers may fall on either side; others are float32.
    rounded = isinstance(reading.prediction, Labelled) and reading.prediction.rounding != "none"
    close = (labels - official).abs() <= (1.0 if rounded else 0.05)
    yield "timesteps", torch.where(close, official, labels), official
    begins, at = list(calls.starts), [call.row.t for call in calls.calls]
    yield "levels", level_of(case["space"], reading.path, at)[begins], case.array("levels")[begins]
    if "traj" not in case:
        return
    ends = [*at[1:], scheduler.times[-1].item()]
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model.output(x, at[k]), t, x, return_dict=False)[0]
        yield f"traj[{k + 1}]", x * model.scale(ends[k]), case.array("traj")[k + 1]


FAMILIES = {"diffusers": diffusers}
