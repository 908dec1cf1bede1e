"""Samples of an earlier policy, kept for several updates: what is held is part of the checkpoint, so that a run resumes bit for bit."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.distill.pool import of_all_ranks


class Experience(nn.Module):
    """Columns (N, ...) by name, of this process; buffers hold those of all processes, (ranks, N, ...), since one of them writes the checkpoint."""

    def hold(self, columns: Mapping[str, Tensor]) -> None:
        """Replace all that is held."""
        self._keep(_stacked(columns))

    def add(self, columns: Mapping[str, Tensor], size: int) -> None:
        """Put rows behind those held, and forget the oldest beyond `size` rows."""
        held, new = self._held(), _stacked(columns)
        self._keep({k: (torch.cat([held[k], v], 1) if held else v)[:, -size:] for k, v in new.items()})

    def rows(self, which: Tensor | slice = slice(None)) -> dict[str, Tensor]:
        """These rows of every column of this process."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        return {name: v[rank][which] for name, v in self._held().items()}

    def __len__(self) -> int:
        return next((v.shape[1] for v in self.buffers()), 0)

    def _held(self) -> dict[str, Tensor]:
        return {k.removeprefix("held_"): getattr(self, k) for k in self._buffers}

    def _keep(self, columns: Mapping[str, Tensor]) -> None:
        for name in [*self._buffers]:
            delattr(self, name)
        for name, values in columns.items():
            self.register_buffer(f"held_{name}", values.detach().clone())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """The columns are known only from samples: make room for what a checkpoint holds."""
        found = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(f"{prefix}held_")}
        self._keep({k.removeprefix("held_"): torch.zeros_like(v) for k, v in found.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _stacked(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of all processes, (ranks, N, ...)."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return {k: v.unflatten(0, (ranks, -1)) for k, v in of_all_ranks(dict(columns)).items()}
