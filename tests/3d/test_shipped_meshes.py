"""The weights that come with the package: `fewstep mesh CLASS` makes a closed mesh of that class, with no further file."""

import pytest
import torch

from fewstep.artifacts import read_config
from fewstep.cli import main
from fewstep_3d.commands import DEFAULT_MODEL
from fewstep_3d.generate import loaded
from fewstep_3d.metrics import pairwise_iou
from fewstep_3d.shapes import SHAPES, members


def test_a_chair_is_made_out_of_the_box(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["mesh", "chair", str(tmp_path / "chair.glb"), "--resolution", "48"])
    assert end.value.code == 0
    assert "watertight" in capsys.readouterr().out and (tmp_path / "chair.glb").stat().st_size > 10_000


def test_every_class_is_nearest_to_itself():
    """One object of each, by its IoU with members drawn anew, and what the weights say of themselves."""
    model = loaded(DEFAULT_MODEL).eval()
    with torch.no_grad():
        fields = model({"label": torch.arange(len(SHAPES))}, 1, torch.Generator().manual_seed(3), 28)
    inside, generator = fields.values[:, 0] < 0, torch.Generator().manual_seed(4)
    best = torch.stack([pairwise_iou(inside, members(n, 48, 28, generator) < 0).amax(1) for n in SHAPES], 1)
    assert best.argmax(1).tolist() == list(range(len(SHAPES)))
    assert best.diagonal().mean() > 0.75 and best.diagonal().min() > 0.5
    facts = read_config(DEFAULT_MODEL)["provenance"]
    assert facts["recipe"] == "3d/shapes_members" and facts["scores"]["objects"] == 72
