"""fewstep: turn any diffusion or flow model into a generator that needs one to four network evaluations."""

from typing import Any

__version__ = "0.1.0"

# Name -> module; imported on first use so that `import fewstep` and `fewstep --help` cost nothing.
_LAZY = {
    "Denoiser": "fewstep.denoiser",
    "Estimate": "fewstep.estimate",
    "sample": "fewstep.sampling",
    "save": "fewstep.artifacts",
    "load": "fewstep.artifacts",
}
__all__ = ["Denoiser", "Estimate", "__version__", "load", "sample", "save"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
