"""A small perceptron for toy worlds."""

from torch import Tensor, nn

from fewstep.nets.embedding import TimeEmbedding


class MLP(nn.Module):
    """net(x: (B, dim), t: (B,)) -> (B, dim); `depth` hidden layers of width `hidden`, time embedding added to the first."""

    def __init__(self, dim: int = 2, hidden: int = 128, depth: int = 3, time_scale: float = 100.0) -> None:
        super().__init__()
        self.dim, self.hidden, self.depth, self.time_scale = dim, hidden, depth, time_scale
        self.time = TimeEmbedding(64, hidden, time_scale)
        self.first = nn.Linear(dim, hidden)
        self.rest = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth - 1))
        self.last = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = nn.functional.silu(self.first(x) + self.time(t))
        for layer in self.rest:
            h = nn.functional.silu(layer(h))
        return self.last(h)
