"""GALIP's adversary: its terms by hand, its penalty by differences, whose gradient is whose, and that it learns what matches."""

import pytest
import torch
from torch import nn
from worlds import normal

from fewstep.class_generator import ClassGenerator
from fewstep.denoiser import Denoiser
from fewstep.discriminators import R1, CleanBackbone, GlobalHead, MatchingAdversary, PatchHead, Relativistic
from fewstep.discriminators.adversary import Judge
from fewstep.discriminators.discriminator import features
from fewstep.discriminators.losses import per_sample
from fewstep.discriminators.matching import joined
from fewstep.distill.ladd import LADD
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM

CLASSES = 3


class Eye(nn.Module):
    """A network of clean samples: features, then an embedding of as many numbers as there are classes."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(2, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.inner(x)))


def model(seed=0, **kwargs):
    torch.manual_seed(seed)
    teacher = ClassGenerator(
        Denoiser(MLP(2, 16, 2, classes=CLASSES).double(), RectifiedFlow(), U()), DDIM(), Uniform(), 4, (2,), CLASSES
    )
    args = {"layers": ["inner"], "head": GlobalHead(width=8), "classes": CLASSES} | kwargs
    return LADD(teacher, 10, adversary=MatchingAdversary(**args), network=Eye().double()).double()


def parts(seed=0, n=16, **kwargs):
    found = model(seed, **kwargs)
    cond = {"label": torch.arange(n) % CLASSES}
    return found.adversary, found.heads, found.backbone, normal(n, 2), normal(n, 2, seed=1), torch.zeros(n), cond


def test_the_terms_are_those_of_the_paper():
    adversary, critic, backbone, fake, real, t, cond = parts()
    e = nn.functional.one_hot(cond["label"], CLASSES).double()

    def logit(x, e):
        return critic.heads[0](torch.cat([backbone.net.inner(x), e], 1))[:, 0]

    terms = adversary.critic_at(Judge(critic, backbone, t, cond), fake, real)
    wanted = torch.relu(1 - logit(real, e))
    wanted = wanted + (torch.relu(1 + logit(fake, e)) + torch.relu(1 + logit(real, e.roll(1, 0)))) / 2
    torch.testing.assert_close(terms["critic"], torch.where((e == e.roll(1, 0)).all(1), terms["critic"], wanted))
    first = int(
        (cond["label"][0] == cond["label"][-1]).item()
    )  # 16 labels of three in turn: the first pair has one label
    both = torch.relu(1 - logit(real, e)) + torch.relu(1 + logit(fake, e))
    assert first == 1
    torch.testing.assert_close(terms["critic"][0], both[0])
    own = adversary.student_at(Judge(critic, backbone, t, cond), fake, real)
    torch.testing.assert_close(own, -logit(fake, e))


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_the_penalty_is_the_sixth_power_of_the_gradient_in_features_and_condition(factor):
    adversary, critic, backbone, fake, real, t, cond = parts(gradient=factor)
    found = adversary.critic_at(Judge(critic, backbone, t, cond), fake, real)["penalty"]
    with torch.no_grad():
        inputs = torch.cat([backbone.net.inner(real), adversary.numbers(cond, real)], 1)
        h = 1e-6
        steps = h * torch.eye(inputs.shape[1], dtype=torch.float64)
        slope = torch.stack(
            [(critic.heads[0](inputs + d) - critic.heads[0](inputs - d))[:, 0] / (2 * h) for d in steps], 1
        )
    torch.testing.assert_close(found.detach(), factor * slope.norm(dim=1) ** 6, rtol=1e-6, atol=1e-12)
    assert (found > 0).all()
    assert "penalty" not in parts(gradient=0.0)[0].critic_at(Judge(critic, backbone, t, cond), fake, real)


def test_the_similarity_draws_the_embedding_to_the_condition():
    plain, critic, backbone, fake, real, t, cond = parts()
    asked = parts(similarity=4.0, embedding="last")[0]
    fake.requires_grad_()
    gap = asked.student_at(Judge(critic, backbone, t, cond), fake, real)
    gap = gap - plain.student_at(Judge(critic, backbone, t, cond), fake, real)
    e = nn.functional.one_hot(cond["label"], CLASSES).double()
    cosine = nn.functional.cosine_similarity(backbone.net(fake), e)
    torch.testing.assert_close(gap, -4 * cosine)
    (step,) = torch.autograd.grad(gap.sum(), fake)
    closer = nn.functional.cosine_similarity(backbone.net(fake - 1e-3 * step), e)
    assert (closer >= cosine).all()


def test_student_and_critic_learn_by_their_own_terms_alone():
    found = model(similarity=1.0, embedding="last")
    terms = found.loss({"x0": normal(12, 2), "label": torch.arange(12) % CLASSES})
    assert set(terms) == {"adversarial", "critic", "penalty"}
    student, critic = ([p for p in m.parameters() if p.requires_grad] for m in (found.student, found.critics))
    for name, own in (("adversarial", student), ("critic", critic), ("penalty", critic)):
        grads = torch.autograd.grad(terms[name], [*student, *critic], allow_unused=True, retain_graph=True)
        reached = {id(p) for p, g in zip([*student, *critic], grads, strict=True) if g is not None and g.any()}
        assert reached
        assert reached <= {id(p) for p in own}
    assert all(not p.requires_grad for p in found.backbone.parameters())


def test_a_trained_critic_tells_samples_that_match_from_those_that_do_not():
    """One mode for each class: the critic ends with the highest logits for the mode that was asked for."""
    adversary, critic, backbone, *_ = parts()
    modes = 2 * torch.tensor([[1.0, 0.0], [-0.5, 0.87], [-0.5, -0.87]], dtype=torch.float64)
    optimizer, g = torch.optim.Adam(critic.parameters(), 1e-2), torch.Generator().manual_seed(0)
    for _ in range(300):
        label = torch.randint(CLASSES, (64,), generator=g)
        real = modes[label] + 0.1 * torch.randn(64, 2, dtype=torch.float64, generator=g)
        fake = 3 * torch.randn(64, 2, dtype=torch.float64, generator=g)
        terms = adversary.critic_at(Judge(critic, backbone, torch.zeros(64), {"label": label}), fake, real)
        optimizer.zero_grad()
        sum(v.mean() for v in terms.values()).backward()
        optimizer.step()
    with torch.no_grad():
        asked = [critic(backbone, modes, torch.zeros(3), {"label": torch.full((3,), k)})[:, 0] for k in range(CLASSES)]
    logits = torch.stack(asked)  # (asked for, shown)
    assert logits.argmax(1).tolist() == [0, 1, 2]
    assert (logits.diagonal() - (logits - 1e9 * torch.eye(3)).amax(1) > 0.5).all()


def test_conditions_join_features_at_every_position():
    f, e = normal(4, 3, 5, 6), normal(4, 2)
    both = joined(f, e)
    assert both.shape == (4, 5, 5, 6)
    assert torch.equal(both[:, :3], f)
    assert torch.equal(both[:, 3:, 2, 4], e)
    net = nn.Sequential(nn.Conv2d(1, 3, 3))
    backbone = CleanBackbone(net)
    found = features(backbone, ["0"], torch.zeros(2, 1, 8, 8), torch.zeros(2), {})
    head = PatchHead(width=8).build(joined(found[0], torch.zeros(2, 7)))
    assert head(joined(found[0], torch.ones(2, 7))).shape == (2, 36)


def test_what_cannot_be_matched_is_named():
    adversary, critic, backbone, fake, real, t, _ = parts()
    with pytest.raises(ValueError, match="no condition 'label'"):
        adversary.student_at(Judge(critic, backbone, t, {}), fake, real)
    with pytest.raises(ValueError, match=r"must be \(B, E\)"):
        MatchingAdversary(["inner"]).numbers({"label": torch.arange(3)}, real)
    with pytest.raises(ValueError, match="needs embedding"):
        MatchingAdversary(["inner"], similarity=1.0)
    for wrong in ({"penalty": R1()}, {"loss": Relativistic()}):
        with pytest.raises(ValueError, match="of its own"):
            MatchingAdversary(["inner"], **wrong)
    assert per_sample(critic(backbone, real, t, {"label": torch.zeros(16, dtype=torch.long)})).shape == (16,)
