"""Frozen parts stay as they are through everything that trainings do to networks."""

import copy

import torch
from torch import nn

from fewstep.nets.adapter import trainable
from fewstep.nets.frozen import Frozen


class Codec(Frozen):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))


def test_trainable_leaves_frozen_parts_alone_and_copies_share_them():
    module = nn.ModuleDict({"net": nn.Linear(2, 2), "codec": Codec()})
    trainable(module.train())
    assert all(p.requires_grad for p in module["net"].parameters())
    assert not any(p.requires_grad for p in module["codec"].parameters())
    assert not module["codec"].layer[1].training and module["net"].training
    other = copy.deepcopy(module)
    assert other["codec"] is module["codec"] and other["net"] is not module["net"]
    x = torch.ones(1, 2)
    assert torch.equal(module["codec"].layer(x), module["codec"].layer(x))


def test_nothing_else_unfreezes_them():
    codec = Codec().requires_grad_(True).train()
    assert not codec.training and not any(p.requires_grad for p in codec.parameters())
