"""Endless clips of a procedural world."""

import torch
from torch import Tensor

from fewstep_video.data.module import VideoData
from fewstep_video.texts import WordVectors
from fewstep_video.worlds import World

# Seeds of clips that no training draws: those of loaders are mixed from 63 bits.
HELD_OUT = 20_000_000


class Told:
    """The clips of a world with the names of their classes as texts, {"video", "label", "text"}: "right-disc" is two words."""

    def __init__(self, world: World, words: WordVectors) -> None:
        self.world, self.texts = world, torch.stack([words(name) for name in world.names])

    def batch(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.add(self.world.batch(n, generator))

    def add(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with texts."""
        return {**batch, "text": self.texts[batch["label"]]}


class Procedural(VideoData):
    """Batches {"video", "label"} drawn afresh; `held_out` fixed clips, each class as often as the others, validate.

    Args:
        world: what is drawn from.
        held_out: how many clips validate, in one batch.
        words: batches have "text" too, the tokens of their classes' names.
        batch_size, workers, seed: as in `VideoData`.
    """

    def __init__(
        self,
        world: World,
        held_out: int = 256,
        words: WordVectors | None = None,
        batch_size: int = 64,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.world, self.held_out, self.words = world, held_out, words

    def setup(self, stage: str | None = None) -> None:
        self.train, self.val = self.world, held_out(self.world, self.held_out)
        if self.words is not None:
            self.train = Told(self.world, self.words)
            self.val = self.train.add(self.val)


def held_out(world: World, n: int, part: int = 0) -> dict[str, Tensor]:
    """n clips with balanced labels that no training draws; different parts share none. Part 0 chooses checkpoints, 1 and on are for figures."""
    scene = world.balanced(n, HELD_OUT + part)
    return {"video": scene.video, "label": scene.label}
