"""The digits and what is trained on them: the U-Net, generators of classes with guidance, and the judge of samples."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from worlds import normal

from fewstep import recipes
from fewstep.artifacts import load, read_config, save
from fewstep.class_generator import ClassGenerator
from fewstep.cli import main
from fewstep.denoiser import Denoiser
from fewstep.digits import Digits, digits, division
from fewstep.digits_judge import DigitsJudge
from fewstep.grids import Uniform
from fewstep.nets.scalars import with_scalars
from fewstep.nets.unet import Attention, UNet
from fewstep.null_conditions import drop_conditions
from fewstep.paths import RectifiedFlow
from fewstep.prediction import X0, U
from fewstep.solvers import DDIM, Heun
from fewstep.train.denoising import Denoising, denoising_loss
from fewstep.train.loader import StatefulLoader


def shaken(net, seed=0):
    """The network with no parameter at 0, in float64."""
    g = torch.Generator().manual_seed(seed)
    for p in net.double().parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=g, dtype=torch.float64)
    return net


def small(**kwargs):
    return UNet(**{"channels": 1, "width": 8, "mults": (1, 2), "blocks": 1, "attention": (1,), "classes": 10} | kwargs)


LABELS = torch.tensor([3, 10, 0])


# --- the network -------------------------------------------------------------------------------------------------


def test_the_default_network_is_small_and_begins_at_zero():
    net = UNet()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(1.5e6, rel=0.15)
    with torch.no_grad():
        assert torch.equal(net(torch.randn(2, 3, 16, 16), torch.rand(2)), torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_forward_mode_agrees_with_differences(layout):
    net = shaken(small(attention=(0, 1), mults=(1, 2, 2)))
    x, v = (normal(3, 1, 8, 8, seed=s).contiguous(memory_format=getattr(torch, layout)) for s in (1, 2))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    at, along = (x, t), (v, torch.ones_like(t))
    with sdpa_kernel(SDPBackend.MATH):
        value, rate, *_ = torch.func.jvp(lambda x, t: net(x, t, LABELS), at, along)
    ahead, behind = (net(x + h * v, t + h, LABELS) for h in (1e-5, -1e-5))
    torch.testing.assert_close(value, net(x, t, LABELS), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rate, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6 * rate.abs().max().item())


def test_attention_is_softmax_over_the_pixels_of_each_head():
    layer, h = shaken(Attention(48)), normal(2, 48, 2, 3)
    assert layer.heads == 3
    q, k, v = layer.qkv(layer.norm(h)).flatten(2).reshape(2, 3, 3, 16, 6).unbind(1)  # (B, head, channel, pixel)
    weight = (torch.einsum("bhci,bhcj->bhij", q, k) / 16**0.5).softmax(-1)
    mixed = torch.einsum("bhij,bhcj->bhci", weight, v).reshape(2, 48, 2, 3)
    torch.testing.assert_close(layer(h), h + layer.last(mixed))


def test_images_of_a_batch_do_not_see_one_another():
    net, x, t = shaken(small()).eval(), normal(3, 1, 8, 8), torch.rand(3, dtype=torch.float64)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], LABELS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t, LABELS), alone, rtol=1e-9, atol=1e-9)
    assert (net(x, t, LABELS) - net(x, t, LABELS.flip(0))).abs().amax((1, 2, 3))[[0, 2]].min() > 1e-3


def test_a_further_scalar_condition_changes_nothing_until_it_is_trained():
    net, x, t = shaken(small()).eval(), normal(3, 1, 8, 8), torch.rand(3, dtype=torch.float64)
    wider = with_scalars(net, {"w": 10.0}).eval()
    assert torch.equal(wider(x, t, LABELS, w=torch.rand(3, dtype=torch.float64)), net(x, t, LABELS))


@pytest.mark.parametrize(
    ("call", "needle"),
    [
        (lambda: small(width=12), "12"),
        (lambda: small(attention=(2,)), "0 to 1"),
        (lambda: small()(torch.zeros(1, 1, 8, 8), torch.zeros(1)), "no label"),
        (lambda: small(classes=0)(torch.zeros(1, 1, 8, 8), torch.zeros(1), LABELS[:1]), "0 classes"),
        (lambda: small()(torch.zeros(1, 1, 8, 7), torch.zeros(1), LABELS[:1]), "multiples of 2"),
        (lambda: ClassGenerator(Denoiser(small(classes=0), RectifiedFlow(), U()), DDIM(), Uniform()), "classes"),
        (lambda: division(0), "1 to 1796"),
        (lambda: Denoising(generator(), 1, drop=1.5), "1.5"),
    ],
)
def test_what_does_not_fit_is_refused(call, needle):
    with pytest.raises(ValueError, match=needle):
        call()


# --- the data ----------------------------------------------------------------------------------------------------


def test_the_digits_are_divided_without_loss():
    x0, label = digits()
    train, held_out = division()
    assert x0.shape == (1797, 1, 8, 8)
    assert (x0.min(), x0.max()) == (-1, 1)
    assert torch.equal(torch.cat([train, held_out]).sort().values, torch.arange(1797))
    assert label[held_out].bincount(minlength=10).min() > 15
    assert not torch.equal(division(split=1)[1].sort().values, held_out.sort().values)


def test_the_data_module_resumes_exactly_and_never_trains_on_what_is_held_out():
    data = Digits(batch_size=100, seed=3)
    data.setup()
    whole = list(itertools.islice(data.train_dataloader(), 20))
    first, second = data.train_dataloader(), data.train_dataloader()
    list(itertools.islice(first, 7))
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(itertools.islice(second, 13), whole[7:], strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    (held_out,) = data.val_dataloader()
    assert held_out["x0"].shape == (297, 1, 8, 8)
    seen = {x.numpy().tobytes() for x in torch.cat([b["x0"] for b in whole[:15]])}
    everything = {x.numpy().tobytes() for x in digits()[0]}
    assert len(seen) > 1490
    assert seen | {x.numpy().tobytes() for x in held_out["x0"]} == everything
    lookup = {x.numpy().tobytes(): k for x, k in zip(*digits(), strict=True)}
    assert all(lookup[x.numpy().tobytes()] == k for x, k in zip(whole[0]["x0"], whole[0]["label"], strict=True))


def test_tables_are_read_in_the_order_of_single_items():
    class Items:
        def __len__(self):
            return 7

        def draw(self, index, generator):
            return {"index": torch.tensor(index)}

    class Rows(Items):
        def rows(self, index):
            return {"index": torch.tensor(index)}

    one, many = (list(itertools.islice(StatefulLoader(kind(), 3, 5, 1, 2), 9)) for kind in (Items, Rows))
    assert all(torch.equal(a["index"], b["index"]) for a, b in zip(one, many, strict=True))


# --- generators of classes ---------------------------------------------------------------------------------------


class Bias(nn.Module):
    """x0 = the label's number, whatever the state."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes
        self.table = nn.Parameter(torch.arange(classes + 1, dtype=torch.float64))

    def forward(self, x, t, label):
        return self.table[label][:, None, None, None].expand_as(x)


