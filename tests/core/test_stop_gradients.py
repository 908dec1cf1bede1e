"""Where gradients must stop: of every loss only what learns, and nothing else has a graph at all."""

import pytest
import torch
from torch import nn
from worlds import normal

from fewstep.denoiser import Denoiser
from fewstep.discriminators import (
    R1,
    Adversary,
    ApproximateR1,
    CleanBackbone,
    GlobalHead,
    PairDiscriminator,
    Relativistic,
)
from fewstep.discriminators.adversary import Judge
from fewstep.discriminators.sample import SampleDiscriminator
from fewstep.distances import SquaredL2
from fewstep.distill.adversarial_flow import AdversarialFlow
from fewstep.distill.asd import ASD
from fewstep.distill.boot import BOOT, boot_loss
from fewstep.distill.compression import Compression
from fewstep.distill.ctm import CTM
from fewstep.distill.ddgan import DDGAN
from fewstep.distill.disback import DisBack
from fewstep.distill.dmd import DMD
from fewstep.distill.f_distill import FDistill, ForwardKL, Ratio, normalised
from fewstep.distill.guidance import TeacherGuidance
from fewstep.distill.guided import GuidedDistillation
from fewstep.distill.hybrid_pool import HybridPool
from fewstep.distill.insta_revive import InstaRevive
from fewstep.distill.key_points import KeyPoints
from fewstep.distill.ladd import LADD
from fewstep.distill.mean_flow import MeanFlow
from fewstep.distill.pool import PairPool
from fewstep.distill.progressive import Halving, ProgressiveDistillation
from fewstep.distill.rectified_diffusion import PhasedRectifiedDiffusion
from fewstep.distill.redress import Redress
from fewstep.distill.rollout import LastStep, Reached, Rollout
from fewstep.distill.scm import scm_loss
from fewstep.distill.score_gradient import ByTeacherError
from fewstep.distill.shortcut import shortcut_target
from fewstep.distill.sid import SIM, SiD, SquaredScore, sid_loss, sim_loss
from fewstep.distill.slimflow import guided_loss
from fewstep.distill.split_mean_flow import split_target
from fewstep.distill.tad_sr import TADSR
from fewstep.distill.target import Target
from fewstep.distill.teacher_features import TeacherFeatures
from fewstep.distill.teacher_step import TeacherStep
from fewstep.distill.trajectory import TrajectoryRegression
from fewstep.distill.uni_instruct import uni_instruct_loss
from fewstep.distill.velocity import OfTeacher
from fewstep.estimate import Estimate
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.preference.distillation_dpo import DistillationDPO
from fewstep.preference.experience import Experience
from fewstep.preference.find import FIND
from fewstep.preference.mix_grpo import MixGRPO, Window
from fewstep.preference.nct import NCT, Nearest
from fewstep.preference.pso import PSO, Offline, OfflineRanked, Online
from fewstep.preference.reward_feedback import RewardFeedback
from fewstep.preference.reward_instruct import RewardInstruct
from fewstep.preference.rewards import Linear
from fewstep.preference.step_kernel import noised_trajectory, trajectory
from fewstep.solvers import DDIM, GammaSampling

FLOW = RectifiedFlow()
ADVERSARY = Adversary(["rest.0"], GlobalHead(8))
CLEAN = {"adversary": Adversary(["0"], GlobalHead(8)), "network": nn.Sequential(nn.Linear(2, 4))}
DATA = {"x0": normal(8, 2).float()}
REWARD = Linear((1.0, 0.0))


def generator(seed=0, steps=1, solver=None):
    torch.manual_seed(seed)
    return Generator(Denoiser(MLP(2, 16, 2), FLOW, U()), solver or DDIM(), Uniform(), steps)


def reached(model, x0):
    """x0 as what the student made, with a graph of its own."""
    t = torch.ones(len(x0), dtype=torch.float64)
    return Reached(torch.zeros_like(x0), t, Estimate(x0, torch.zeros_like(x0)), torch.zeros_like(t))


def no_gradient(value, *leaves):
    """None of these leaves moves the value."""
    found = (
        torch.autograd.grad(value.sum(), leaves, allow_unused=True, retain_graph=True) if value.requires_grad else ()
    )
    return all(g is None or not g.any() for g in found)


# --- teachers and references are evaluated without a graph --------------------------------------------------------

