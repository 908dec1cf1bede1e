"""Two experts: routing, what they share, exact worlds, the terms of both stages."""

import copy
import math

import pytest
import torch
from small import clips, teacher
from torch import nn

from fewstep.artifacts import load, save
from fewstep.denoiser import Denoiser
from fewstep.discriminators import Adversary
from fewstep.discriminators.losses import BoundedHinge
from fewstep.distances import ElementwiseHuber, SquaredL2
from fewstep.distill.segmented_gan import diffused_state
from fewstep.generator import Generator
from fewstep.grids import Explicit, Shifted
from fewstep.nets.adapter import trainable
from fewstep.paths import RectifiedFlow, expand
from fewstep.prediction import U
from fewstep.solvers import DDIM
from fewstep_video.distill.dcm import Parts, SemanticConsistency, Within, coherence, experts
from fewstep_video.distill.dcm_detail import DetailConsistency, TokenHead, read_out
from fewstep_video.nets.experts import Experts

FLOW, PARTS = RectifiedFlow(), Parts(Shifted(5.0), 10, 6)
BOUNDARY, ABOVE = PARTS.boundary(FLOW), PARTS.above(FLOW)


def both(seed=0, rank=4):
    return experts(teacher(seed), PARTS, rank)


def detail(**changed):
    torch.manual_seed(0)
    grid = Explicit((1.0, ABOVE, BOUNDARY, 0.0))
    adversary = Adversary(["model.blocks.0", "model.blocks.1"], head=TokenHead(16), loss=BoundedHinge(), weight=0.5)
    given = {"student": both(), "adversary": adversary, "parts": PARTS, "steps": 3, "grid": grid}
    return DetailConsistency(teacher(), 10, **{**given, **changed})


def semantic(**changed):
    torch.manual_seed(0)
    return SemanticConsistency(teacher(), 10, **{"parts": PARTS, **changed})


# --- the parts ----------------------------------------------------------------------------------------------------


def test_the_boundary_of_the_paper():
    parts = Parts()
    assert parts.boundary(FLOW) == pytest.approx(0.9754, abs=5e-5)
    assert parts.above(FLOW) == pytest.approx(0.9776, abs=5e-5)
    assert Parts(kappa=38).above(FLOW) == pytest.approx(0.9837, abs=5e-5)
    one = 17 * 0.001 / (1 + 16 * 0.001)
    assert one == pytest.approx(0.0167, abs=5e-5) and float(Parts(end=one).times(FLOW)[-1]) == one


@pytest.mark.parametrize("detail_part", [False, True])
def test_intervals_are_neighbours_of_their_part(detail_part):
    t, s = Within(PARTS, detail_part)(4000, FLOW)
    times = PARTS.times(FLOW)
    wanted = times[4:10] if detail_part else times[:4]
    assert sorted(set(t.tolist()), reverse=True) == wanted.tolist()
    index = (times[:, None] == t).int().argmax(0)
    assert torch.equal(times[index + 1], s)
    assert (t > BOUNDARY).all() != detail_part and (s >= (0 if detail_part else BOUNDARY)).all()


def test_kappa_parts_the_nodes():
    with pytest.raises(ValueError, match="between 0 and 50, the number of nodes, not 50"):
        Parts(kappa=50)


# --- the experts --------------------------------------------------------------------------------------------------


def test_the_detail_expert_begins_as_the_semantic_one():
    model, plain, x = both(), teacher(), torch.randn(2, 3, 8, 8, 8)
    for t in (0.3, 0.99):
        wanted = plain.denoiser(x, torch.full((2,), t).double(), {"label": torch.tensor([0, 2])}).x0
        found = model.denoiser(x, torch.full((2,), t).double(), {"label": torch.tensor([0, 2])}).x0
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def changed(model):
    """The same with a detail expert of its own."""
    with torch.no_grad():
        for p in model.denoiser.net.adapter_parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model


def test_each_sample_is_routed_by_its_own_time():
    model, x = changed(both()), torch.randn(4, 3, 8, 8, 8)
    net, label = model.denoiser.net, torch.tensor([0, 1, 2, 0])
    t = torch.tensor([BOUNDARY, 0.999, 0.2, ABOVE])
    with torch.no_grad():
        found, low, high = net(x, t, label=label), net.detail(x, t, label=label), net.net(x, t, label=label)
    torch.testing.assert_close(found[[0, 2]], low[[0, 2]], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[[1, 3]], high[[1, 3]], rtol=0, atol=1e-5)
    assert (low - high).abs().max() > 0.01


@pytest.mark.parametrize("steps", range(1, 11))
def test_the_threshold_is_the_nodes_boundary_for_every_list_of_steps(steps):
    net, times = both().denoiser.net, PARTS.times(FLOW)
    chosen = times[:-1][torch.linspace(0, 9, steps).round().long()]
    assert torch.equal(net.is_semantic(chosen.float()), chosen > BOUNDARY + 1e-9)


