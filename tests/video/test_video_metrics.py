"""Metrics of video: exact cases, the orders that the sheet asks for, and the floors of real against real."""

import pytest
import torch
from torch.nn.functional import interpolate

from fewstep_video.metrics import (
    RandomFeatures,
    acceleration,
    afid,
    consistency,
    diversity,
    drift,
    flicker,
    flow_figures,
    kvd,
    law_figures,
    mfvd,
    rfvd,
    seam,
    truth_figures,
)
from fewstep_video.metrics.floors import world_floor
from fewstep_video.metrics.truth import background, centroid, foreground
from fewstep_video.worlds import Bouncing, MovingDisc, MovingShapes

WORLD = MovingShapes()


@pytest.fixture(scope="module")
def clips():
    return WORLD.balanced(256, 1).video, WORLD.balanced(256, 2).video


def shuffled(video):
    return video[:, :, torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])[: video.shape[2]]]


def noisy(video, size=12 / 127.5):
    return video + size * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))


def jittered(video):
    gain = 1 + 0.08 * torch.randn(len(video), 1, video.shape[2], 1, 1, generator=torch.Generator().manual_seed(0))
    return (video + 1) * gain - 1


# --- laws ---------------------------------------------------------------------------------------------------------------


def test_random_features_are_the_same_everywhere_and_grey_is_three_equal_channels():
    net = RandomFeatures()
    assert net.fingerprint == RandomFeatures().fingerprint != RandomFeatures(seed=1).fingerprint
    video = torch.randn(3, 1, 4, 8, 8)
    assert net(video).shape == (3, 224)
    assert torch.equal(net(video), net(video.expand(-1, 3, -1, -1, -1)))
    assert torch.allclose(net(2 * video), 2 * net(video), atol=1e-5)  # so units of differences do not matter
    assert RandomFeatures(2)(torch.randn(5, 3, 9, 7)).shape == (5, 224)


def test_distances_are_zero_of_a_set_to_itself_and_shift_exactly(clips):
    real, _ = clips
    assert rfvd(real, real) < 1e-6 and mfvd(real, real) < 1e-6 and diversity(real, real) == pytest.approx(1)
    assert kvd(real, real) < 0  # unbiased: below 0 for a set and itself


def test_laws_see_what_they_are_for(clips):
    real, other = clips
    floor = law_figures(real, other)
    # Appearance: all see it. Time: shuffled frames hardly change rFVD, and no single frame.
    assert rfvd(real, noisy(other, 0.3)) > 2 * floor["rfvd"] and afid(real, noisy(other, 0.3)) > 2 * floor["afid"]
    assert afid(real, shuffled(other)) == pytest.approx(floor["afid"], rel=1e-3)
    assert mfvd(real, shuffled(other)) > 3 * floor["mfvd"]
    static = other[:, :, :1].expand_as(other)
    assert mfvd(real, static) > 3 * floor["mfvd"]
    assert rfvd(real, other) < rfvd(real, noisy(other)) and kvd(real, other) < kvd(real, noisy(other))
    assert abs(floor["kvd"]) < 0.05 and floor["diversity"] == pytest.approx(1, abs=0.1)
    one = real[:1].expand(64, -1, -1, -1, -1) + 0.01 * torch.randn(64, *WORLD.shape)
    assert diversity(real, one) < 0.2
    # Reversed in time the law of the shapes is the same: classes are symmetric.
    assert mfvd(real, other.flip(2)) < 2 * floor["mfvd"]


def test_bad_clips_are_named(clips):
    real, _ = clips
    with pytest.raises(ValueError, match="fake clips are"):
        rfvd(real, real[:1])
    with pytest.raises(ValueError, match="nan or inf"):
        rfvd(real, real / 0)
    with pytest.raises(ValueError, match="at least 2 frames"):
        mfvd(real[:, :, :1], real[:, :, :1])


@pytest.mark.parametrize(
    ("world", "most"), [(MovingDisc(), {"rfvd": 5.8, "mfvd": 6.8, "jerk": 0.02}), (WORLD, {"rfvd": 5.9, "jerk": 0.03})]
)
def test_floors_are_those_of_the_sheet(world, most):
    """512 clips against 1024 others: 5.8, 6.8 and .013 (disc), 5.9 (shapes) with the weights of the sheet's own network."""
    floor = world_floor(world)
    for name, value in most.items():
        assert floor[name] <= value and floor[name] > 0.4 * value
    assert floor["direction"] == 1 and floor["speed"] == pytest.approx(1, abs=0.02) and floor.get("shape", 1) == 1


# --- single clips -------------------------------------------------------------------------------------------------------


def textured(n=4, frames=9, size=64, speed=1.5):
    """Smooth textures that move evenly: flow is known."""
    big = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    big = interpolate(big, size=(size + 32, size + 32), mode="bicubic").clamp(-1, 1)
    grid = torch.arange(size).float()
    frames_ = []
    for t in range(frames):
        x = (grid + 4 + speed * t) / (size + 31) * 2 - 1
        y = (grid + 8) / (size + 31) * 2 - 1
        where = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1).expand(n, -1, -1, -1)
        frames_.append(torch.nn.functional.grid_sample(big, where, align_corners=True, mode="bicubic"))
    return torch.stack(frames_, 2).clamp(-1, 1)


def test_flow_finds_the_speed_of_a_moving_texture():
    found = flow_figures(textured())
    assert torch.allclose(found.flow, torch.full((4,), 1.5, dtype=torch.float64), atol=0.1)
    assert found.dynamic.min() > 0.9  # 1.5 px at 64 is 6 at 256
    assert found.occluded.max() < 0.1 and found.warp.max() < 2e-3 and found.smoothness.min() > 0.98


