"""What can be read off clips of a procedural world: direction, speed, jerk, shape, number of objects.

Objects stand out against a background that is flat or linear in x and y and does not move: it is fitted to the outermost pixels, and the distance
from it, over its largest value in the clip, less what is faint, is the mask m in [0, 1].

    centroid c(t) = sum m p / sum m      direction: of c(F) - c(1), one of four     speed: mean |c(t+1) - c(t)| in pixels
    jerk          = mean |third difference of c|
    square or disc  E[x^2 y^2]/(E[x^2] E[y^2]) about the centroid: 1 of a square, 2/3 of a disc

shapes: video (B, C, F, H, W) in [-1, 1];  results (B,)
"""

import torch
from torch import Tensor

from fewstep_video.worlds import Bouncing, MovingDisc, MovingShapes, World
from fewstep_video.worlds.world import STEPS

# What is fainter is background; half way is the edge.
FAINT, EDGE = 0.1, 0.5


def truth_figures(world: World, video: Tensor, label: Tensor) -> dict[str, Tensor]:
    """{"jerk", "speed"} of single objects with {"direction"} and, of shapes, {"shape"}; {"count"} of balls: 1 where right. Each (B,).

    speed is relative to the mean of the world; a clip without an object in every frame has direction and shape 0.
    Raises:
        ValueError: another kind of world, clips of fewer than 4 frames.
    """
    if video.ndim != 5 or video.shape[2] < 4:
        raise ValueError(f"clips are {tuple(video.shape)}; allowed: (B, C, F, H, W) with F >= 4")
    mask = foreground(video)
    if isinstance(world, Bouncing):
        counts = torch.stack([_count(clip) for clip in mask])
        return {"count": (counts == world.n).float()}
    if not isinstance(world, MovingDisc | MovingShapes):
        name = type(world).__name__
        raise ValueError(f"no truth is known of {name}; allowed: MovingDisc, MovingShapes, Bouncing")  # noqa: TRY004
    place = centroid(mask)
    moved = place[:, -1] - place[:, 0]
    going = (moved @ torch.tensor(STEPS, dtype=moved.dtype).T).argmax(1)
    seen = (mask.amax((2, 3)) > EDGE).all(1)
    found = {
        "direction": ((going == label.cpu() % 4) & seen).float(),
        "jerk": place.diff(n=3, dim=1).norm(dim=2).mean(1),
        "speed": place.diff(dim=1).norm(dim=2).mean(1) / mean_speed(world),
    }
    if isinstance(world, MovingShapes):
        square = squareness(mask, place) > 5 / 6
        found["shape"] = ((square == (label.cpu() >= 4)) & seen).float()
    return found


def mean_speed(world: MovingDisc | MovingShapes) -> float:
    """Pixels per frame: ways are U[.25, .4] of the size."""
    return 0.325 * world.size / (world.frames - 1)


def foreground(video: Tensor) -> Tensor:
    """m: (B, F, H, W)."""
    video = video.double().cpu()
    distance = (video - background(video)[:, :, None]).abs().mean(1)
    m = distance / distance.flatten(1).amax(1)[:, None, None, None].clamp_min(1e-6)
    return ((m - FAINT) / (1 - FAINT)).clamp_min(0)  # continuous: pixels that come and go must not move the centroid


def background(video: Tensor) -> Tensor:
    """(B, C, H, W): the plane through the outermost pixels, medians over time."""
    height, width = video.shape[3:]
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=video.dtype), torch.linspace(-1, 1, width, dtype=video.dtype), indexing="ij"
    )
    basis = torch.stack([torch.ones_like(rows), rows, columns], -1)  # (H, W, 3)
    rim = torch.ones(height, width, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    values = video.median(2).values[:, :, rim]  # (B, C, R)
    plane = basis[rim]
    fitted = torch.linalg.lstsq(plane, values.flatten(0, 1).T).solution  # (3, B C)
    return (basis @ fitted).permute(2, 0, 1).unflatten(0, video.shape[:2])


def centroid(mask: Tensor) -> Tensor:
    """(B, F, 2) as (x, y) in pixels; the middle of the frame where nothing is."""
    height, width = mask.shape[2:]
    total = mask.sum((2, 3)).clamp_min(1e-9)
    x = (mask.sum(2) * torch.arange(width, dtype=mask.dtype)).sum(2) / total
    y = (mask.sum(3) * torch.arange(height, dtype=mask.dtype)).sum(2) / total
    place, middle = torch.stack([x, y], 2), torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=mask.dtype)
    return torch.where((mask.sum((2, 3)) > 0)[..., None], place, middle)


def squareness(mask: Tensor, place: Tensor) -> Tensor:
    """The ratio of fourth moments, its mean over the frames, (B,)."""
    height, width = mask.shape[2:]
    x = torch.arange(width, dtype=mask.dtype) - place[..., :1]  # (B, F, W)
    y = torch.arange(height, dtype=mask.dtype) - place[..., 1:]
    total = mask.sum((2, 3)).clamp_min(1e-9)
    xx = torch.einsum("bfhw,bfw->bf", mask, x**2) / total
    yy = torch.einsum("bfhw,bfh->bf", mask, y**2) / total
    xxyy = torch.einsum("bfhw,bfh,bfw->bf", mask, y**2, x**2) / total
    return (xxyy / (xx * yy).clamp_min(1e-9)).mean(1)


def _count(mask: Tensor) -> Tensor:
    """Objects of a clip (F, H, W): the most that are apart in any frame but one, so that one bad frame does not decide."""
    import cv2

    counts = [
        sum(area >= 3 for area in cv2.connectedComponentsWithStats(frame, connectivity=4)[2][1:, cv2.CC_STAT_AREA])
        for frame in (mask > EDGE).to(torch.uint8).numpy()
    ]
    return torch.tensor(sorted(counts)[-2])
