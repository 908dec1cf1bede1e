"""Photographs as training pairs: aligned, deterministic, all symmetries, clear warnings."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep_restoration.images import ImageError
from fewstep_restoration.photos import WHEEL_HELD_OUT, PhotoPairs, wheel_photographs
from fewstep_restoration.resize import matlab_bicubic


def save(path, height, width, seed=0):
    """A smooth random picture."""
    x = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(seed))
    x = matlab_bicubic(x, 8)[0, :, :height, :width].clamp(0, 1)
    Image.fromarray((x.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "a.png", 67, 90, seed=1)
    save(tmp_path / "b.png", 50, 49, seed=2)
    return tmp_path


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_are_aligned(folder, scale):
    """Downscaling the HR crop gives the LR crop, where the kernel stays inside the crop, up to 8-bit rounding."""
    pairs, g = PhotoPairs.from_folder(folder, scale=scale, crop=48), generator()
    for _ in range(20):
        pair = pairs.draw(0, g)
        assert pair["hr"].shape == (3, 48, 48) and pair["lr"].shape == (3, 48 // scale, 48 // scale)
        lr = matlab_bicubic(pair["hr"][None].double(), 1 / scale)[0].clamp(-1, 1)
        error = (lr - pair["lr"]).abs()[:, 2:-2, 2:-2]
        assert error.max() <= 0.5 / 127.5 + 1e-6  # half a grey level


def test_whole_is_the_mod_cropped_photograph(folder):
    pair = PhotoPairs([folder / "a.png"], crop=48).whole(0)
    with Image.open(folder / "a.png") as im:
        hr = torch.from_numpy(np.asarray(im).copy()).permute(2, 0, 1)[:, :64, :88].double()
    lr = matlab_bicubic(hr[None], 1 / 4)[0]
    assert set(pair) == {"hr", "lr"} and pair["hr"].dtype == pair["lr"].dtype == torch.float32
    assert ((pair["hr"] + 1) * 127.5 - hr).abs().max() < 1e-4
    assert pair["lr"].shape == (3, 16, 22)
    assert ((pair["lr"] + 1) * 127.5 - lr.clamp(0, 255)).abs().max() <= 0.5 + 1e-4


def test_draws_depend_on_the_generator_alone(folder):
    first, second = PhotoPairs.from_folder(folder, crop=24), PhotoPairs.from_folder(folder, crop=24)
    first.draw(1, generator(5))  # earlier draws and the global state leave no trace
    torch.manual_seed(7)
    a, b, other = first.draw(0, generator(3)), second.draw(0, generator(3)), first.draw(0, generator(4))
    assert torch.equal(a["hr"], b["hr"]) and torch.equal(a["lr"], b["lr"])
    assert not torch.equal(a["hr"], other["hr"])


def test_all_eight_symmetries_and_all_offsets_occur(tmp_path):
    pairs, g = PhotoPairs([save(tmp_path / "x.png", 32, 32)], crop=32), generator()
    whole = pairs.whole(0)["hr"]
    expected = {s.numpy().tobytes() for k in range(4) for s in (whole.rot90(k, (1, 2)), whole.mT.rot90(k, (1, 2)))}
    drawn = {pairs.draw(0, g)["hr"].numpy().tobytes() for _ in range(100)}
    assert len(expected) == 8 and drawn == expected

    pairs = PhotoPairs([tmp_path / "x.png"], crop=24)
    drawn = {pairs.draw(0, g)["lr"].sort().values.sum().item() for _ in range(200)}
    assert len({round(total, 3) for total in drawn}) == 9  # 3 x 3 places of 6 in 8 pixels, each with its own mean


def test_bad_files_are_named_once_and_skipped(folder):
    (folder / "c.png").write_bytes(b"no picture")
    save(folder / "small.png", 20, 200)
    pairs = PhotoPairs.from_folder(folder, crop=48)
    with pytest.warns(UserWarning) as caught:
        assert len(pairs) == 2
    messages = [str(w.message) for w in caught]
    assert len(messages) == 2
    assert "c.png" in messages[0] and "not an image" in messages[0]
    assert "small.png" in messages[1] and "200 x 20" in messages[1] and "48" in messages[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pairs.whole(1)["hr"].shape == (3, 48, 48)


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="at least one path"):
        PhotoPairs([])
    with pytest.raises(ImageError, match="missing"):
        PhotoPairs.from_folder(tmp_path / "missing")
    pairs = PhotoPairs([save(tmp_path / "tiny.png", 10, 10)])
    with pytest.warns(UserWarning, match="tiny"), pytest.raises(ImageError, match=r"tiny\.png"):
        pairs.draw(0, generator())
    for scale, crop in ((4, 90), (0, 8), (4, 0)):
        with pytest.raises(ValueError, match="multiple of scale"):
            PhotoPairs([tmp_path / "tiny.png"], scale=scale, crop=crop)


def test_photographs_of_the_wheel():
    photographs = wheel_photographs()
    if not photographs:
        pytest.skip("scikit-image without its photographs")
    assert set(WHEEL_HELD_OUT) == {"astronaut", "chelsea", "coffee"}
    assert set(WHEEL_HELD_OUT) < set(photographs)
    assert {"astronaut", "coffee", "motorcycle_left", "motorcycle_right"} <= set(photographs)
    pairs = PhotoPairs([photographs[name] for name in WHEEL_HELD_OUT])
    assert pairs.whole(1)["hr"].shape == (3, 300, 448)
    assert pairs.whole(2)["hr"].shape == (3, 400, 600)
