"""The photographs data module: which pictures train, which validate, and what happens to bad ones."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep_restoration.data import Photos
from fewstep_restoration.images import ImageError
from fewstep_restoration.photos import WHEEL_HELD_OUT
from fewstep_restoration.resize import matlab_bicubic


def save(path, side=40, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(folder, n, side=40):
    for i in range(n):
        save(folder / f"{i:02}.png", side, seed=i)
    return folder


def module(folder, **kw):
    data = Photos(str(folder), **({"crop": 32, "batch_size": 3} | kw))
    data.setup("fit")
    return data


def first(data, n):
    return list(itertools.islice(data.train_dataloader(), n))


def same(ours, theirs):
    return all(torch.equal(a[k], b[k]) for a, b in zip(ours, theirs, strict=True) for k in a)


@pytest.mark.parametrize("n", [2, 9, 10, 11, 23])
def test_every_tenth_picture_and_at_least_one_is_held_out(tmp_path, n):
    data = module(fill(tmp_path, n), validate_on=100)
    assert len(data.val) == -(-n // 10)
    assert sorted(data.train.names + data.val.names) == [f"{i:02}" for i in range(n)]


def test_folders_below_are_searched(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "deeper" / "b.jpg")
    data = module(tmp_path)
    assert {*data.train.names, *data.val.names} == {"a", "b"}


def test_a_folder_of_held_out_pictures_leaves_all_others_for_training(tmp_path):
    data = module(fill(tmp_path / "train", 4), held_out=str(fill(tmp_path / "val", 3)))
    assert len(data.train) == 4
    assert len(data.val) == 3


def test_one_picture_is_enough_with_a_held_out_folder_and_too_few_without(tmp_path):
    fill(tmp_path / "one", 1)
    with pytest.raises(ImageError, match="one"):
        module(tmp_path / "one")
    assert len(module(tmp_path / "one", held_out=str(fill(tmp_path / "val", 1))).train) == 1


def test_at_most_so_many_pictures_validate(tmp_path):
    data = module(fill(tmp_path / "train", 2), held_out=str(fill(tmp_path / "val", 5)), validate_on=2)
    assert data.val.names == ["00", "01"]


def test_without_a_folder_the_photographs_of_scikit_image_are_used():
    data = Photos()
    data.setup("fit")
    assert {p.stem for p in data.val.paths} == set(WHEEL_HELD_OUT)
    assert len(data.train.paths) >= 3
    assert not set(data.train.paths) & set(data.val.paths)


def test_batches_are_aligned_crops_in_the_range_of_models(tmp_path):
    for batch in first(module(fill(tmp_path, 5), scale=4), 3):
        assert {k: v.shape for k, v in batch.items()} == {"hr": (3, 3, 32, 32), "lr": (3, 3, 8, 8)}
        for v in batch.values():
            assert v.dtype == torch.float32
            assert -1 <= v.min() < -0.1
            assert 0.1 < v.max() <= 1
        again = matlab_bicubic(batch["hr"], 1 / 4).clamp(-1, 1)
        assert (again - batch["lr"])[..., 3:-3, 3:-3].abs().max() < 0.5 / 127.5 + 1e-5


def test_validation_shows_whole_pictures(tmp_path):
    data = module(fill(tmp_path, 12, side=47))
    batches = list(data.val_dataloader())
    assert len(batches) == 2
    assert batches[0]["hr"].shape == (1, 3, 44, 48)
    assert batches[0]["lr"].shape == (1, 3, 11, 12)
    assert same(batches, list(data.val_dataloader()))


def test_the_stream_depends_on_the_seed_alone(tmp_path):
    fill(tmp_path, 6)
    torch.manual_seed(1)
    ours = first(module(tmp_path), 4)
    torch.manual_seed(2)
    assert same(ours, first(module(tmp_path), 4))
    assert not same(ours, first(module(tmp_path, seed=1), 4))


def test_setting_up_again_changes_nothing(tmp_path):
    data = module(fill(tmp_path, 3))
    train, val = data.train, data.val
    data.setup("validate")
    assert data.train is train
    assert data.val is val


def test_bad_pictures_are_named_once_each_and_the_rest_is_used(tmp_path):
    fill(tmp_path, 4)
    (tmp_path / "zz.png").write_bytes((tmp_path / "01.png").read_bytes()[:300])
    save(tmp_path / "yy.png", side=20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = module(tmp_path)
        first(data, 2)
        first(data, 2)
    texts = [str(w.message) for w in caught if "skipped" in str(w.message)]
    assert len(texts) == 2
    assert any("zz.png" in t for t in texts)
    assert any("yy.png" in t and "32" in t for t in texts)
    assert data.train.names == ["01", "02", "03"]


def test_a_folder_without_a_usable_picture_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"not a picture")
    with warnings.catch_warnings(), pytest.raises(ImageError, match="usable") as error:
        warnings.simplefilter("ignore")
        first(module(tmp_path), 1)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("which", ["folder", "held_out"])
@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_folders_without_pictures_are_errors_that_name_them(tmp_path, which, kind):
    good, bad = fill(tmp_path / "good", 2), tmp_path / "bad"
    if kind == "empty":
        bad.mkdir()
    if kind == "file":
        bad.write_text("")
    with pytest.raises(ImageError) as error:
        module(**({"folder": good} | {which: str(bad)}))
    assert str(bad) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [{"crop": 30}, {"crop": 0}, {"scale": 0}, {"batch_size": 0}])
def test_impossible_settings_are_errors(tmp_path, bad):
    fill(tmp_path, 2)
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        module(tmp_path, **bad).train_dataloader()
