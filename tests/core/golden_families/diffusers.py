"""Family diffusers: schedulers rebuilt from their configuration alone."""

import re

import torch
from golden_cases import Case, counted

from fewstep.estimate import Estimate
from fewstep.guidance.thresholding import Thresholded
from fewstep.integrations.diffusers_config import read
from fewstep.integrations.diffusers_labels import Labelled
from fewstep.paths import VP, EDM, RectifiedFlow
from fewstep.paths.base import Coeffs
from fewstep.sampling import sample


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


class Recorded:
    """The exact model at the listed levels, seen as the network of the scheduler's prediction: each call takes the next level."""

    def __init__(self, case, reading):
        self.case, self.reading, self.calls, self.seen = case, reading, 0, []

    def scale(self, t):
        """What diffusers' state is of ours."""
        a = self.reading.path.schedule(torch.tensor(t, dtype=torch.float64))[0]
        return 1 / a if self.reading.scale == "edm" else torch.ones_like(a)

    def output(self, x, t):
        """(network output, its prediction) for our state x at time t."""
        space = self.case["space"]
        a, s = at_level(space, self.case.array("levels")[self.calls])
        world = self.case.mixture(self.case["mixture"], Still(a.item(), s.item()))
        estimate = world(x * self.scale(t), 0.5)
        self.calls += 1
        self.seen.append(t)
        inner = self.reading.prediction
        inner = inner.inner if isinstance(inner, Labelled) else inner
        if self.reading.scale == "edm":  # v is that of the variance-preserving process
            a, s = at_level("vp", s)
        one = torch.ones(1, 1, dtype=torch.float64)
        zero = 0 * one
        rates = (-one, zero, one)  # of a rectified flow; other predictions do not look
        return inner.target(estimate.x0, estimate.eps, Coeffs(a * one, zero, s * one, *rates))

    def __call__(self, x, t):
        out, c = self.output(x, t), self.reading.path.coeffs(torch.tensor([t], dtype=torch.float64), x)
        k = self.reading.prediction.affine(c)
        return Estimate(k.x0_x * x + k.x0_out * out, k.eps_x * x + k.eps_out * out)


class Still(EDM):
    """A path that stands still at (a, s)."""

    def __init__(self, a, s):
        object.__setattr__(self, "level", (a, s))

    def schedule(self, t):
        a, s = self.level
        return torch.full_like(t, a), torch.zeros_like(t), torch.full_like(t, s)


def noises(case):
    """Recorded noise, one array per stochastic step, as a function of the row; None where there is none."""
    if "noise" not in case:
        return None
    rest = iter(case.array("noise"))
    return lambda row: next(rest)


def diffusers(case: Case):
    reading = read({"_class_name": case["function"], **case["config"]})
    times = reading.times(**to_times(case["set_timesteps"]))
    start_at = times[:1]
    a, _, s = reading.path.schedule(start_at)
    init = s.item() if reading.init_noise_sigma is None else reading.init_noise_sigma
    unit = 1 / a.item() if reading.scale == "edm" else 1.0  # their state over ours
    x_init = case.array(re.search(r"x_init/\w+", case["x_init"]).group())
    given = re.search(r"\(([\d.e+-]+)\)", case.get("init", ""))
    if given:
        yield "init_noise_sigma", torch.tensor(init * unit), torch.tensor(float(given.group(1)), dtype=torch.float64)
    x = x_init * (float(given.group(1)) / unit if given else init)
    model = Recorded(case, reading)
    denoise = model if reading.clip is None else Thresholded(model, reading.clip, reading.path)
    end = sample(denoise, x, reading.path, reading.solver, times, generator=noises(case))
    yield "out", end * model.scale(times[-1].item()), case.array("out")
    yield counted(case, model.calls)


def to_times(arguments):
    """`set_timesteps` arguments as those of `Sampling.times`."""
    return {("n" if k == "num_inference_steps" else k): v for k, v in arguments.items()}


FAMILIES = {"diffusers": diffusers}