def generator(net=None, steps=1, solver=None):
    return ClassGenerator(Denoiser(net or Bias(), RectifiedFlow(), X0()), solver or DDIM(), Uniform(), steps, (1, 2, 2))


@pytest.mark.parametrize("cfg", [1.0, 0.0, 2.5])
def test_guidance_extrapolates_from_the_null_label(cfg):
    label = torch.tensor([0, 1, 2])
    images = generator(steps=4)(label, noise=normal(3, 1, 2, 2), cfg=cfg)
    torch.testing.assert_close(images[:, 0, 0, 0], 3 + cfg * (label.double() - 3))


def test_labels_are_drawn_evenly_and_purely():
    model = generator()
    drawn = torch.stack([model.draw_conditions(torch.Generator().manual_seed(i))["label"] for i in range(600)])
    assert drawn.bincount(minlength=3).min() > 160
    assert drawn[5] == model.draw_conditions(torch.Generator().manual_seed(5))["label"]


def test_without_dropping_no_random_number_is_drawn_for_it():
    batch = {"x0": normal(6, 1, 2, 2), "label": torch.tensor([0, 1, 2, 0, 1, 2])}
    module = Denoising(generator(), 1)
    torch.manual_seed(1)
    loss = module.loss(batch)["denoising"]
    torch.manual_seed(1)
    t = module.times(6, RectifiedFlow())
    eps = torch.randn_like(batch["x0"])
    assert torch.equal(
        loss, denoising_loss(module.student.denoiser, batch["x0"], eps, t, {"label": batch["label"]}).mean()
    )


