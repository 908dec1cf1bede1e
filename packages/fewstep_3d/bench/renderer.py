"""`python -m fewstep_3d.bench.renderer`: tabulated fields against direct quadrature, interleaved in one run.

Work: one object, `views` pictures of size x size rays with `samples` samples, from planes of 3 x 32 x 64 x 64 through two hidden layers
of 64; forward, and forward with the gradient of all planes and weights. Agreement: PSNR of the pictures of a band-limited random field.
Times: CPU seconds of the process, best and median of the rounds; each round measures every renderer once.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
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

    def seconds(self, side: int | None) -> tuple[float, float]:
        """(forward alone, forward and backward), CPU seconds."""
        start = time.process_time()
        with torch.no_grad():
            self.picture(side)
        forward = time.process_time() - start
        start = time.process_time()
        self.picture(side).square().mean().backward()
        return forward, time.process_time() - start


def measured(work: Work, sides: Sequence[int], rounds: int) -> dict[str, Any]:
    """A row for direct quadrature and one for every side."""
    with torch.no_grad():
        exact = work.picture(None)
        agreement = {side: float(psnr(work.picture(side), exact)) for side in sides}
    names: list[int | None] = [None, *sides]
    times: dict[int | None, list[tuple[float, float]]] = {name: [] for name in names}
    for n in range(rounds):
        for name in names:
            times[name].append(work.seconds(name))
        sys.stderr.write(f"round {n + 1} of {rounds}\n")
    best = {name: [min(x) for x in zip(*t, strict=True)] for name, t in times.items()}
    middle = {name: [statistics.median(x) for x in zip(*t, strict=True)] for name, t in times.items()}
    return {
        "direct" if name is None else f"grid {name}": {
            "forward_s": best[name][0],
            "forward_backward_s": best[name][1],
            "speedup_forward": best[None][0] / best[name][0],
            "speedup_forward_backward": best[None][1] / best[name][1],
            "speedup_of_medians": middle[None][1] / middle[name][1],
            "agreement_db": None if name is None else agreement[name],
        }
        for name in names
    }


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
    torch.set_num_threads(1)
    work = Work(args.seed, args.views, args.size, args.samples, args.k)
    rows = measured(work, args.sides, args.rounds)
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "sides")}
    write({"bench": "renderer", **machine(), **settings, "rows": rows}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
