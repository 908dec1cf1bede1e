"""Adversarial methods against exact worlds: posteriors, pools of heads, sums of terms, and whose gradient is whose."""

import copy
from itertools import pairwise

import lightning as L
import pytest
import torch
from torch import nn
from worlds import Batches, normal

from fewstep.class_generator import ClassGenerator
from fewstep.denoiser import Denoiser
from fewstep.discriminators import (
    R1,
    Adversary,
    GlobalHead,
    Hinge,
    PairDiscriminator,
    PatchHead,
    PooledAdversary,
    Relativistic,
    SampleDiscriminator,
)
from fewstep.discriminators.discriminator import features
from fewstep.discriminators.sample import feature_matching
from fewstep.distill.adversarial_flow import AdversarialFlow
from fewstep.distill.ddgan import DDGAN, posterior
from fewstep.distill.ladd import LADD
from fewstep.distill.nitro_fusion import NitroFusion
from fewstep.distill.pool import PairPool
from fewstep.distill.rollout import LastStep, Rollout
from fewstep.distill.sana_sprint import SanaSprint
from fewstep.distill.scm import SCM
from fewstep.flow_map import sample_jumps
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.nets.latent import latents_from
from fewstep.nets.unet import UNet
from fewstep.paths import EDM, VP, RectifiedFlow, ResidualShift, Trig
from fewstep.per_sample import sample_each
from fewstep.prediction import X0, U
from fewstep.sampling import Callback, sample
from fewstep.solvers import DDIM, Ancestral, UnitGainAncestral
from fewstep.trig_flow import TrigFlow

FLOW = RectifiedFlow()


def generator(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 3).double(), FLOW, U()), DDIM(), Uniform(), **kwargs)


def grads(loss, *networks):
    """For each network, whether this loss moves it."""

    def moved(network):
        found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
        return any(g is not None and g.abs().max() > 0 for g in found)

    return [moved(n) for n in networks]


# --- denoising diffusion GANs ------------------------------------------------------------------------------------


def coefficients(path, t, s):
    """(of x0, of x_t, of the noise) of a draw of the posterior at times (n,)."""
    one, zero = torch.ones(len(t), 1, dtype=torch.float64), torch.zeros(len(t), 1, dtype=torch.float64)
    torch.manual_seed(0)
    noise = torch.randn_like(zero)

    def drawn(x0, x_t):
        torch.manual_seed(0)
        return posterior(x0, x_t, t, s, path)

    base = drawn(zero, zero)
    return tuple(v[:, 0] for v in (drawn(one, zero) - base, drawn(zero, one) - base, base / noise))


