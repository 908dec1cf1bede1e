"""The configuration of a diffusers model as its config.json would hold it."""

from collections.abc import Mapping
from typing import Any


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lists in place of tuples, also inside: diffusers' classes concatenate and compare lists."""
    return {k: _lists(v) for k, v in config.items()}


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value