KINDS = {
    "DMD": lambda: DMD(generator(), 10),
    "ASD": lambda: ASD(generator(), 10),
    "ADD": lambda: LADD(generator(), 10, distillation=1.0, **CLEAN),
    "TADSR": lambda: TADSR(generator(), 10, pool=PairPool(), **CLEAN),
    "Compression": lambda: Compression(generator(), 10, student=generator(1), **CLEAN),
    "BOOT": lambda: BOOT(generator(), 10),
    "CTM": lambda: CTM(generator(), 10, mu=0.9),
    "MeanFlow": lambda: MeanFlow(generator(), 10, velocity=OfTeacher()),
    "guided": lambda: GuidedDistillation(generator(), 10, guidance=TeacherGuidance()),
    "phased": lambda: PhasedRectifiedDiffusion(generator(), 10, steps=2),
    "progressive": lambda: ProgressiveDistillation(generator(), 10, halving=Halving(2)),
    "pool": lambda: TrajectoryRegression(generator(), 10),
    "hybrid pool": lambda: TrajectoryRegression(generator(), 10, pool=HybridPool(real=0.5, steps=2)),
    "redress": lambda: Redress(generator(), 10, steps=2, candidates=4),
    "pool of states": lambda: KeyPoints(generator(), 10, steps=2),
    "Distillation-DPO": lambda: DistillationDPO(generator(), 10, REWARD),
    "NCT": lambda: NCT(generator(), 10, Nearest([[1.0, 0.0], [0.0, 1.0]]), MLP(2, 16, 2, classes=2, time_scale=60.0)),
    "PSO": lambda: PSO(generator(), 10, REWARD, pairs=OfflineRanked()),
    "PSO from data": lambda: PSO(generator(), 10, REWARD, pairs=Offline()),
    "MixGRPO": lambda: MixGRPO(generator(), 10, REWARD, steps=4, group=4, window=Window(2), kl=1.0, updates=1),
    "reward feedback": lambda: RewardFeedback(generator(), 10, REWARD, steps=2, hold=1.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_evaluated_without_a_graph(kind):
    model = KINDS[kind]()
    model.critics = getattr(model, "critics", nn.ModuleDict())
    model._teacher[0].requires_grad_(True)  # so that only how it is called keeps a graph away
    seen = []
    model.teacher.denoiser.net.register_forward_hook(lambda net, x, out: seen.append(out.requires_grad))
    terms = model.loss(DATA)
    assert seen
    assert not any(seen)
    assert no_gradient(sum(terms.values()), *model.teacher.parameters())
    assert not any(v.requires_grad for v in model.values.values() if isinstance(v, torch.Tensor)), "kept for the log"


# --- score distillation -------------------------------------------------------------------------------------------


def test_the_distillation_of_add_does_not_pass_through_its_target():
    model = LADD(generator(), 10, ADVERSARY, distillation=1.0)
    x0, eps, t = DATA["x0"].clone().requires_grad_(), normal(8, 2, seed=1).float(), torch.full((8,), 0.5)
    teacher = model.teacher.denoiser.bind()
    loss = model.distill(x0, eps, t, teacher, model.drawn(DATA))
    wanted = teacher(FLOW.sample(x0, eps, t), t).x0.detach()
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), x0)[0], x0.detach() - wanted)  # 2/D, D = 2


def test_the_weights_of_f_distill_have_no_gradient():
    model = FDistill(generator(), 10, ADVERSARY, divergence=ForwardKL())
    with torch.no_grad():
        model.fake.denoiser.net.last.bias += 0.3
    x0, eps, t = DATA["x0"].clone().requires_grad_(), normal(8, 2, seed=1).float(), torch.full((8,), 0.5)
    drawn, x_t = model.drawn(DATA), FLOW.sample(x0, eps, t)
    loss = model.match(x0, x_t, t, *model.scores(drawn), drawn)
    (through,) = torch.autograd.grad(loss.sum(), x0, retain_graph=True)
    (direct,) = torch.autograd.grad(loss.sum(), x_t, allow_unused=True)
    assert direct is None
    assert through.any()