def test_the_posterior_is_ddpms_at_the_times_of_the_paper():
    t = 1e-3 + (1 - 1e-3) * torch.arange(5, dtype=torch.float64) / 4
    t[0] = 0.0  # taken for clean
    path = VP()
    a, _, s = path.schedule(t)
    bar = a**2
    beta = 1 - bar[1:] / bar[:-1]
    torch.testing.assert_close(bar[1:], torch.tensor([0.5217, 0.0787, 0.00343, 4e-5]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(beta, torch.tensor([0.4783, 0.8492, 0.9564, 0.9874]).double(), atol=1e-4, rtol=0)
    c0, ct, noise = coefficients(path, t[1:], t[:-1])
    torch.testing.assert_close(c0, bar[:-1].sqrt() * beta / (1 - bar[1:]), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(ct, (1 - beta).sqrt() * (1 - bar[:-1]) / (1 - bar[1:]), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(noise**2, beta * (1 - bar[:-1]) / (1 - bar[1:]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("path", [VP(), FLOW, EDM()], ids=repr)
def test_a_pair_of_states_has_the_law_of_the_chain(path):
    """Mean, variance and covariance of (x_s, x_t) given x0; the chain's is Cov = (a_t/a_s) s_s^2."""
    times = Uniform()(path, 5)
    t, s = times[:-1], times[1:]
    (at, _, st), (as_, _, ss) = path.schedule(t), path.schedule(s)
    c0, ct, noise = coefficients(path, t, s)
    assert (c0 + ct * at - as_).abs().max() < 1e-12 * as_.max()
    assert (ct**2 * st**2 + noise**2 - ss**2).abs().max() < 1e-12 * ss.max() ** 2
    assert (ct * st**2 - at / as_ * ss**2).abs().max() < 1e-12 * st.max() ** 2


def test_the_posterior_of_an_anchored_path_moves_with_the_anchor():
    path = ResidualShift(steps=4, min_noise=0.2)
    t, s = torch.tensor([4.0, 3.0, 2.0]).double(), torch.tensor([3.0, 2.0, 1.0]).double()
    x0, x_t, y = normal(3, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)
    b_t, b_s = (path.schedule(v)[1][:, None] for v in (t, s))
    found = []
    for anchor, state in ((y, x_t), (None, x_t - b_t * y)):
        torch.manual_seed(0)
        found.append(posterior(x0, state, t, s, path, UnitGainAncestral(), anchor))
    torch.testing.assert_close(found[0], found[1] + b_s * y)


class Known(nn.Module):
    """net(x, t) -> x0 by a function."""

    dim = 1

    def __init__(self, f):
        super().__init__()
        self.f, self.unused = f, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, t, **cond):
        return self.f(x, t) + 0 * self.unused


def gan(net, dim=2, **kwargs):
    student = Generator(Denoiser(net, VP(), X0()), Ancestral(), Uniform(), 4)
    critic = PairDiscriminator([dim], 32, 2).double()
    return DDGAN(generator(), 1000, critic, student=student, **kwargs)


def test_a_generator_that_draws_from_the_exact_posterior_leaves_nothing_to_tell():
    """x0 ~ N(.7, .3^2): with exact draws of p(x0 | x_t) generated pairs have the covariance of real ones, with means they have not."""
    m, c, path = 0.7, 0.3, VP()

    def exact(x, t, size=1.0):
        a, _, s = (v[:, None] for v in path.schedule(t))
        v = a**2 * c**2 + s**2
        return m + a * c**2 / v * (x - a * m) + size * c * s / v.sqrt() * torch.randn_like(x)

    torch.manual_seed(0)
    x0 = m + c * torch.randn(400_000, 1, dtype=torch.float64)
    for size, same in ((1.0, True), (0.0, False)):
        model = gan(Known(lambda x, t: exact(x, t, size)), 1)
        drawn = model.drawn({"x0": x0})
        with torch.no_grad():
            reached = model.reach(drawn, {})
            real, own = (model.down(v, reached, drawn)[:, 0] for v in (x0, reached.estimate.x0))
        gaps = []
        for t in reached.t.unique():
            here = reached.t == t
            a, b = (torch.cov(torch.stack([v[here], reached.x[here, 0]])) for v in (real, own))
            gaps.append((a - b).abs().max().item())
            assert real[here].mean() - own[here].mean() == pytest.approx(0, abs=0.02)
        assert (max(gaps) < 0.02) == same, gaps


def test_each_network_of_the_gan_learns_from_its_own_terms():
    for kwargs in ({}, {"adversarial": Relativistic()}):
        model = gan(MLP(2, 16, 3, latent=4).double(), penalty=R1(0.1, every=3), **kwargs)
        terms = model.loss({"x0": normal(32, 2)})
        assert set(terms) == {"adversarial", "critic", "penalty"}
        assert grads(terms["adversarial"], model.student, model.discriminator) == [True, False]
        for name in ("critic", "penalty"):
            assert grads(terms[name], model.student, model.discriminator) == [False, True]
        model.done = 1
        assert set(model.loss({"x0": normal(32, 2)})) == {"adversarial", "critic"}


def test_the_penalty_is_the_slope_in_the_cleaner_state_alone():
    class Product(nn.Module):
        """C = w x_s.x_t, whose slope in x_s is w x_t."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

        def forward(self, x_s, x_t, t):
            return self.w * (x_s * x_t).sum(1, keepdim=True)

    model = gan(MLP(2, 16, 3, latent=4).double(), penalty=R1(0.1, every=4))
    model.critics["discriminator"] = Product()
    drawn = model.drawn({"x0": normal(32, 2)})
    with torch.no_grad():
        reached = model.reach(drawn, {})
    found = model.critic_terms(reached, drawn, {})["penalty"]
    torch.testing.assert_close(found, 4 * 0.05 * 1.3**2 * reached.x.square().sum(1).mean())


def test_a_trained_discriminator_looks_at_both_states():
    """Generated x0 have the law of data but do not know x_t: only pairs tell, and real ones shuffled look generated."""
    torch.manual_seed(0)
    model = gan(Known(lambda x, t: 2 * torch.randn_like(x).sign() + 0.2 * torch.randn_like(x)), penalty=R1(0.02))
    data = lambda n: {"x0": 2 * torch.randn(n, 2).double().sign() + 0.2 * torch.randn(n, 2)}
    optimizer = torch.optim.Adam(model.discriminator.parameters(), 2e-3)
    for _ in range(150):
        terms = model.loss(data(128))
        optimizer.zero_grad()
        (terms["critic"] + terms["penalty"]).backward()
        optimizer.step()
    drawn = model.drawn(data(4000))
    with torch.no_grad():
        reached = model.reach(drawn, {})
        order = torch.cat([(reached.t == t).nonzero()[:, 0].roll(1) for t in reached.t.unique()])
        where = torch.cat([(reached.t == t).nonzero()[:, 0] for t in reached.t.unique()])
        other = reached.x.clone()
        other[where] = reached.x[order]  # of another sample at the same time
        real = model.down(drawn.x0, reached, drawn)
        losses = [
            nn.functional.softplus(-model.judge(real, r, drawn)).mean().item()
            for r in (reached, reached._replace(x=other))
        ]
    assert losses[1] > losses[0] + 0.3, losses


def test_students_of_the_gan_are_sampled_by_the_posterior_they_were_trained_with():
    model = gan(MLP(2, 16, 3, latent=4).double())
    model.student.solver = Ancestral()
    noise, path = normal(16, 2), model.student.denoiser.path
    torch.manual_seed(1)
    whole = model.student.generate(noise)
    torch.manual_seed(1)
    x, times = path.start(noise), model.student.grid(path, 4)
    for t, s in pairwise(times):
        t, s = t.expand(16), s.expand(16)
        x = posterior(model.student.denoiser(x, t).x0, x, t, s, path)
    torch.testing.assert_close(x, whole)
    assert model.student.steps == 4
    assert model.student.solver == Ancestral()


# --- latents -----------------------------------------------------------------------------------------------------


def nets():
    torch.manual_seed(0)
    unet = UNet(1, 8, (1,), 1, (), latent=4)
    nn.init.normal_(unet.last.weight)
    for level in unet.down:
        nn.init.normal_(level[0].conv2.weight)
    return [(MLP(2, 16, 3, latent=4), torch.randn(6, 2)), (unet, torch.randn(6, 1, 4, 4))]


def test_networks_with_a_latent_draw_one_at_every_call_unless_it_is_given():
    for net, x in nets():
        t = torch.full((6,), 0.5)
        z = torch.randn(6, 4)
        assert not torch.equal(net(x, t), net(x, t))
        torch.testing.assert_close(net(x, t, z=z), net(x, t, z=3 * z))  # of unit root mean square
        assert (net(x, t, z=z) - net(x, t, z=z.roll(1, 0))).abs().max() > 1e-3
        for seed in (3, 4):
            torch.manual_seed(seed)
            one = net(x, t)
            torch.manual_seed(seed)
            torch.testing.assert_close(net(x, t, z=torch.randn(6, 4)), one)
        with latents_from(torch.Generator().manual_seed(5)):
            one = net(x, t)
        torch.testing.assert_close(net(x, t, z=torch.randn(6, 4, generator=torch.Generator().manual_seed(5))), one)
    with pytest.raises(ValueError, match=r"told \['z'\]"):
        MLP(2)(torch.randn(3, 2), torch.rand(3), z=torch.randn(3, 4))
    assert not any("mapping" in k for k in MLP(2).state_dict())


@pytest.mark.parametrize("callbacks", [(), (Callback(),)])
def test_a_generator_of_samples_is_one_of_their_latents_too(callbacks):
    net = MLP(2, 16, 3, latent=4).double()
    model, noise = Generator(Denoiser(net, VP(), X0()), DDIM(), Uniform(), 3), normal(8, 2)
    drawn, draw = [], net.mapping.draw
    net.mapping.draw = lambda x: drawn.append(draw(x)) or drawn[-1]

    def samples(seed, source=None):
        torch.manual_seed(seed)
        g = None if source is None else torch.Generator().manual_seed(source)
        return sample(model.denoiser.bind(), noise, VP(), DDIM(), Uniform()(VP(), 3), None, g, callbacks)

    assert torch.equal(samples(0, 7), samples(1, 7))
    assert torch.equal(samples(0), samples(0))
    assert not torch.equal(samples(0, 7), samples(0, 8))
    assert len({float(z.sum()) for z in drawn[:3]}) == 3  # one for each step


def test_a_generator_is_one_of_latents_at_per_sample_times_and_of_jumps_too():
    net, noise, grid = MLP(2, 16, 3, latent=4).double(), normal(8, 2), Uniform()(VP(), 3)
    denoise = Denoiser(net, VP(), X0()).bind()
    ways = (
        lambda g: sample_each(denoise, noise, VP(), DDIM(), grid.expand(8, -1), generator=g),
        lambda g: sample_jumps(lambda x, t, s: denoise(x, t).x0, noise, VP(), grid, generator=g),
    )
    for way in ways:
        one, again, other = (way(torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_a_pair_discriminator_fits_states_of_any_number_of_axes_and_judges_each_alone():
    for shape in ((3,), (2, 16), (2, 8, 12), (1, 8, 8, 8)):
        critic = PairDiscriminator(shape, 8, 2, classes=3)
        x_s, x_t, t, label = torch.randn(4, *shape), torch.randn(4, *shape), torch.rand(4), torch.tensor([0, 1, 2, 3])
        logits = critic(x_s, x_t, t, label)
        assert logits.shape == (4, 1)
        torch.testing.assert_close(critic(x_s[1:2], x_t[1:2], t[1:2], label[1:2]), logits[1:2])
        for k in range(4):
            given = [x_s, x_t, t, label]
            given[k] = given[k].flip(0)
            assert (critic(*given) - logits).abs().max() > 1e-6
        with pytest.raises(ValueError, match="3 classes was given no label"):
            critic(x_s, x_t, t)
    with pytest.raises(ValueError, match="1 to 4 axes"):
        PairDiscriminator([])


# --- pools of heads ----------------------------------------------------------------------------------------------

LOCAL, GLOBAL = PatchHead(8, scales=(1, 2)), GlobalHead(8)


def images(classes=4):
    torch.manual_seed(0)
    net = UNet(1, 8, (1, 2), 1, (), classes=classes)
    for level in net.down:
        nn.init.normal_(level[0].conv2.weight)
    return ClassGenerator(Denoiser(net, FLOW, U()), DDIM(), Uniform(), shape=(1, 8, 8))


def pooled(**kwargs):
    return PooledAdversary(["down.0.0", "down.1.0"], LOCAL, **kwargs)


def test_each_sample_is_judged_by_drawn_heads_of_its_noise_level_each_weighing_as_much():
    g, t = images(), torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
    pool = pooled(groups=3, size=5, drawn=2, unconditional=0.4).build(g)
    x, label = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    assert pool.group(t, FLOW).tolist() == [0, 0, 0, 1, 2, 2]
    assert len(pool.heads) == 5 * 3 * 2
    told, blind = (features(g.denoiser, pool.layers, x, t, {"label": v}) for v in (label, torch.full((6,), 4)))
    seen = set()
    for seed in range(12):
        pool.draw(torch.Generator().manual_seed(seed))
        seen |= set(pool.slots)
        logits, wanted = pool(g.denoiser, x, t, {"label": label}), []
        for slot in pool.slots:
            for layer, f in enumerate(blind if slot < 2 else told):
                rows = [pool.heads[(slot * 3 + k) * 2 + layer](f[i : i + 1]) for i, k in enumerate([0, 0, 0, 1, 2, 2])]
                wanted.append(torch.cat(rows).mean(1))
        torch.testing.assert_close(logits.mean(1), torch.stack(wanted).mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits.reshape(6, 4, -1).mean(2), torch.stack(wanted, 1), rtol=1e-4, atol=1e-5)
    assert seen == set(range(5))
    kinds = [type(h).__name__ for h in pool.heads[::6]]
    assert kinds == ["_Patches", "_Global"] * 2 + ["_Patches"]


def test_heads_without_conditions_do_not_see_the_label():
    g, x, t = images(), torch.randn(4, 1, 8, 8), torch.rand(4)
    for share, same in ((1.0, True), (0.0, False)):
        pool = pooled(size=2, drawn=2, unconditional=share).build(g)
        a, b = (pool(g.denoiser, x, t, {"label": v}) for v in (torch.arange(4), torch.arange(4).flip(0)))
        assert torch.equal(a, b) == same
    assert PooledAdversary(["rest.0"], GLOBAL).build(generator()).blind == 0  # nothing to leave out
    for kwargs in ({"drawn": 17}, {"groups": 0}, {"renewal": 1.5}, {"unconditional": -1}):
        with pytest.raises(ValueError, match="groups >= 1 and 1 <= drawn <= size|are shares"):
            pooled(**kwargs)


def test_lifetimes_of_heads_are_geometric():
    pool = PooledAdversary(["rest.0"], GLOBAL, more=(), groups=10, size=40).build(generator())
    g, lives, p = torch.Generator().manual_seed(0), [], 0.05
    for _ in range(800):
        before = pool.age.clone()
        made = pool.renew(p, g)
        lives += (before[pool.age == 0] + 1).tolist()
        assert len(made) == (pool.age == 0).sum()
    lives, ages = torch.tensor(lives).double(), pool.age.double()
    assert lives.mean() == pytest.approx(1 / p, rel=0.04)
    assert lives.var().sqrt() == pytest.approx((1 - p) ** 0.5 / p, rel=0.06)
    for k in (1, 5, 20, 60):  # P(life > k) = (1 - p)^k
        assert (lives > k).double().mean() == pytest.approx((1 - p) ** k, abs=0.015)
    assert ages.mean() == pytest.approx((1 - p) / p, rel=0.15)


def nitro(seed=0, **kwargs):
    kwargs = {"groups": 2, "size": 4, "drawn": 2, "renewal": 0.2} | kwargs
    adversary = PooledAdversary(["rest.0"], GLOBAL, more=(), **kwargs)
    torch.manual_seed(seed)
    model = Generator(Denoiser(MLP(2, 16, 3), FLOW, U()), DDIM(), Uniform())
    return NitroFusion(model, 12, adversary, critic_optimizer=lambda p: torch.optim.Adam(p, 1e-2))


def test_a_renewed_head_forgets_all_and_one_that_is_not_drawn_changes_nothing(tmp_path):
    class Watch(L.Callback):
        kinds = {"renewed": 0, "learnt": 0, "rested": 0}

        def on_train_batch_start(self, trainer, model, batch, batch_idx):
            self.before = [copy.deepcopy(h.state_dict()) for h in model.heads.heads]
            self.state = self.held(model)

        def held(self, model):
            state = model.optimizers()[1].optimizer.state
            return [
                [state[p]["step"].item() if p in state else None for p in h.parameters()] for h in model.heads.heads
            ]

        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            pool, state = model.heads, self.held(model)
            for i, head in enumerate(pool.heads):
                same = all(torch.equal(v, self.before[i][k]) for k, v in head.state_dict().items())
                drawn = i // 2 in pool.slots
                if pool.age[i] == 0:
                    assert not same
                    assert set(state[i]) == {None}
                elif drawn:
                    assert not same
                    assert state[i] == [(n or 0) + 1 for n in self.state[i]]
                else:
                    assert same
                    assert state[i] == self.state[i]
                self.kinds["renewed" if pool.age[i] == 0 else "learnt" if drawn else "rested"] += 1

    watch = Watch()
    L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watch],
    ).fit(nitro(), Batches())  # fmt: skip
    assert min(watch.kinds.values()) > 5


def test_ranks_draw_and_renew_the_same_heads():
    found = []
    for seed in (1, 2):
        model = nitro(0, renewal=0.5)
        optimizers = model.configure_optimizers()
        model.optimizers = lambda: [type("", (), {"optimizer": o}) for o in optimizers]
        torch.manual_seed(seed)
        model.heads.draw(model.shared(1))
        model.after_step()
        found.append([torch.tensor(model.heads.slots), *model.heads.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_pool_of_one_head_that_stays_is_ladd():
    found = []
    for cls, kind, kwargs in (
        (LADD, Adversary, {}),
        (NitroFusion, PooledAdversary, {"more": (), "groups": 1, "size": 1, "drawn": 1, "renewal": 0.0}),
    ):
        torch.manual_seed(0)
        model = cls(generator(), 10, kind(["rest.0", "rest.1"], GLOBAL, penalty=R1(0.1), **kwargs))
        model.critics.double()
        torch.manual_seed(1)
        terms = model.loss({"x0": normal(32, 2)})
        sum(terms.values()).backward()
        found.append([*terms.values(), *(p.grad for p in (*model.student.parameters(), *model.heads.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


# --- sCM with an adversary ---------------------------------------------------------------------------------------


def trig(seed=0):
    torch.manual_seed(seed)
    net = MLP(2, 16, 3, time_scale=1.0).double()
    return Generator(Denoiser(net, Trig(0.5), TrigFlow(0.5)), DDIM(), Uniform())


def sprint(**kwargs):
    adversary = Adversary(["rest.0"], GLOBAL, Hinge(), weight=0.5)
    model = SanaSprint(trig(), 10, adversary, student=trig(3), **kwargs)
    model.critics.double()
    return model


def test_the_hybrid_adds_its_adversary_to_scm_bit_for_bit():
    batch = {"x0": normal(32, 2)}
    plain, model = SCM(trig(), 10, student=trig(3)), sprint(scm=0.25)
    plain.done = model.done = 7
    drawn = model.drawn(batch)
    reached = model.reach(drawn, {})
    torch.manual_seed(5)
    wanted = plain.loss(batch)["scm"]
    torch.manual_seed(5)
    terms = model.student_terms(reached, drawn, batch)
    assert set(terms) == {"scm", "adversarial"}
    assert torch.equal(terms["scm"], 0.25 * wanted)
    for a, b in zip(plain.student.parameters(), model.student.parameters(), strict=True):
        one, other = (
            torch.autograd.grad(wanted, a, retain_graph=True),
            torch.autograd.grad(terms["scm"], b, retain_graph=True),
        )
        assert torch.equal(0.25 * one[0], other[0])
    assert grads(terms["adversarial"], model.student, model.weight) == [True, False]
    assert grads(terms["scm"], model.student, model.weight) == [True, True]
    whole = model.loss(batch)
    assert set(whole) == {"scm", "adversarial", "critic"}
    assert grads(whole["critic"], model.student, model.weight, model.heads) == [False, False, True]
    for name in ("scm", "adversarial"):
        assert grads(whole[name], model.student, model.heads) == [True, False]
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_adversary_of_the_hybrid_sees_the_student_at_noised_data_and_at_pure_noise():
    for share in (0.0, 0.3, 1.0):
        model = sprint(largest=share)
        drawn = model.drawn({"x0": normal(4000, 2)})
        with torch.no_grad():
            reached = model.reach(drawn, {})
        pure = reached.t == Trig(0.5).t_max
        assert pure.double().mean() == pytest.approx(share, abs=0.03)
        a, _, s = Trig(0.5).schedule(reached.t)
        noise = (reached.x - a[:, None] * drawn.x0) / s[:, None]
        assert noise.std() == pytest.approx(1.0, abs=0.03)
        torch.testing.assert_close(reached.estimate.x0, model.student.denoiser(reached.x, reached.t).x0)
    with pytest.raises(ValueError, match="not 1.5"):
        sprint(largest=1.5)


def test_the_hybrid_trains_the_weights_of_scm_beside_the_student():
    model = sprint()
    own, heads = model.configure_optimizers()
    held = {id(p) for g in own.param_groups for p in g["params"]}
    assert held == {id(p) for n in (model.student, model.weight) for p in n.parameters()}
    assert {id(p) for g in heads.param_groups for p in g["params"]} == {id(p) for p in model.heads.parameters()}


# --- adversarial flow matching -----------------------------------------------------------------------------------


class Layers(nn.Module):
    """x -> [w x, logits v.x]."""

    def __init__(self, w, v):
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.tensor(k, dtype=torch.float64)) for k in (w, v))

    def forward(self, x):
        return [self.w * x, (self.v * x).sum(1, keepdim=True)]


def turbo(**kwargs):
    kwargs = {"discriminators": [Layers(0.5, 0.3), Layers(2.0, -0.7)]} | kwargs
    return AdversarialFlow(generator(), 10, **kwargs)


def test_terms_of_adversarial_flows_by_hand():
    model, x0 = turbo(features=3.0, reconstruction=7.0, penalty=R1(0.2)), normal(16, 2)
    torch.manual_seed(1)
    terms = model.loss({"x0": x0})
    torch.manual_seed(1)
    own = model.student.generate(torch.randn(16, 2, dtype=torch.float64), steps=2, solver=DDIM())
    gap = (x0 - own).abs().mean()
    torch.testing.assert_close(terms["reconstruction"], 7 * gap)
    torch.testing.assert_close(terms["features"], 3 * (0.5 + 2.0) * gap)
    real, fake = (torch.stack([k * x.sum(1) for k in (0.3, -0.7)]) for x in (x0, own))
    torch.testing.assert_close(terms["adversarial"], (fake - 1).square().mean(1).sum())
    torch.testing.assert_close(terms["critic"], ((real - 1).square() + fake.square()).mean(1).sum())
    torch.testing.assert_close(terms["penalty"], terms["critic"].new_tensor(0.1 * 2 * (0.3**2 + 0.7**2)))
    critics = model.critics["discriminators"]
    for name in ("adversarial", "features", "reconstruction"):
        assert grads(terms[name], model.student, critics) == [True, False], name
    for name in ("critic", "penalty"):
        assert grads(terms[name], model.student, critics) == [False, True], name


def test_feature_matching_is_the_sum_of_mean_distances_and_leaves_real_layers_alone():
    shapes = ((4, 3, 5), (4, 2))
    real, fake = ([normal(*shape, seed=s).requires_grad_(True) for shape in shapes] for s in (0, 1))
    value = feature_matching(real, fake)
    wanted = sum((r - f).abs().reshape(4, -1).mean(1) for r, f in zip(real, fake, strict=True))
    assert torch.equal(value, wanted)
    value.sum().backward()
    assert all(r.grad is None for r in real)
    for r, f in zip(real, fake, strict=True):
        torch.testing.assert_close(f.grad, (f - r).sign().detach() / f[0].numel())


def test_gradients_of_adversarial_flows_reach_the_first_step():
    """Of x0' with respect to the start: through all steps it is the chain rule's, through the last alone nothing."""
    for through, steps in ((1000, 4), (0, 4)):
        model = turbo(steps=steps, rollout=Rollout(LastStep(), through))
        noise = normal(8, 2).requires_grad_(True)
        x0 = model.rollout(model.student, noise, {}).estimate.x0
        found = torch.autograd.grad(x0.sum(), noise, allow_unused=True)[0]
        whole = torch.autograd.grad(model.student.generate(noise, steps=steps, solver=DDIM()).sum(), noise)[0]
        if through:
            torch.testing.assert_close(found, whole)
        else:
            assert found is None or found.abs().max() == 0
    times = []
    model = turbo(steps=4)
    model.student.denoiser.net.time.register_forward_hook(
        lambda m, args, out: (out.retain_grad(), times.append(out))[1]
    )
    sum(v for k, v in model.loss({"x0": normal(8, 2)}).items() if k != "critic").backward()
    assert len(times) == 4
    assert all(out.grad is not None and out.grad.abs().max() > 0 for out in times)


def test_pairs_lead_from_the_noise_they_belong_to():
    model = turbo(steps=1, pool=PairPool(size=64, fresh=4))
    with torch.no_grad():  # a perfect student of a teacher of one step
        terms = model.loss({"x0": torch.full((32, 2), 50.0, dtype=torch.float64)})
    assert terms["reconstruction"] < 1e-12
    assert terms["features"] < 1e-12
    stored = {"noise": normal(8, 2), "target": normal(8, 2, seed=1)}
    torch.testing.assert_close(
        model.loss(stored)["reconstruction"],
        45 * (model.student.generate(stored["noise"]) - stored["target"]).abs().mean(),
    )


def test_discriminators_of_samples_show_their_layers_at_every_scale():
    for shape in ((3,), (2, 16), (2, 8, 12), (1, 8, 8, 8)):
        for scale in (1, 2):
            x, critic = torch.randn(3, *shape), SampleDiscriminator(shape, 8, 3, scale)
            *layers, logits = critic(x)
            assert len(layers) == 3
            assert all(f.shape[:2] == (3, 8) for f in layers)
            assert logits.ndim == 2
            assert logits.shape[1] == (1 if len(shape) == 1 else layers[-1][0, 0].numel())
    with pytest.raises(ValueError, match="1 to 4 axes"):
        SampleDiscriminator([])


# --- clean samples by another network ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Adversary, PooledAdversary])
def test_another_network_judges_samples_as_they_are(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.SiLU(), nn.Linear(5, 3)).double()
    cls = LADD if kind is Adversary else NitroFusion
    adversary = kind(["0"], GLOBAL, penalty=R1(0.1), **({} if kind is Adversary else {"more": (), "size": 4}))
    model = cls(generator(), 10, adversary, network=net, distillation=1.0)
    model.critics.double()
    seen = []
    net[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    terms = model.loss({"x0": normal(16, 2)})
    assert set(terms) == {"adversarial", "distill", "critic", "penalty"}
    own, real, fake, slope = seen
    assert torch.equal(real, normal(16, 2))
    assert torch.equal(slope, real)
    assert torch.equal(fake, own)  # the student's sample, both times
    assert grads(terms["adversarial"], model.student, model.heads) == [True, False]
    assert grads(terms["critic"], model.student, model.heads) == [False, True]
    assert not any(p.requires_grad for p in net.parameters())
    assert not any("clean" in k for k in model.state_dict())
