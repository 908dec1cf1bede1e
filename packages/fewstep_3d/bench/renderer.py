"""`python -m fewstep_3d.bench.renderer`: tabulated fields against direct quadrature, interleaved in one run.

Work: one object, `views` pictures of size x size rays with `samples` samples, from planes of 3 x 32 x 64 x 64 through two hidden layers
of 64; forward, and forward with the gradient of all planes and weights. Agreement: PSNR of the pictures of a band-limited random field.
Times: CPU seconds of the process, best and median of the rounds; each round measures every renderer once. Where nerfstudio is installed
its own components do the same work beside (`nerfstudio/components.py`).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewstep.bench.timing import machine, write
from fewstep_3d.cameras import orbit
from fewstep_3d.metrics import psnr
from fewstep_3d.opacity import NeuS
from fewstep_3d.renderer import Renderer
from fewstep_3d.samplers import Stratified
from fewstep_3d.triplane import TriplaneDecoder


def smooth_planes(seed: int, side: int = 64, waves: int = 5) -> Tensor:
    """(1, 3, 32, side, side): random numbers on waves x waves points, bicubic between them."""
    rough = torch.randn(3, 32, waves, waves, generator=torch.Generator().manual_seed(seed))
    return interpolate(rough, size=(side, side), mode="bicubic", align_corners=True)[None]


class Work:
    """What is rendered; `side` None is direct quadrature."""

    def __init__(self, seed: int, views: int, size: int, samples: int, k: float) -> None:
        torch.manual_seed(seed)
        self.decoder = TriplaneDecoder(32, 64, 2)
        self.planes = smooth_planes(seed).requires_grad_()
        self.cameras = orbit(20 + torch.arange(views) * 360.0 / views, 20.0, 3.0, 40.0, (size, size))
        self.renderer = Renderer(NeuS(k), Stratified(samples))

    def picture(self, side: int | None) -> Tensor:
        """(1, V, H, W, 3)."""
        field = self.decoder.field(self.planes) if side is None else self.decoder.tabulate(self.planes, side)
        return self.renderer.views(field, self.cameras, background=1.0).features


Picture = Callable[[], Tensor]


def seconds(picture: Picture) -> tuple[float, float]:
    """(forward alone, forward and backward), CPU seconds."""
    start = time.process_time()
    with torch.no_grad():
        picture()
    forward = time.process_time() - start
    start = time.process_time()
    picture().square().mean().backward()
    return forward, time.process_time() - start


def pictures(work: Work, sides: Sequence[int]) -> dict[str, Picture]:
    """What is measured."""
    found: dict[str, Picture] = {"direct": partial(work.picture, None)}
    found |= {f"grid {side}": partial(work.picture, side) for side in sides}
    if find_spec("nerfstudio") is not None:
        from fewstep_3d.nerfstudio.components import Components

        peer = Components(work.decoder.width, work.decoder.layers, work.renderer.sampler.samples, work.planes.shape[-1])
        found["nerfstudio"] = partial(peer.picture, work.cameras)
    return found


def measured(work: Work, sides: Sequence[int], rounds: int) -> dict[str, Any]:
    """A row for direct quadrature, one for every side, and one for nerfstudio where it is installed."""
    renderers = pictures(work, sides)
    with torch.no_grad():
        exact = work.picture(None)
        agreement = {f"grid {side}": float(psnr(work.picture(side), exact)) for side in sides}
    for picture in renderers.values():  # what is done but once
        seconds(picture)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in renderers}
    for n in range(rounds):
        for name, picture in renderers.items():
            times[name].append(seconds(picture))
        sys.stderr.write(f"round {n + 1} of {rounds}\n")
    best = {name: [min(x) for x in zip(*t, strict=True)] for name, t in times.items()}
    middle = {name: [statistics.median(x) for x in zip(*t, strict=True)] for name, t in times.items()}
    rows: dict[str, Any] = {}
    for name in renderers:
        rows[name] = {
            "forward_s": best[name][0],
            "forward_backward_s": best[name][1],
            "speedup_forward": best["direct"][0] / best[name][0],
            "speedup_forward_backward": best["direct"][1] / best[name][1],
            "speedup_of_medians": middle["direct"][1] / middle[name][1],
            "agreement_db": agreement.get(name),
        }
        if "nerfstudio" in renderers:
            rows[name]["speedup_over_nerfstudio"] = best["nerfstudio"][1] / best[name][1]
            rows[name]["speedup_over_nerfstudio_of_medians"] = middle["nerfstudio"][1] / middle[name][1]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(prog="python -m fewstep_3d.bench.renderer", description=__doc__)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 48, 64])
    parser.add_argument("--k", type=float, default=20.0, help="sharpness of the surface (default 20)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="FILE")
    args = parser.parse_args(argv)
    command = " ".join(["python -m fewstep_3d.bench.renderer", *(sys.argv[1:] if argv is None else argv)])
    torch.set_num_threads(1)
    work = Work(args.seed, args.views, args.size, args.samples, args.k)
    rows = measured(work, args.sides, args.rounds)
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "sides")}
    write({"bench": "renderer", "command": command, **machine(), **settings, "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
