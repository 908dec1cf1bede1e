"""A small perceptron for toy worlds."""

from collections.abc import Mapping

from torch import Tensor, nn

from fewstep.nets.embedding import Embeddings


class MLP(nn.Module):
    """net(x: (B, dim), t: (B,)) -> (B, dim); `depth` hidden layers of width `hidden`, time embedding added to the first.

    scalars: further scalar conditions, name -> scale; each is then a keyword argument (B,) of the network.
    """

    def __init__(
        self,
        dim: int = 2,
        hidden: int = 128,
        depth: int = 3,
        time_scale: float = 100.0,
        scalars: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.hidden, self.depth, self.time_scale = dim, hidden, depth, time_scale
        self.scalars = dict(scalars or {})
        self.time = Embeddings(64, hidden, time_scale, scalars)
        self.first = nn.Linear(dim, hidden)
        self.rest = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth - 1))
        self.last = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, t: Tensor, **scalars: Tensor) -> Tensor:
        h = nn.functional.silu(self.first(x) + self.time(t, scalars))
        for layer in self.rest:
            h = nn.functional.silu(layer(h))
        return self.last(h)
