"""A predictor that ranks candidates before they are scored: a small network trained on pairs (USF's S^3, arXiv:2312.07243).

    L = mean over pairs with score_i < score_j of max(0, margin - (p_j - p_i))

Only the order of its predictions p means something.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ranker:
    """features (N, F) -> predicted score (N,), less is better.

    Args:
        hidden: width of its two hidden layers; iterations: of Adam; pairs: drawn in each.
    """

    def __init__(self, hidden: int = 64, iterations: int = 200, pairs: int = 512, margin: float = 0.1) -> None:
        self.hidden, self.iterations, self.pairs, self.margin = hidden, iterations, pairs, margin

    def fit(self, features: Tensor, scores: Sequence[float], generator: torch.Generator) -> None:
        """Learn the order of these candidates; scores may be infinite.

        Raises:
            ValueError: fewer than two candidates.
        """
        if len(scores) < 2:
            raise ValueError(f"a ranking needs at least 2 candidates, not {len(scores)}")
        self.mean, self.std = features.mean(0), features.std(0).clamp(min=1e-6)
        f, h = features.shape[1], self.hidden
        self.net = nn.Sequential(nn.Linear(f, h), nn.SiLU(), nn.Linear(h, h), nn.SiLU(), nn.Linear(h, 1))
        for p in self.net.parameters():  # by the generator, so that a search can be repeated
            p.data = torch.randn(p.shape, generator=generator) / (p.shape[-1] ** 0.5 if p.ndim > 1 else 1e3)
        x, rank = self._scaled(features), torch.tensor(scores).argsort().argsort()
        optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2)
        with torch.enable_grad():
            for _ in range(self.iterations):
                i, j = torch.randint(len(x), (2, self.pairs), generator=generator)
                p = self.net(x)[:, 0]
                gap = torch.where(rank[i] < rank[j], p[j] - p[i], p[i] - p[j])[i != j]
                optimizer.zero_grad()
                (self.margin - gap).relu().mean().backward()
                optimizer.step()

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """Predicted scores (N,)."""
        return self.net(self._scaled(features))[:, 0]

    def _scaled(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.std).float()
