"""Figures from optical flow (OpenCV's DIS): warp error, occlusion, dynamic degree, motion smoothness.

    warp error       mean square of I_{t+1} at p + w(p) against I_t at p, pixels in [0, 1], where forward and backward flow agree:
                     |w(p) + w'(p + w(p))|^2 < .01 (|w|^2 + |w'|^2) + .5                                    (Sundaram et al. 2010)
    dynamic degree   mean length of the longest 5 % of the flow, over 6 pixels at 256 (VBench calls a clip dynamic above 1)
    smoothness       every second frame again from its neighbours, each moved half of the flow between them: 1 - mean |error|/255

DIS needs some room: frames with a side below 64 are enlarged for it, and flow is counted in their own pixels.
shapes: video (B, C, F, H, W) in [-1, 1];  results (B,)
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOM = 64


class FlowFigures(NamedTuple):
    """Each (B,). warp: in squares of [0, 1]; flow: mean length in pixels; occluded: share of pixels."""

    warp: Tensor
    flow: Tensor
    occluded: Tensor
    dynamic: Tensor
    smoothness: Tensor


def flow_figures(video: Tensor) -> FlowFigures:
    """All figures of every clip.

    Raises:
        ValueError: clips of fewer than 3 frames, or not (B, 1 or 3, F, H, W).
    """
    if video.ndim != 5 or video.shape[1] not in (1, 3) or video.shape[2] < 3:
        raise ValueError(f"clips are {tuple(video.shape)}; allowed: (B, 1 or 3, F, H, W) with F >= 3")
    rows = torch.tensor([_clip(clip) for clip in video], dtype=torch.float64)
    return FlowFigures(*rows.unbind(1))


def _clip(video: Tensor) -> tuple[float, float, float, float, float]:
    import cv2

    frames = _frames(video)
    grey = [f if f.ndim == 2 else cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    enlarged = frames[0].shape[0] / video.shape[2]
    found = []
    for t in range(len(frames) - 1):
        there, back = _flow(dis, grey[t], grey[t + 1]), _flow(dis, grey[t + 1], grey[t])
        seen = _agree(there, back)
        error = np.square((_moved(frames[t + 1], there) - frames[t].astype(np.float32)) / 255)
        error = error if error.ndim == 2 else error.mean(2)
        length = np.linalg.norm(there, axis=2) / enlarged
        longest = np.sort(length.ravel())[-max(1, round(0.05 * length.size)) :].mean()
        limit = 6 * min(video.shape[2:]) / 256
        found.append((error[seen].mean() if seen.any() else 0.0, length.mean(), 1 - seen.mean(), longest / limit))
    warp, flow, occluded, dynamic = (float(v) for v in np.mean(found, axis=0))
    return warp, flow, occluded, dynamic, _smoothness(dis, frames, grey)


def _frames(video: Tensor) -> list[np.ndarray]:
    """(H, W) or (H, W, 3) uint8, large enough for DIS."""
    import cv2

    pixels = ((video.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    frames = [np.ascontiguousarray(f.permute(1, 2, 0).squeeze(2).numpy()) for f in pixels.unbind(1)]
    factor = -(-ROOM // min(frames[0].shape[:2]))
    if factor == 1:
        return frames
    size = (frames[0].shape[1] * factor, frames[0].shape[0] * factor)
    return [cv2.resize(f, size, interpolation=cv2.INTER_CUBIC) for f in frames]


def _flow(dis, a: np.ndarray, b: np.ndarray) -> np.ndarray:  # noqa: ANN001
    return dis.calc(a, b, None)


def _moved(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The frame at p + flow(p), float32."""
    import cv2

    rows, columns = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    return cv2.remap(frame.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _agree(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Where a pixel is seen in both frames."""
    returned = _moved(back, there)
    gap = np.square(there + returned).sum(2)
    return gap < 0.01 * (np.square(there).sum(2) + np.square(returned).sum(2)) + 0.5


def _smoothness(dis, frames: list[np.ndarray], grey: list[np.ndarray]) -> float:  # noqa: ANN001
    errors = []
    for t in range(1, len(frames) - 1, 2):
        there, back = _flow(dis, grey[t - 1], grey[t + 1]), _flow(dis, grey[t + 1], grey[t - 1])
        # The flow half way is taken as that at its ends: I_t(p) from I_{t-1}(p - w/2) and I_{t+1}(p - w'/2).
        again = (_moved(frames[t - 1], 0.5 * back) + _moved(frames[t + 1], 0.5 * there)) / 2
        errors.append(np.abs(again - frames[t].astype(np.float32)).mean())
    return 1 - float(np.mean(errors)) / 255
