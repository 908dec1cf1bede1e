"""Batches of states of different lengths: what stands in the padding has no part in losses and figures."""

import copy

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distances import L1, ElementwiseHuber, PseudoHuber, SquaredL2, Within, within
from fewstep.distill.consistency import ConsistencyDistillation
from fewstep.distill.ctm import CTM
from fewstep.distill.intervals import Adjacent
from fewstep.distill.jump_times import TeacherSpans
from fewstep.distill.mean_flow import MeanFlow
from fewstep.generator import Generator, Prepared
from fewstep.grids import Karras, Uniform
from fewstep.jump import JumpGenerator
from fewstep.nets.embedding import Embeddings
from fewstep.paths import EDM, RectifiedFlow
from fewstep.precondition import ConsistencyPrecondition
from fewstep.prediction import U
from fewstep.solvers import DDIM, Heun
from fewstep.times import LogNormalTimes, MixedTimes, UniformTimes
from fewstep.train.denoising import Denoising


class Net(nn.Module):
    """A convolution that padding has no part in."""

    def __init__(self, scalars=None):
        super().__init__()
        self.scalars = dict(scalars or {})
        self.time, self.conv = Embeddings(8, 4, 1.0, scalars), nn.Conv1d(1, 4, 3, padding=1)

    def forward(self, x, t, mask, **scalars):
        h = self.conv((x * mask)[:, None]) + self.time(t, scalars)[:, :, None]
        return h.tanh().sum(1) * mask


class Padded(Generator):
    """States (B, T), of which the mask says how much is there."""

    def __init__(self, denoiser, solver=None, grid=None, steps=8):
        super().__init__(denoiser, solver or Heun(), grid or Uniform(), steps)

    def prepare(self, batch):
        return Prepared(batch["x0"], {"mask": batch["mask"]}, None)

    def mask(self, cond):
        return cond["mask"]


class PaddedJumps(JumpGenerator, Padded):
    def __init__(self, denoiser, solver=None, grid=None, steps=1, gamma=0.0, nu=1.0):
        super().__init__(denoiser, solver or DDIM(), grid or Uniform(), steps, gamma, nu)


MASK = torch.tensor([[1.0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]])


def teacher(path, prediction, grid):
    torch.manual_seed(0)
    return Padded(Denoiser(Net(), path, prediction), Heun(), grid)


def edm():
    return teacher(EDM(), ConsistencyPrecondition(), Karras())


def flow():
    return teacher(RectifiedFlow(), U(), Uniform())


METHODS = {
    "denoising": lambda: Denoising(edm(), 5, LogNormalTimes()),
    "cd": lambda: ConsistencyDistillation(edm(), 5, intervals=Adjacent(8, Karras(clean=False))),
    "ctm": lambda: CTM(edm(), 5, spans=TeacherSpans(8, Karras())),
    "mean_flow": lambda: MeanFlow(flow(), 5),
}


@pytest.mark.parametrize("name", METHODS)
def test_padding_has_no_part_in_losses_and_figures(name):
    x0 = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    results = []
    for beyond in (0.0, 100.0):
        method = METHODS[name]()
        with torch.no_grad():
            for p in method.student.parameters():
                p.add_(0.1)  # apart from its teacher
        batch = {"x0": torch.where(MASK.bool(), x0, torch.tensor(beyond)), "mask": MASK}
        torch.manual_seed(2)
        terms = method.loss(batch)
        sum(terms.values()).backward()
        gradients = [p.grad for p in method.student.parameters() if p.grad is not None]
        figures = method.evaluate(method.student, batch)
        figures.pop("agreement", None)  # of whole samples: generators with padding keep it at 0 when they generate
        results.append([*terms.values(), *gradients, *figures.values()])
    assert results[0][0] > 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("distance", [SquaredL2(), L1(), PseudoHuber(), ElementwiseHuber()])
def test_a_distance_within_a_mask_is_that_of_the_items_alone(distance):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, 6, generator=g, dtype=torch.float64) for _ in range(2))
    found = Within(distance, MASK[:, None])(a, b)
    for i, n in enumerate(MASK.sum(1).int().tolist()):
        assert torch.allclose(found[i], distance(a[i : i + 1, :, :n], b[i : i + 1, :, :n])[0], atol=1e-14)
    assert within(distance, None) is distance


def test_agreement_is_over_what_is_there():
    module, own, wanted = METHODS["cd"](), torch.zeros(4, 6), torch.ones(4, 6) * MASK
    found = module.closeness(own, wanted, MASK)["agreement"]
    assert torch.allclose(found, torch.full((4,), 10 * torch.log10(torch.tensor(4.0)).item()))
    plain = module.closeness(own, wanted)["agreement"]
    assert plain[0] == found[0]
    assert (plain[1:] > found[1:]).all()


def test_mixed_times_draw_their_shares():
    torch.manual_seed(0)
    t = MixedTimes(UniformTimes(), LogNormalTimes(20.0, 0.1), 0.25)(8, EDM())
    assert (t == 80).sum() == 2
    assert len(t) == 8
    with pytest.raises(ValueError, match="share"):
        MixedTimes(UniformTimes(), UniformTimes(), 1.5)


def test_copies_keep_the_mask():
    module = METHODS["mean_flow"]()
    assert isinstance(module.student, PaddedJumps)
    assert copy.deepcopy(module.student).mask({"mask": MASK}) is MASK
