"""Real images without a download: the 1797 handwritten digits inside the scikit-learn package.

8x8 pixels of 17 grey levels, ten classes, from 43 writers (E. Alpaydin & C. Kaynak, UCI Optical Recognition of Handwritten Digits,
1998, CC BY 4.0; scikit-learn ships its test part).
"""

from functools import cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.train.data import EndlessData


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) in [-1, 1] and their labels (1797,), in the order of the file.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise ValueError("the digits come with scikit-learn, which is not installed: pip install scikit-learn") from err
    bunch = load_digits()
    x0 = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1  # pyright: ignore[reportAttributeAccessIssue]
    return x0, torch.from_numpy(bunch.target).long()  # pyright: ignore[reportAttributeAccessIssue]


def division(held_out: int = 297, split: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of the training images and of the held-out ones, a random division of number `split`.

    Raises:
        ValueError: nothing is left to train on, or to hold out.
    """
    count = len(digits()[1])
    if not 0 < held_out < count:
        raise ValueError(f"of {count} digits 1 to {count - 1} can be held out, not {held_out}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(split))
    return order[held_out:], order[:held_out]


class _Rows:
    """Some of the digits, by row."""

    def __init__(self, index: Tensor) -> None:
        self.x0, self.label = (v[index] for v in digits())

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, index: list[int]) -> dict[str, Tensor]:
        return {"x0": self.x0[index], "label": self.label[index]}


class Digits(EndlessData):
    """Batches {"x0": (B, 1, 8, 8) in [-1, 1], "label": (B,)}; the held-out images validate, as one batch.

    Args:
        held_out: how many images training never sees.
        split: number of the random division; the classifier of `digits_judge` was trained on that of the defaults.
        seed: of the order.
    """

    def __init__(self, batch_size: int = 64, held_out: int = 297, split: int = 0, seed: int = 0) -> None:
        super().__init__(batch_size, seed=seed)
        self.held_out, self.split = held_out, split

    def setup(self, stage: str | None = None) -> None:
        """Raises ValueError where scikit-learn is not installed, or too many images are held out."""
        self.train, self.val = (_Rows(index) for index in division(self.held_out, self.split))

    def val_dataloader(self) -> DataLoader:
        batch = self.val.rows(list(range(len(self.val))))
        return DataLoader([batch], batch_size=None)  # pyright: ignore[reportArgumentType]
