"""SCott's adversary: the distance is consistency distillation's, and each network learns from its own terms."""

import torch
from worlds import normal

from fewstep.class_generator import ClassGenerator
from fewstep.denoiser import Denoiser
from fewstep.discriminators import R1, Adversary, GlobalHead
from fewstep.distill.consistency_gan import ConsistencyGAN
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.intervals import Adjacent
from fewstep.distill.teacher_step import TeacherStep
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.solvers import DDIM, Ancestral

FLOW = RectifiedFlow()
ADVERSARY = Adversary(["rest.0"], GlobalHead(width=8), penalty=R1(0.1), weight=0.3)


def teacher(seed=0):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 2).double(), FLOW, U()), DDIM(), Uniform(), 4)


def scott(**kwargs):
    step = TeacherStep(Ancestral(1.0), 3)
    model = ConsistencyGAN(teacher(), 10, ADVERSARY, intervals=Adjacent(8), step=step, student=teacher(1), **kwargs)
    model.critics.double()
    return model


def gradients(loss, network):
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
    return sum(float(g.abs().sum()) for g in found if g is not None)


def test_the_distance_is_that_of_consistency_distillation_bit_for_bit():
    model = scott()
    drawn = model.drawn({"x0": normal(64, 2)})
    torch.manual_seed(3)
    wanted = model.compare(*model.states(drawn.x0, {}, None, drawn.w), {}, None).mean()
    torch.manual_seed(3)
    assert torch.equal(model.student_terms(model.reach(drawn, {}), drawn, {})["consistency"], wanted)


def test_the_adversary_compares_the_students_ends_with_the_data():
    model, seen = scott(), []
    model.adversary.__dict__["noised"] = lambda x0, t, path, y: seen.append(x0) or x0
    drawn = model.drawn({"x0": normal(64, 2)})
    reached = model.reach(drawn, {})
    model.critic_terms(reached, drawn, {})
    own, real = seen[1], seen[0]
    assert torch.equal(real, drawn.x0)
    assert torch.equal(own, model.student.denoiser(reached.x, reached.t).x0)
    del model.adversary.__dict__["noised"]


def test_each_network_learns_from_its_own_terms():
    model = scott(mu=0.0)
    drawn = model.drawn({"x0": normal(32, 2)})
    reached = model.reach(drawn, {})
    terms = model.student_terms(reached, drawn, {})
    assert all(gradients(term, model.student) > 0 for term in terms.values())
    assert not reached.wanted.requires_grad
    assert set(model.loss({"x0": normal(32, 2)})) == {"consistency", "adversarial", "critic", "penalty"}
    model.loss({"x0": normal(32, 2)})["critic"].backward()
    assert all(p.grad is None for p in model.student.parameters())
    assert all(p.grad is not None for p in model.heads.parameters())


def test_a_student_that_is_told_w_is_judged_by_a_teacher_that_is_not():
    torch.manual_seed(0)
    net = MLP(2, 16, 2, classes=3)
    guided = ClassGenerator(Denoiser(net, FLOW, U()), DDIM(), Uniform(), shape=(2,))
    model = ConsistencyGAN(guided, 10, ADVERSARY, guidance=TeacherGuidance(1.0, 3.0, told=True))
    terms = model.loss({"x0": normal(16, 2).float(), "label": torch.arange(16) % 3})
    assert all(v.isfinite() for v in terms.values())
