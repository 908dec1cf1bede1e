"""Colour patches: held-out ones share no pixel with the others, and the features see blur and grain."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from fewstep.metrics import frechet_distance
from fewstep.patches import Patches, PatchesJudge, draw, patch_features, patches, photographs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_patches_are_cut_from_their_photograph():
    x0, label = patches()
    assert x0.shape[1:] == (3, 16, 16)
    assert x0.abs().amax() <= 1
    per_row = photographs().shape[-1] * 4 // 5 - 15
    assert torch.equal(x0[per_row + 2], photographs()[0, :, 1:17, 2:18])
    assert label.unique(return_counts=True)[1].tolist() == [len(x0) // 2] * 2


def test_held_out_patches_share_no_column_with_the_others():
    border = photographs().shape[-1] * 4 // 5
    held_out, _ = patches(held_out=True)
    assert torch.equal(held_out[0], photographs()[0, :, :16, border : border + 16])
    assert torch.equal(patches()[0][border - 16], photographs()[0, :, :16, border - 16 : border])


def test_the_distance_sees_blur_grain_and_another_photograph():
    x, y = (draw(1500, generator(seed)) for seed in (0, 1))
    real = patch_features(x["x0"])
    distance = lambda v: frechet_distance(patch_features(v), real).item()
    floor = distance(y["x0"])
    assert floor < 0.7
    assert distance(avg_pool2d(y["x0"], 3, 1, 1, count_include_pad=False)) > 2 * floor
    assert distance(y["x0"] + 0.1 * torch.randn(y["x0"].shape, generator=generator())) > 2 * floor
    assert distance(y["x0"][y["label"] == 0]) > 5 * floor
    judged = PatchesJudge()(y["x0"], x)["frechet"]
    assert judged.shape == (1500,)
    assert judged[0].item() == pytest.approx(floor, rel=1e-5)


def test_batches_are_a_function_of_the_seed():
    first, again, other = (next(iter(Patches(8, seed).train_dataloader())) for seed in (3, 3, 4))
    assert torch.equal(first["x0"], again["x0"])
    assert not torch.equal(first["x0"], other["x0"])
    assert next(iter(Patches().val_dataloader()))["x0"].shape == (512, 3, 16, 16)