def test_figures_order_real_before_corrupted_and_static_wins_all_but_dynamics():
    real = textured(frames=8)
    base, base_flicker = flow_figures(real), flicker(real)
    for worse in (shuffled(real), noisy(real), jittered(real)):
        found = flow_figures(worse)
        assert found.warp.mean() > 1.5 * base.warp.mean() and found.smoothness.mean() < base.smoothness.mean()
        assert flicker(worse).mean() < base_flicker.mean() and acceleration(worse).mean() > acceleration(real).mean()
    static = real[:, :, :1].expand_as(real)
    frozen = flow_figures(static)
    assert frozen.warp.max() == 0 and frozen.smoothness.min() == 1 and flicker(static).min() == 1
    assert acceleration(static).max() == 0 and consistency(static).min() > 1 - 1e-5
    assert frozen.dynamic.max() < 0.05 * base.dynamic.min(), "a frozen clip must show in its dynamics"
    assert consistency(real).max() < 1


def test_time_reversal_changes_no_figure_of_single_clips():
    real = textured(frames=9)
    back = real.flip(2)
    assert torch.allclose(flicker(real), flicker(back)) and torch.allclose(acceleration(real), acceleration(back))
    one, two = flow_figures(real), flow_figures(back)
    for name in ("warp", "flow", "dynamic", "smoothness"):
        assert torch.allclose(getattr(one, name), getattr(two, name), rtol=0.35), name
    assert torch.allclose(drift(real)["mean"], -drift(back)["mean"], atol=1e-9)


def test_small_frames_have_flow_in_their_own_pixels():
    video = MovingDisc(frames=6, size=16).balanced(8, 0).video
    found = flow_figures(video)
    assert found.flow.min() > 0.01 and found.dynamic.min() > 0.5


def test_seam_is_the_ratio_of_changes_at_borders_to_inside():
    t = torch.arange(12.0)
    even = t.reshape(1, 1, 12, 1, 1).expand(2, 3, 12, 4, 4) / 12
    assert torch.allclose(seam(even, 4), torch.ones(2))
    jump = even + (t >= 4).float().reshape(1, 1, 12, 1, 1) / 12 + (t >= 8).float().reshape(1, 1, 12, 1, 1) / 12
    assert torch.allclose(seam(jump, 4), torch.full((2,), 2.0))
    assert torch.allclose(seam(jump[:, :, 1:], 4, first=3), torch.full((2,), 2.0))
    assert torch.equal(seam(torch.zeros(1, 3, 8, 4, 4), 2), torch.ones(1))
    with pytest.raises(ValueError, match="at least two blocks"):
        seam(even, 12)


def test_drift_is_the_change_of_a_line():
    t = torch.linspace(0, 1, 9).reshape(1, 1, 9, 1, 1)
    base = torch.randn(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    found = drift(base + 0.4 * t)
    assert found["mean"].item() == pytest.approx(0.2) and abs(found["std"].item()) < 1e-6
    assert abs(found["sharpness"].item()) < 1e-6 and abs(found["saturation"].item()) < 1e-6
    fading = drift(base * (1 - 0.5 * t))
    assert fading["std"].item() < 0 and fading["sharpness"].item() == pytest.approx(-0.5 / 0.75, rel=1e-3)
    assert fading["saturation"].item() < 0
    assert all(v.abs().max() < 1e-9 for v in drift(base.expand(-1, -1, 9, -1, -1)).values())


# --- truth --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [MovingDisc(), MovingShapes(), MovingShapes(12, 32)], ids=str)
def test_centroids_are_found_to_a_tenth_of_a_pixel(world):
    scene = world.balanced(64, 5)
    found = centroid(foreground(scene.video))
    assert (found - scene.position[:, :, 0]).abs().max() < 0.1


def test_the_background_is_exact_where_it_is_linear():
    rows, columns = torch.meshgrid(torch.linspace(0, 0.3, 12), torch.linspace(0, -0.2, 12), indexing="ij")
    video = (rows + columns).expand(2, 3, 6, 12, 12).clone()
    video[:, :, :, 4:7, 4:7] = 1
    assert (background(video.double()) - (rows + columns).double()).abs().max() < 1e-6


def test_truth_tells_right_from_wrong():
    scene = WORLD.balanced(64, 0)
    right = truth_figures(WORLD, scene.video, scene.label)
    assert right["direction"].mean() == 1 and right["shape"].mean() == 1
    assert right["speed"].mean() == pytest.approx(1, abs=0.05)
    back = truth_figures(WORLD, scene.video.flip(2), scene.label)
    assert back["direction"].sum() == 0 and torch.allclose(back["speed"], right["speed"])
    assert truth_figures(WORLD, scene.video, (scene.label + 4) % 8)["shape"].sum() == 0
    mixed = truth_figures(WORLD, shuffled(scene.video), scene.label)
    assert mixed["jerk"].mean() > 50 * right["jerk"].mean()
    empty = truth_figures(WORLD, torch.zeros(4, *WORLD.shape), torch.arange(4))
    assert empty["direction"].sum() == 0
    static = truth_figures(WORLD, scene.video[:, :, :1].expand_as(scene.video), scene.label)
    assert static["speed"].max() < 1e-6 and static["jerk"].max() < 1e-6


def test_balls_are_counted():
    for n in (1, 2, 3):
        world = Bouncing(frames=10, size=24, n=n)
        scene = world.balanced(64, 0)
        assert truth_figures(world, scene.video, scene.label)["count"].mean() >= 0.98
        assert truth_figures(Bouncing(n=4 - n if n != 2 else 1), scene.video, scene.label)["count"].mean() < 0.1
    with pytest.raises(ValueError, match="F >= 4"):
        truth_figures(WORLD, torch.zeros(1, 3, 3, 16, 16), torch.zeros(1))
