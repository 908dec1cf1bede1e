"""Give a trained network further scalar conditions, without changing what it computes."""

import inspect
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from fewstep.artifacts import build, describe

M = TypeVar("M", bound=nn.Module)


def with_scalars(net: M, scalars: Mapping[str, float]) -> M:
    """The same network built with `scalars` (name -> scale) beside those it has, and its weights; the new embeddings start at 0.

    Raises:
        ValueError: networks whose class takes no `scalars`.
    """
    if "scalars" not in inspect.signature(type(net).__init__).parameters:
        raise ValueError(f"{type(net).__name__} takes no scalar conditions: it has no argument `scalars`")
    config = describe(net)
    config["init_args"]["scalars"] = {**config["init_args"]["scalars"], **scalars}
    like = next(net.parameters())
    wider = build(config, trusted=(type(net).__module__.split(".")[0],)).to(like.device, like.dtype)
    missing, unexpected = wider.load_state_dict(net.state_dict(), strict=False)
    assert not unexpected and all(".further." in k for k in missing), (missing, unexpected)
    return wider