def test_times_between_the_experts_are_refused():
    net = both().denoiser.net
    with pytest.raises(ValueError, match="no expert was trained at time"):
        net.is_semantic(torch.tensor([0.99, (BOUNDARY + ABOVE) / 2]))
    with pytest.raises(ValueError, match="no expert was trained at time"):
        detail(grid=Explicit((1.0, (BOUNDARY + ABOVE) / 2, BOUNDARY, 0.0)))


def test_what_is_shared_is_held_and_saved_once(tmp_path):
    model, plain = changed(both()), teacher()
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == sum(p.numel() for p in model.denoiser.net.adapter_parameters())
    save(model, tmp_path / "both")
    found, x, label = load(tmp_path / "both"), torch.randn(2, 3, 8, 8, 8), torch.tensor([0, 1])
    for t in (torch.tensor([0.3, 0.2]), torch.tensor([0.99, 0.3])):
        assert torch.equal(found.denoiser.net(x, t, label=label), model.denoiser.net(x, t, label=label))
    assert len(found.state_dict()) == len({id(v) for v in found.parameters()})


def test_copies_share_the_base_and_nothing_that_is_trained():
    model = trainable(changed(both()))
    other = copy.deepcopy(model)
    mine, theirs = ({id(p) for p in m.denoiser.net.adapter_parameters()} for m in (model, other))
    assert not mine & theirs and len(mine) == len(theirs)
    with torch.no_grad():
        for p in other.denoiser.net.adapter_parameters():
            p.zero_()
    x, t, label = torch.randn(1, 3, 8, 8, 8), torch.tensor([0.3]), torch.tensor([1])
    assert other.denoiser.net(x, t, label=label).abs().max() == 0, "its projection is its own"
    assert model.denoiser.net(x, t, label=label).abs().max() > 0
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == mine


# --- an exact world -----------------------------------------------------------------------------------------------


class Exact(nn.Module):
    """The two-segment consistency function of N(0, c^2): u = (x - Phi(x, s -> e))/(s - e)."""

    c = 0.5

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def spread(self, t):
        return ((1 - t) ** 2 * self.c**2 + t**2).sqrt()

    def forward(self, x, t):
        t = t.double()
        e = BOUNDARY * (t > BOUNDARY + 1e-9).double()
        moved = expand(self.spread(e) / self.spread(t), x) * x
        return (x - self.gain * moved) / expand(t - e, x)


class ExactStep:
    def __call__(self, teacher, path, x, t, s, y=None):
        world = Exact()
        return expand(world.spread(s) / world.spread(t), x) * x


def exact():
    return Generator(Denoiser(Exact(), FLOW, U()), DDIM(), Explicit((1.0, BOUNDARY, 0.0)), 2)


def test_both_parts_compose_to_the_exact_flow():
    noise = torch.randn(50, 1, 5, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(exact().generate(noise), 0.5 * noise, rtol=0, atol=1e-12)


def test_the_exact_semantic_expert_has_no_loss():
    method = SemanticConsistency(exact(), 10, parts=PARTS, step=ExactStep(), distance=SquaredL2())
    found = method.loss({"x0": torch.randn(200, 1, 5, 2, 2, dtype=torch.float64)})
    assert found.keys() == {"consistency", "coherence"}
    assert all(v < 1e-24 for v in found.values())
    with torch.no_grad():
        method.student.denoiser.net.gain *= 1.1
    assert method.loss({"x0": torch.randn(200, 1, 5, 2, 2, dtype=torch.float64)})["consistency"] > 1e-6


def test_velocities_that_are_constant_lead_to_the_parts_end_from_every_node():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.u = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, x, t):
            return self.u.expand_as(x)

    flow = Generator(Denoiser(Constant(), FLOW, U()), DDIM(), Shifted(5.0), 10)
    method = SemanticConsistency(flow, 10, parts=PARTS)
    t = PARTS.times(FLOW)[:4]
    x = torch.randn(4, 1, 5, 2, 2, dtype=torch.float64)
    found = method.end_point(method.student.denoiser, {}, None)(x, t)
    torch.testing.assert_close(found, x + expand(BOUNDARY - t, x) * 0.7, rtol=0, atol=1e-12)


# --- the terms ----------------------------------------------------------------------------------------------------


def test_the_temporal_term_is_blind_to_a_static_offset():
    a = torch.randn(3, 2, 8, 4, 4, dtype=torch.float64)
    assert coherence(a, a + torch.randn(3, 2, 1, 4, 4), 3).max() < 1e-28
    moved = a.clone()
    moved[:, :, 5] += 1
    torch.testing.assert_close(coherence(a, moved, 3), torch.full((3,), 1 / 5, dtype=torch.float64))
    assert coherence(a[:, :, :3], moved[:, :, :3], 3).tolist() == [0, 0, 0]


