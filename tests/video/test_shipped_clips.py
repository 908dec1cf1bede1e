"""The weights that come with the package: `fewstep video generate` makes discs that move where they are asked to, with no further file."""

import pytest
import torch

from fewstep.artifacts import load_as, read_config
from fewstep.cli import main
from fewstep_video.metrics.truth import truth_figures
from fewstep_video.verbs.generate import DEFAULT_MODEL
from fewstep_video.video_generator import VideoGenerator
from fewstep_video.worlds import MovingDisc


def test_a_clip_is_made_out_of_the_box(tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["video", "generate", str(tmp_path / "left.mp4"), "--class", "left"])
    assert end.value.code == 0
    assert (tmp_path / "left.mp4").stat().st_size > 1000


def test_discs_move_where_they_are_asked_to_as_fast_as_real_ones():
    model, labels = load_as(DEFAULT_MODEL, VideoGenerator).eval(), torch.arange(64) % 4
    with torch.no_grad():
        found = truth_figures(MovingDisc(), model(labels, seed=5), labels)
    assert found["direction"].double().mean() > 0.9
    assert 0.9 < found["speed"].double().mean() < 1.15
    assert read_config(DEFAULT_MODEL)["provenance"]["recipe"] == "video/shapes_dmd2"
