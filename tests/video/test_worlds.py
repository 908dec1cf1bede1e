"""Worlds: what they draw is what they say, and it does not depend on anything but the generator."""

import pytest
import torch

from fewstep_video.data.procedural import Procedural, held_out
from fewstep_video.texts import WordVectors
from fewstep_video.worlds import Bouncing, MovingDisc, MovingShapes
from fewstep_video.worlds.world import STEPS

WORLDS = [MovingDisc(), MovingShapes(), Bouncing(), Bouncing(frames=12, size=24, n=3), MovingShapes(16, 32)]


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_clips_have_their_shape_and_range_and_repeat(world):
    first, second = world.balanced(16, 3), world.balanced(16, 3)
    assert first.video.shape == (16, *world.shape) and first.video.abs().max() <= 1
    assert torch.equal(first.video, second.video)
    assert not torch.equal(first.video, world.balanced(16, 4).video)
    assert first.label.bincount(minlength=len(world.names)).max() <= -(-16 // len(world.names))
    assert (
        first.position.shape[:2] == (16, world.frames)
        and first.radius.shape == first.position.shape[:1] + first.position.shape[2:3]
    )


@pytest.mark.parametrize("world", [MovingDisc(), MovingShapes(), MovingShapes(16, 32)], ids=str)
def test_objects_go_straight_in_the_direction_of_their_class_and_stay_inside(world):
    scene = world.balanced(64, 0)
    step = scene.position[:, :, 0].diff(dim=1)
    assert torch.allclose(step, step[:, :1].expand_as(step), atol=1e-5)
    assert torch.allclose(
        step[:, 0] / step[:, 0].norm(dim=1, keepdim=True), torch.tensor(STEPS)[scene.label % 4], atol=1e-6
    )
    low = scene.position.amin((1, 2, 3)) - scene.radius[:, 0]
    high = scene.position.amax((1, 2, 3)) + scene.radius[:, 0]
    assert low.min() > 0 and high.max() < world.size - 1
    assert 0.25 * world.size - 1e-5 <= (scene.speed * (world.frames - 1)).min() <= 0.4 * world.size


def test_energy_and_momentum_of_balls_are_kept_between_walls():
    world = Bouncing(frames=40, size=20, n=2)
    generator = torch.Generator().manual_seed(0)
    radius = torch.full((32, 2), 2.5)
    place, velocity = world.start(radius, generator)
    way = world.moved(place, velocity, radius)
    assert (way - radius[:, None, :, None]).min() > -0.5 - 0.3 and (way + radius[:, None, :, None]).max() < 19.5 + 0.3
    gap = (way[:, :, 0] - way[:, :, 1]).norm(dim=-1)
    assert gap.min() > 5 - 0.3  # a sixteenth of the fastest frame's way
    speeds = way.diff(dim=1).norm(dim=-1).square().sum(-1)  # constant wherever no contact falls into the frame
    energy = velocity.square().sum((1, 2))
    assert (speeds.median(1).values / energy - 1).abs().median() < 1e-3
    # A head-on contact exchanges velocities.
    from fewstep_video.worlds.bouncing import collided

    new = collided(
        torch.tensor([[[0.0, 0.0], [4.0, 0.0]]]), torch.tensor([[[1.0, 0.5], [-2.0, 0.0]]]), torch.full((1, 2), 2.5)
    )
    assert torch.allclose(new, torch.tensor([[[-2.0, 0.5], [1.0, 0.0]]]))


def test_sharper_edges_and_bad_sizes():
    soft, sharp = (MovingShapes(edge=e).balanced(32, 0).video for e in (0.35, 0.1))
    assert sharp.diff(dim=4).abs().amax((1, 2, 3, 4)).mean() > soft.diff(dim=4).abs().amax((1, 2, 3, 4)).mean()
    with pytest.raises(ValueError, match="at least 2 frames of 8 pixels"):
        MovingDisc(frames=1)
    with pytest.raises(ValueError, match="1 to 4 of them, not 5"):
        Bouncing(n=5)


def test_batches_of_the_module_repeat_and_held_out_clips_are_others():
    data = Procedural(MovingShapes(), held_out=8, batch_size=4)
    data.setup()
    one, two = (next(iter(data.train_dataloader())) for _ in range(2))
    assert torch.equal(one["video"], two["video"]) and set(one) == {"video", "label"}
    (val,) = data.val_dataloader()
    assert len(val["video"]) == 8 and torch.equal(val["label"], torch.arange(8))
    assert not torch.equal(held_out(MovingShapes(), 8, 0)["video"], held_out(MovingShapes(), 8, 1)["video"])


def test_words_are_told_apart_in_their_order():
    words = WordVectors(4, 16)
    assert torch.equal(words("Left square"), words("left-square"))
    assert torch.equal(words("left square")[1], words("big square")[1])
    assert words("left square")[2:].abs().max() == 0 and words("a b c d e f").shape == (4, 16)
    data = Procedural(MovingShapes(), held_out=8, words=words, batch_size=4)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch["text"][0], words(MovingShapes().names[int(batch["label"][0])]))
    with pytest.raises(ValueError, match="has no words"):
        words(" - ")