def test_the_semantic_stage_trains_all_weights_in_its_part_and_is_judged_at_the_boundary():
    method = semantic()
    terms = method.loss(clips())
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in method.student.denoiser.net.parameters())
    found = method.evaluate(method.student, clips())
    assert found["agreement"].shape == (2,)
    assert semantic(coherence=0.0).loss(clips()).keys() == {"consistency"}
    # With as many steps as nodes the student, still the teacher, is where the teacher is.
    method = semantic(steps=4)
    assert method.evaluate(method.student, clips())["agreement"].min() > 100


def test_the_detail_stage_trains_what_is_the_experts_own():
    method = detail()
    terms = method.loss(clips())
    assert terms.keys() == {"consistency", "adversarial", "matching", "critic"}
    sum(terms.values()).backward()
    net = method.student.denoiser.net
    # The first matrices of adapters have no gradient while the second ones are 0.
    reached = [p for p in net.adapter_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(reached) > len(net.adapter_parameters()) / 2
    assert all(p.grad is None for p in net.base_parameters())
    assert all(p.grad is not None for p in method.heads.parameters())
    assert method.evaluate(method.student, clips())["energy"].shape == (2,)


def test_critic_and_features_say_nothing_where_the_target_is_met():
    method = detail()
    drawn = method.drawn(clips())
    reached = method.reach(drawn, drawn.cond)
    met = reached._replace(target=method.own(reached, None).detach())
    assert method.student_terms(met, drawn, clips())["matching"] == 0
    judge, fake, real = method.judged(met, drawn)
    torch.testing.assert_close(fake, real)
    assert set(judge.t.tolist()) <= set(PARTS.times(FLOW)[4:10].tolist())


def test_noising_again_is_exact_for_a_state_that_has_noise():
    g = torch.Generator().manual_seed(0)
    e, n = 0.0167, 200_000
    x_e = e * torch.randn(n, dtype=torch.float64, generator=g)  # of data 0
    for level in (0.2, 0.5, 0.9):
        xi = torch.randn(n, dtype=torch.float64, generator=g)
        found = diffused_state(FLOW, x_e, torch.full((n,), e), torch.full((n,), level), xi)
        assert float(found.std()) == pytest.approx(level, rel=5e-3)
        once = diffused_state(FLOW, x_e, torch.full((n,), e), torch.full((n,), level / 2 + e), xi)
        more = torch.randn(n, dtype=torch.float64, generator=g)
        twice = diffused_state(FLOW, once, torch.full((n,), level / 2 + e), torch.full((n,), level), more)
        assert float(twice.std()) == pytest.approx(level, rel=5e-3)
        if level == 0.2:  # the official formula
            published = ((1 - level) * x_e + (level - e) * xi) / (1 - e)
            assert float(published.std()) == pytest.approx(0.187, abs=1e-3)


def test_reading_the_last_block_is_the_teachers_own_output():
    model, x, t = teacher(), torch.randn(2, 3, 8, 8, 8), torch.tensor([0.3, 0.8])
    tokens = []
    net = model.denoiser.net
    hook = net.model.blocks[-1].register_forward_hook(lambda m, a, out: tokens.append(out))
    wanted = net(x, t, label=torch.tensor([0, 1]))
    hook.remove()
    found = read_out(net, tokens[0], t)  # (B, N, 2 4 4 C)
    f, h, w = 4, 2, 2
    clip = found.reshape(2, f, h, w, 2, 4, 4, 3).permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(2, 3, 8, 8, 8)
    torch.testing.assert_close(clip, wanted)


def test_heads_take_any_number_of_tokens_and_logits_are_one_each():
    head = TokenHead(64).build(torch.zeros(2, 5, 24))
    for n in (1, 7, 300):
        assert head(torch.randn(2, n, 24)).shape == (2, n)
    with pytest.raises(ValueError, match=r"\(B, N, D\)"):
        TokenHead(64).build(torch.zeros(2, 3, 4, 5))


def test_what_the_second_stage_refuses():
    with pytest.raises(ValueError, match="not the Experts"):
        detail(student=teacher())
    with pytest.raises(ValueError, match="the student's experts part at"):
        detail(parts=Parts(Shifted(5.0), 10, 5))
    with pytest.raises(ValueError, match="ends where or below"):
        Experts(teacher().denoiser.net, 0.5, 0.4, 4)


def test_distances_are_the_papers():
    assert isinstance(semantic().distance, ElementwiseHuber) and semantic().distance.c == 1e-3
    assert math.isclose(detail().adversary.weight, 0.5) and detail().matching == 1.0
