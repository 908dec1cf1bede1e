"""A denoiser whose network makes something of its conditions that serves all times: computed once per utterance, used in every step.

bind(cond)   features = net.encode(**cond), once;   then net(x, t, **features) at every time
"""

from torch import Tensor

from fewstep.denoiser import Bound, Cond, Denoiser


class Encoded(dict[str, Tensor]):
    """Conditions that `net.encode` has made, so that they are not encoded again."""


class ConditionedDenoiser(Denoiser):
    """net.encode(**cond) -> features;  net(x (B, ...), t (B,), **features) -> (B, ...)."""

    def encoded(self, cond: Cond | None) -> Encoded:
        """The network's features of conditions, or those themselves."""
        return cond if isinstance(cond, Encoded) else Encoded(self.net.encode(**(cond or {})))  # pyright: ignore[reportCallIssue]

    def bind(self, cond: Cond | None = None, y: Tensor | None = None) -> Bound:
        """With the features of cond, computed now: with their graph, where gradients are on."""
        return Bound(self, self.encoded(cond), y)

    def conditions(self, cond: Cond, label: Tensor) -> Cond:
        return super().conditions(self.encoded(cond), label)
