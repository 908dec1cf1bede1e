"""The noise schedule of CogVideoX (arXiv:2408.06072): a table of betas whose signal-to-noise ratio is divided, for large videos.

abar' = abar/(k + (1 - k) abar),   that is  SNR' = SNR/k,   then rescaled to no signal at the last index
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.integrations.diffusers_config import Sampling, betas, read
from fewstep.paths.betas import Betas, ZeroTerminalSNR
from fewstep.paths.tabulated import IndexedVP

SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")


@dataclass(frozen=True)
class DividedSNR(Betas):
    """`betas` with the signal-to-noise ratio of every index divided by `by`."""

    betas: Betas
    by: float = 3.0

    def __call__(self) -> Tensor:
        bar = (1 - self.betas()).cumprod(0)
        bar = bar / (self.by + (1 - self.by) * bar)
        return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def read_cogvideox(config: Mapping[str, Any]) -> Sampling:
    """The schedule of either scheduler, sampled by DDIM on its own grid.

    Raises:
        ValueError: as `integrations.diffusers_config.read`.
    """
    from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler

    given = {k: p.default for k, p in inspect.signature(CogVideoXDDIMScheduler.__init__).parameters.items()}
    given = {k: v for k, v in (given | dict(config)).items() if k != "self" and not k.startswith("_")}
    plain = {k: v for k, v in given.items() if k not in ("snr_shift_scale", "rescale_betas_zero_snr")}
    found = read({"_class_name": "DDIMScheduler", **plain})
    table: Betas = DividedSNR(betas({**plain, "rescale_betas_zero_snr": False}), float(given["snr_shift_scale"]))
    if given["rescale_betas_zero_snr"]:
        table = ZeroTerminalSNR(table)
    return replace(found, path=IndexedVP(table))