def test_the_mean_of_a_bin_is_a_number():
    logit = torch.tensor([0.1, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    r = Ratio(bins=1)(logit, torch.full((3,), 0.5), FLOW)
    (slope,) = torch.autograd.grad(r.sum(), logit)
    torch.testing.assert_close(slope, r.detach().double())  # d exp = exp
    h = torch.tensor([1.0, 3.0], requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(normalised(h).sum(), h)[0], torch.tensor([0.5, 0.5]))


def test_weights_of_scores_are_numbers():
    x0, teacher, fake, weight = (normal(4, 2, seed=k).requires_grad_() for k in range(4))
    t, weight = torch.full((4,), 0.5), weight[:, 0]
    assert not ByTeacherError()(x0, teacher, t, FLOW).requires_grad
    losses = [
        sid_loss(x0, teacher, fake, weight, 1.2),
        sim_loss(x0, teacher, fake, weight, SquaredScore()),
        uni_instruct_loss(x0, teacher, fake, torch.ones(4), weight, ForwardKL()),
    ]
    for loss in losses:
        assert no_gradient(loss, weight)
        assert not no_gradient(loss, teacher, fake)


@pytest.mark.parametrize("kind", [SiD, SIM])
def test_score_identities_keep_the_parameters_of_both_networks(kind):
    model = kind(generator(), 10)
    with torch.no_grad():
        model.fake.denoiser.net.last.bias += 0.3
    terms = model.loss(DATA)
    terms["score"].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.student.parameters())
    assert all(p.grad is None for p in (*model.teacher.parameters(), *model.fake.parameters()))
    assert not model.values["train/score_gap"].requires_grad, "kept for the log"


def test_the_range_of_noise_is_no_way_to_the_student():
    model = InstaRevive(generator(), 10)
    x0 = DATA["x0"].clone().requires_grad_()
    t, eps = model.noise(reached(model, x0), model.drawn({"x0": DATA["x0"] + 1}), model.times)
    assert not t.requires_grad
    assert not eps.requires_grad


def test_the_states_of_disback_are_kept_not_trained():
    model = DisBack(generator(), 10, degradation=4, kept=2)
    assert not any(p.requires_grad for p in model.states.parameters())


def test_critics_are_given_samples_without_their_graph_and_none_is_made_out_of_turn():
    model = DMD(generator(steps=2), 10, steps=2, rollout=Rollout(LastStep(), through=1), ratio=2)
    seen, made = [], []
    terms, reach = model.critic_terms, model.reach
    model.critic_terms = lambda reached, *rest: seen.append(reached) or terms(reached, *rest)
    model.reach = lambda *args: made.append(reach(*args)) or made[-1]
    for done, graph in ((0, True), (1, False)):
        model.done = done
        model.loss(DATA)
        x, _, estimate, *_ = seen[-1]
        assert not any(v.requires_grad for v in (x, estimate.x0, estimate.eps))
        assert made[-1].x.requires_grad == made[-1].estimate.x0.requires_grad == graph


# --- discriminators -----------------------------------------------------------------------------------------------


def judge():
    model = generator()
    return Judge(ADVERSARY.build(model), model.denoiser, torch.full((8,), 0.5), {})


def test_students_are_compared_with_real_logits_that_stay():
    fake, real = (normal(8, 2, seed=k).float().requires_grad_() for k in (0, 1))
    paired = Adversary(["rest.0"], GlobalHead(8), Relativistic())
    flow = AdversarialFlow(generator(), 10, [SampleDiscriminator((2,), 8)], adversarial=Relativistic())
    chain = DDGAN(generator(), 10, PairDiscriminator((2,), 8), adversarial=Relativistic(), steps=2)
    terms = [paired.student_at(judge(), fake, real)]
    for model in (flow, chain):
        drawn = model.drawn(DATA)
        at = model.reach(drawn, drawn.cond)._replace(estimate=Estimate(fake, torch.zeros_like(fake)))
        terms.append(model.student_terms(at, drawn._replace(x0=real), {})["adversarial"])
    for term in terms:
        assert no_gradient(term, real)
        assert not no_gradient(term, fake)


@pytest.mark.parametrize("penalty", [R1(), ApproximateR1()], ids=repr)
def test_penalties_are_of_the_critic_alone(penalty):
    x, critic = normal(8, 2).float().requires_grad_(), judge()
    term = penalty(critic, x)
    assert no_gradient(term, x)
    assert not no_gradient(term, *critic.critic.parameters())


def test_a_network_that_judges_is_frozen():
    assert not any(p.requires_grad for p in CleanBackbone(nn.Linear(2, 2)).parameters())


# --- trajectories -------------------------------------------------------------------------------------------------


def test_targets_of_trajectories_have_no_gradient():
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    x, t, s = normal(8, 2), torch.full((8,), 0.8).double(), torch.full((8,), 0.3).double()
    assert not TeacherStep()(lambda x, t: Estimate(one * x, x), FLOW, x, t, s).requires_grad
    assert not split_target(lambda x, t, s: one * x, x, t, s, torch.full((8,), 0.5)).requires_grad
    assert not shortcut_target(lambda x, t, s: one * x, x, t, s, torch.zeros(8, dtype=torch.bool)).requires_grad
    assert not OfTeacher()(lambda x, t: Estimate(one * x, x), FLOW, x, x, x, t).requires_grad
    g = (one * x).requires_grad_()
    assert no_gradient(scm_loss(x.clone().requires_grad_(), g, t, 0.5, torch.zeros(8).double()), g)


def test_averages_are_not_trained_and_guided_velocities_have_no_graph():
    target = Target(generator(), 0.9)
    target.update()
    assert not any(p.requires_grad for p in target.average.parameters())
    model = MeanFlow(generator(), 10, k=0.5, w=0.5)
    x, t = DATA["x0"], torch.full((8,), 0.5)
    assert not model.guided(x, x, t, {}, None).requires_grad


def test_steps_before_the_exit_make_no_graph():
    student, made = generator(steps=3), []
    student.denoiser.net.register_forward_hook(lambda net, x, out: made.append(out.requires_grad))
    for through, graphs in ((0, [False, False, True]), (1, [False, True, True])):
        made.clear()
        Rollout(LastStep(), through)(student, DATA["x0"], {})
        assert made == graphs


def test_each_sample_passes_gradients_as_far_back_as_its_own_exit_allows():
    student, noise = generator(steps=3), DATA["x0"].clone().requires_grad_()
    exits = torch.tensor([1, 2] * 4)
    found = Rollout(LastStep(), through=1).reach(student, noise, exits, {}).estimate.x0
    (slope,) = torch.autograd.grad(found.sum(), noise)
    assert slope[exits == 1].abs().min() > 0
    assert not slope[exits == 2].any()  # its first step is two before the exit


def test_the_bootstrap_makes_its_state_without_a_graph():
    made = []

    def g(t):
        made.append(torch.is_grad_enabled())
        return normal(8, 2, seed=2)

    t, teacher = torch.full((8,), 0.8).double(), generator()
    boot_loss(g, teacher.denoiser.double().bind(), TeacherStep(), FLOW, normal(8, 2), t, t / 2, SquaredL2())
    assert made == [False, True]


def test_the_guided_term_of_slimflow_has_a_gradient_in_the_students_sample_alone():
    x0 = normal(8, 2).requires_grad_()
    loss = guided_loss(
        lambda x, t: Estimate(x0, x), lambda x, t: Estimate(3 * x, x), FLOW, normal(8, 2, seed=1),
        torch.full((8,), 0.5).double(), lambda a, b: (a * b).flatten(1).sum(1),
    )  # fmt: skip
    x_t = 0.5 * x0.detach() + 0.5 * normal(8, 2, seed=1)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), x0)[0], 3 * x_t)


