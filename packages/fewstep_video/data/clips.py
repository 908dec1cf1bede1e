"""Clips of one's own videos: batches of windows from a folder."""

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fewstep.train.tell import tell
from fewstep_video.data.corpora import Corpus, Item
from fewstep_video.data.module import VideoData
from fewstep_video.data.windows import InMemory, Reading, Video, Window
from fewstep_video.files import VideoError


class Windows:
    """A `Drawable` of {"video": (3, F, H, W), condition}: a window of every video, at a random place.

    Args:
        videos: with the condition of each.
        condition: its name.
    """

    def __init__(self, videos: list[tuple[Video, Tensor]], condition: str) -> None:
        self.videos, self.condition = videos, condition

    def __len__(self) -> int:
        return len(self.videos)

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        video, value = self.videos[index]
        start = int(torch.randint(video.starts, (), generator=generator))
        return {"video": video.clip(start), self.condition: value}

    def even(self, most: int) -> dict[str, Tensor]:
        """At most so many windows, spread evenly over all places of all videos, as one batch."""
        places = [(video, value, start) for video, value in self.videos for start in range(video.starts)]
        index = torch.linspace(0, len(places) - 1, min(most, len(places))).round().long().tolist()
        chosen = [places[i] for i in index]
        clips = torch.stack([video.clip(start) for video, _, start in chosen])
        return {"video": clips, self.condition: torch.stack([value for _, value, _ in chosen])}


class Clips(VideoData):
    """Batches {"video": (B, 3, F, H, W), "label" or "text"} of a folder's videos; some videos are held out whole, and their windows validate.

    Videos that are damaged, too short or too slow are named and left out.

    Args:
        corpus: of videos.
        window: that is cut from them; reading: how they are held, in memory unless given.
        held_out: videos that training never sees, chosen by the number `split`; of a class that is left without a video they take the others'
            labels in turn, since what validation compares are laws.
        validate_on: at most so many windows of theirs, in one batch.
        batch_size, workers, seed: as in `VideoData`.
    """

    def __init__(
        self,
        corpus: Corpus,
        window: Window,
        held_out: int = 4,
        validate_on: int = 256,
        split: int = 0,
        batch_size: int = 32,
        workers: int = 0,
        seed: int = 0,
        reading: Reading | None = None,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.reading = reading or InMemory()
        self.corpus, self.window, self.held_out, self.split, self.validate_on = (
            corpus,
            window,
            held_out,
            split,
            validate_on,
        )

    def setup(self, stage: str | None = None) -> None:
        """Raises VideoError where nothing is left to train on, or to hold out."""
        if hasattr(self, "train"):
            return
        videos = readable(self.corpus.items(), self.window, self.reading)
        if not 0 < self.held_out < len(videos):
            raise VideoError(
                f"{self.corpus.folder}: {len(videos)} usable videos, {self.held_out} of them held out; allowed: 1 to {len(videos) - 1}"
            )
        order = torch.randperm(len(videos), generator=torch.Generator().manual_seed(self.split)).tolist()
        held = set(order[: self.held_out])
        train = [v for i, v in enumerate(videos) if i not in held]
        condition = self.corpus.condition
        self.train, self.test = Windows(train, condition), Windows([videos[i] for i in sorted(held)], condition)
        self.val = self.test.even(self.validate_on)
        if condition == "label":
            self.val["label"] = known_labels(self.val["label"], torch.stack([value for _, value in train]).unique())
        tell(f"video: {len(train)} videos to train on, {len(held)} held out")


def readable(items: list[Item], window: Window, reading: Reading) -> list[tuple[Video, Tensor]]:
    """What can be used, with a warning for each that cannot."""
    found = []
    for item in items:
        try:
            found.append((reading(item.path, window), item.value))
        except VideoError as error:
            rank_zero_warn(f"left out: {error}")
    return found


def known_labels(label: Tensor, known: Tensor) -> Tensor:
    """Labels that are not known are replaced by the known ones in turn."""
    turn = known[torch.arange(len(label)) % len(known)]
    return torch.where(torch.isin(label, known), label, turn)
