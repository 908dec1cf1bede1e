"""Channel pruning against networks that have dead channels, and adversarial compression by its terms."""

import pytest
import torch
from torch import nn
from worlds import normal

from fewstep.artifacts import save
from fewstep.denoiser import Denoiser
from fewstep.discriminators import Adversary, GlobalHead
from fewstep.distances import L1
from fewstep.distill.compression import Compression
from fewstep.distill.rollout import LastStep, Rollout
from fewstep.generator import Generator
from fewstep.grids import Uniform
from fewstep.nets import MLP
from fewstep.nets.unet import UNet
from fewstep.paths import RectifiedFlow
from fewstep.prediction import U
from fewstep.prune import cut, narrowed, pruned
from fewstep.solvers import DDIM


def filled(net):
    """All weights random, also the layers that begin at zero."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype) / max(1, p[0].numel()) ** 0.5)
    return net.double()


def widened(small, wide, parts):
    """`wide` with the weights of `small` where `cut` reads them: nothing reads its further channels, whatever goes into them."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in wide.named_parameters():
            p.normal_(generator=g)
            value = small.get_parameter(name)
            kept = [first(n, m, k) for n, m, k in zip(p.shape, value.shape, parts(name), strict=False)]
            if p.ndim > 1:
                rows = p[kept[0]]
                rows[:, [i for i in range(p.shape[1]) if i not in set(kept[1].tolist())]] = 0
                p[kept[0]] = rows
            p[torch.meshgrid(*kept, indexing="ij")] = value
    return wide


def first(n, m, k):
    """Indices of the first of n entries in each of k equal parts, m in all."""
    return torch.arange(n).unflatten(0, (k, -1))[:, : m // k].flatten()


def unet(width, **kwargs):
    net = UNet(1, width, (1, 2), 1, (), classes=2, scalars={"w": 10.0}, **kwargs)
    for m in list(net.modules()):
        for name, child in list(m.named_children()):
            if isinstance(child, nn.GroupNorm):  # which channels share a group changes with the width
                setattr(m, name, nn.Identity())
    return filled(net)


def one_or_more(name):
    if ".film." in name:
        return (2, 1, 1, 1)
    return (1, 2, 1, 1) if name.startswith("up.") and name.split(".")[-2] in ("conv1", "skip") else (1, 1, 1, 1)


@pytest.mark.parametrize("keep", [0.5, 0.75])
def test_pruning_takes_back_channels_that_do_nothing(keep):
    wide = int(16 / keep)
    small, x, t = filled(MLP(2, 16, 3, scalars={"w": 1.0}, classes=3, latent=4)), normal(6, 2), torch.rand(6).double()
    large = widened(small, MLP(2, wide, 3, scalars={"w": 1.0}, classes=3, latent=4).double(), lambda name: (1,) * 4)
    told = {"label": torch.arange(6) % 3, "w": torch.rand(6).double(), "z": normal(6, 4)}
    found = narrowed(large, 16 / wide)
    assert found.hidden == 16
    torch.testing.assert_close(large(x, t, **told), small(x, t, **told))
    assert torch.equal(found(x, t, **told), small(x, t, **told))


def test_pruning_a_unet_cuts_each_part_of_what_is_joined():
    small, large = unet(24), unet(32)
    widened(small, large, one_or_more)
    x, t, told = (
        normal(3, 1, 8, 8),
        torch.rand(3).double(),
        {"label": torch.tensor([0, 1, 2]), "w": torch.ones(3).double()},
    )
    torch.testing.assert_close(large(x, t, **told), small(x, t, **told))
    found = narrowed_without_norms(large)
    assert found.width == 24
    torch.testing.assert_close(found(x, t, **told), small(x, t, **told))


def narrowed_without_norms(large):
    """As `narrowed`, of networks whose normalisations are taken out."""
    whole = UNet(1, 32, (1, 2), 1, (), classes=2, scalars={"w": 10.0}).double()
    whole.load_state_dict(large.state_dict(), strict=False)
    found, bare = narrowed(whole, 0.75), unet(24)
    bare.load_state_dict({k: v for k, v in found.state_dict().items() if k in bare.state_dict()})
    return bare


def test_attention_and_normalisation_are_cut_too():
    net = filled(UNet(1, 32, (1, 2), 1, (0, 1)))
    small = narrowed(net, 0.5)
    qkv, cut_qkv = (n.get_parameter("middle.0.attention.qkv.weight") for n in (net, small))
    assert torch.equal(cut_qkv, qkv.unflatten(0, (3, 64))[:, :32, :32].flatten(0, 1))
    norm, cut_norm = (n.get_parameter("up.0.0.norm1.weight") for n in (net, small))
    assert torch.equal(cut_norm, norm.unflatten(0, (2, 32))[:, :16].flatten())
    out = small(normal(2, 1, 8, 8), torch.rand(2).double())
    assert out.isfinite().all()
    assert out.abs().max() > 0
    whole = narrowed(net, 1.0)
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in net.state_dict().items())
    fewer = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in net.parameters())
    assert 0.2 < fewer < 0.32  # about keep squared


def test_what_cannot_be_narrowed_is_named(tmp_path):
    with pytest.raises(ValueError, match="in \\(0, 1\\]"):
        narrowed(MLP(2), 1.5)
    with pytest.raises(ValueError, match="Linear has no `hidden`"):
        narrowed(nn.Linear(2, 2), 0.5)
    model = Generator(Denoiser(MLP(2, 16, 2), RectifiedFlow(), U()), DDIM(), Uniform(), 2)
    save(model, tmp_path / "wide")
    found = pruned(str(tmp_path / "wide"), 0.5)
    assert found.denoiser.net.hidden == 8
    assert found.steps == 2
    assert torch.equal(cut(torch.arange(6.0), (4,), (2,)), torch.tensor([0.0, 1, 3, 4]))


def test_compression_compares_with_the_teachers_own_samples_and_hears_the_critic():
    torch.manual_seed(0)
    teacher = Generator(Denoiser(MLP(2, 16, 2).double(), RectifiedFlow(), U()), DDIM(), Uniform(), 2)
    student = Generator(Denoiser(narrowed(teacher.denoiser.net, 0.5), RectifiedFlow(), U()), DDIM(), Uniform(), 1)
    judge = Adversary(["rest.0"], GlobalHead(width=8), weight=0.1)
    model = Compression(teacher, 10, judge, student).double()
    batch = {"x0": normal(32, 2)}
    torch.manual_seed(5)
    terms = model.loss(batch)
    torch.manual_seed(5)
    noise = model.drawn(batch).noise
    wanted, own = teacher.generate(noise), model.student.generate(noise)
    torch.testing.assert_close(terms["distance"], L1()(own, wanted).mean())
    assert set(terms) == {"distance", "adversarial", "critic"}
    # The same network with the same steps has no distance.
    twin = Compression(
        teacher, 10, judge, Generator(teacher.denoiser, DDIM(), Uniform(), 2), steps=2, rollout=Rollout(LastStep())
    ).double()
    assert twin.loss(batch)["distance"] < 1e-12