def test_features_of_the_target_stay():
    model, a, b = generator(), normal(8, 2).float().requires_grad_(), normal(8, 2, seed=1).float().requires_grad_()
    loss = TeacherFeatures(model.denoiser, torch.full((8,), 0.5), ["rest.0"])(a, b)
    assert no_gradient(loss, b)
    assert not no_gradient(loss, a)


# --- preference ---------------------------------------------------------------------------------------------------


def test_what_was_sampled_and_kept_has_no_graph():
    student = generator(steps=3, solver=GammaSampling(1.0))
    assert not trajectory(student, DATA["x0"], {}).requires_grad
    assert not noised_trajectory(student, DATA["x0"].clone().requires_grad_()).requires_grad
    states = Online()(student, student, student.prepare(DATA), REWARD)
    assert not any(v.requires_grad for v in states)
    held = Experience()
    held.hold({"z": torch.ones(2, 1, requires_grad=True)})
    assert not held.rows()["z"].requires_grad
    grpo = MixGRPO(generator(), 10, REWARD, steps=4, group=4, window=Window(2), updates=1)
    assert not any(v.requires_grad for v in grpo.rollout(DATA).values())


def test_the_policy_of_find_does_not_move_its_baseline():
    model = FIND(generator(), 10, REWARD, shape=(2,))
    assert not any(v.requires_grad for v in model.drawn(DATA).values())
    terms = model.loss(DATA)
    assert no_gradient(terms["policy"], model.baseline.value)
    assert no_gradient(terms["baseline"], *model.policy.adapter_parameters())


def test_the_cleaner_noise_of_nct_is_a_target():
    model, made = KINDS["NCT"](), []
    model.student.denoiser.net.register_forward_hook(lambda net, x, out: made.append(out.requires_grad))
    model.loss(DATA)
    assert made == [False, True, True]  # the target, what it is compared with, the boundary


def test_the_hold_of_reward_feedback_stays_at_the_reference():
    model = RewardFeedback(generator(), 10, REWARD, steps=2, hold=1.0, rollout=Rollout(LastStep(), through=1))
    with torch.no_grad():
        model.student.denoiser.net.last.bias += 0.3
    model._teacher[0].requires_grad_(True)
    assert no_gradient(model.loss(DATA)["hold"], *model.reference.parameters())


def test_rewards_of_x0_keep_no_graph_in_the_log():
    model = RewardInstruct(generator(steps=2), 10, REWARD, steps=2, pull=1.0)
    model.loss(DATA)
    assert not any(v.requires_grad for v in model.values.values())
