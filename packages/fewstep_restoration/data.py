"""Data modules of restoration: any folder of photographs, or those inside the scikit-image package."""

from torch.utils.data import DataLoader

from fewstep.train.data import EndlessData
from fewstep_restoration.images import ImageError, list_photos
from fewstep_restoration.photos import WHEEL_HELD_OUT, PhotoPairs, wheel_photographs


class _Whole:
    """Whole photographs as a validation set."""

    def __init__(self, pairs: PhotoPairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict:
        return self.pairs.whole(i)


class Photos(EndlessData):
    """Random crops for training, whole held-out photographs for validation; batches {"hr", "lr"} in [-1, 1].

    Args:
        folder: of training images (png, jpg, webp, bmp, tiff; searched recursively); the scikit-image photographs where not given.
        held_out: folder of validation images. Where not given, every tenth image of `folder` (at least one) is held out,
            or, without a folder, the photographs named in `photos.WHEEL_HELD_OUT`.
        scale, crop: magnification, and side of the high-resolution crops.
        batch_size, workers: of the training loader, per process.
        validate_on: at most this many held-out photographs.
        seed: of order, crops and flips.
    """

    def __init__(
        self,
        folder: str | None = None,
        held_out: str | None = None,
        scale: int = 4,
        crop: int = 96,
        batch_size: int = 16,
        workers: int = 0,
        validate_on: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        self.folder, self.held_out, self.scale, self.crop = folder, held_out, scale, crop
        self.validate_on = validate_on

    def setup(self, stage: str | None = None) -> None:
        """Find and decode the photographs. Raises ImageError where none is usable."""
        if hasattr(self, "train"):
            return
        if self.folder is None:
            photos = wheel_photographs()
            train = [p for name, p in photos.items() if name not in WHEEL_HELD_OUT]
            val = [photos[name] for name in WHEEL_HELD_OUT]
        else:
            train, val = list_photos(self.folder, recursive=True), []
            if self.held_out is None and len(train) > 1:
                val, train = train[::10], [p for i, p in enumerate(train) if i % 10]
        if self.held_out is not None:
            val = list_photos(self.held_out, recursive=True)
        if not val:
            raise ImageError(f"{self.folder} holds one image: give more, or a folder of held-out images")
        self.train = PhotoPairs(train, self.scale, self.crop)
        self.val = PhotoPairs(val[: self.validate_on], self.scale, self.crop)
        for pairs in (self.train, self.val):
            len(pairs)  # decodes now, so that an unusable folder ends the run before it writes anything

    def val_dataloader(self) -> DataLoader:
        return DataLoader(_Whole(self.val), batch_size=1)  # pyright: ignore[reportArgumentType]
