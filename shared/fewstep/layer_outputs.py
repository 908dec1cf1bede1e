"""What layers of a network put out while it runs."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.nets.adapter import Wrapper


class _Enough(Exception):
    """All layers asked for have run."""


def layer_outputs(net: nn.Module, layers: Sequence[str], run: Callable[[], object]) -> list[Tensor]:
    """The outputs of these modules of `net` during `run()`, with their graphs, in the order of `layers`. What follows the last of them to run
    is not run.

    Raises:
        ValueError: no layers, names that the network does not have, or layers that did not run.
    """
    modules = named_layers(net, layers)
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, inputs: Any, out: Tensor) -> None:
            found[name] = out
            if len(found) == len(modules):
                raise _Enough

        return keep

    hooks = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        run()
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if missing := modules.keys() - found.keys():
        raise ValueError(f"layers {sorted(missing)} of {type(net).__name__} did not run")
    return [found[name] for name in modules]


def named_layers(net: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Name -> module.

    Raises:
        ValueError: no names, or unknown ones.
    """
    while isinstance(net, Wrapper):  # adapters do not change the names
        net = net.net
    modules = dict(net.named_modules())
    if not layers or not set(layers) <= modules.keys():
        known = ", ".join(list(modules)[1:21])
        raise ValueError(f"layers are {list(layers)}; name some of {type(net).__name__}: {known}, ...")
    return {name: modules[name] for name in layers}