def test_dropped_samples_are_trained_unconditionally():
    label = torch.randint(3, (4000,), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    given = {"label": label, "w": torch.ones(4000, 1)}
    cond, kept = drop_conditions(generator(), given, torch.zeros(4000, 1, 2, 2), 0.3)
    gone = cond["label"] == 3
    assert torch.equal(gone, ~kept)
    assert gone.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(cond["label"][~gone], label[~gone])
    assert torch.equal(cond["w"], torch.ones(4000, 1))
    # The exact x0 of "label 3 whatever was asked for" has no loss where all are dropped.
    everything = Denoising(generator(), 1, drop=1.0)
    assert everything.loss({"x0": torch.full((8, 1, 2, 2), 3.0).double(), "label": label[:8]})["denoising"] == 0


# --- the judge ---------------------------------------------------------------------------------------------------


def held_out():
    x0, label = digits()
    index = division()[1]
    return {"x0": x0[index], "label": label[index]}


def test_the_judge_knows_real_digits():
    batch = held_out()
    figures = DigitsJudge()(batch["x0"], batch)
    assert figures["accuracy"].shape == figures["frechet"].shape == (297,)
    assert figures["accuracy"].mean() > 0.98
    assert figures["frechet"].max() < 1e-4
    wrong = DigitsJudge()(batch["x0"], batch | {"label": (batch["label"] + 1) % 10})
    assert wrong["accuracy"].mean() < 0.02


def test_the_judge_orders_samples_by_their_worth():
    """Unseen digits of the same classes, then the same blurred, then noise."""
    batch, (x0, label), g = held_out(), digits(), torch.Generator().manual_seed(0)
    train = division()[0]
    of_class = [train[label[train] == k] for k in range(10)]
    like = torch.stack([of_class[k][torch.randint(len(of_class[k]), (), generator=g)] for k in batch["label"].tolist()])
    blurred = torch.lerp(x0[like], nn.functional.avg_pool2d(x0[like], 3, 1, 1), 0.4)
    noise = torch.randn(297, 1, 8, 8, generator=g)
    real, soft, none = (DigitsJudge()(x, batch)["frechet"][0].item() for x in (x0[like], blurred, noise))
    assert real < 0.2
    assert soft > 2 * real
    assert none > 10 * real


def test_a_generator_with_its_judge_survives_the_disk_and_is_scored_and_shown(tmp_path):
    net = shaken(small()).float()
    model = ClassGenerator(Denoiser(net, RectifiedFlow(), U()), Heun(), Uniform(), 2, judge=DigitsJudge()).eval()
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    noise, label = torch.randn(3, 1, 8, 8), torch.tensor([1, 2, 3])
    with torch.no_grad():
        assert torch.equal(again(label, noise=noise), model(label, noise=noise))
        batch = {k: v[:20] for k, v in held_out().items()}
        assert isinstance(again, ClassGenerator)
        scores = again.scores(batch)
        picture = again.preview(batch)["samples"]
    assert {k: tuple(v.shape) for k, v in scores.items()} == {"accuracy": (20,), "frechet": (20,)}
    assert picture.shape == (3, 6 * 32, 10 * 32)
    assert (picture.min() >= 0) & (picture.max() <= 1)
    assert not any("judge" in k for k in model.state_dict())


# --- the recipes -------------------------------------------------------------------------------------------------


def test_the_recipes_train_a_teacher_and_two_students(tmp_path, monkeypatch):
    """Two iterations each, of a smaller network: teacher, pairs, students."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in args])
        assert not end.value.code

    def fit(name, *more):
        short = ["--model.init_args.iterations=2", "--trainer.val_check_interval=2", "--trainer.accelerator=cpu"]
        run(
            "fit",
            "-c",
            recipes.find(f"digits/digits_{name}"),
            *short,
            "--trainer.logger=false",
            "--data.init_args.batch_size=8",
            *more,
        )
        return read_config(f"runs/digits_{name}/last")["provenance"]["scores"]

    net = "--model.init_args.student.init_args.denoiser.init_args.net.init_args.width=8"
    assert {"val/denoising", "val/accuracy", "val/frechet"} <= fit("teacher", net, "--data.init_args.held_out=8").keys()
    run("pairs", "runs/digits_teacher/last", "-n", 24, "--steps", 2, "--cfg", 1.5, "--out", "runs/digits_pairs")
    assert "val/agreement" in fit("kd", "--data.init_args.held_out=8")
    assert "val/frechet" in fit("cd", "--data.init_args.held_out=8")
