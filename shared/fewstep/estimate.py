"""What every solver, guidance rule and loss consumes: the pair (x0, eps) of a state x_t = a x0 + b y + s eps."""

from collections.abc import Callable

from torch import Tensor


class Estimate:
    """x0 and eps, both (B, ...), either as tensors or as functions evaluated on first use.

    Keeping the pair avoids the 0/0, and the loss of digits, of converting back and forth where a or s vanishes;
    being lazy it costs nothing to carry the half that a solver does not use.
    """

    __slots__ = ("_eps", "_x0")

    def __init__(self, x0: Tensor | Callable[[], Tensor], eps: Tensor | Callable[[], Tensor]) -> None:
        self._x0, self._eps = x0, eps

    @property
    def x0(self) -> Tensor:
        """The clean data."""
        if not isinstance(self._x0, Tensor):
            self._x0 = self._x0()
        return self._x0

    @property
    def eps(self) -> Tensor:
        """The noise."""
        if not isinstance(self._eps, Tensor):
            self._eps = self._eps()
        return self._eps

    def map(self, f: Callable[[Tensor, Tensor], Tensor], other: "Estimate") -> "Estimate":
        """f applied to both halves of two estimates of the same state: guidance is affine, so it acts on each alike."""
        return Estimate(lambda: f(self.x0, other.x0), lambda: f(self.eps, other.eps))
