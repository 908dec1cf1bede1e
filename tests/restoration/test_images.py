"""Property P14: photographs of every kind go through the package without loss."""

import io
import itertools
import warnings

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps

from fewstep_restoration.images import ImageError, Photo, list_photos, read_photo, write_photo

MODES = {(True, False): "L", (True, True): "LA", (False, False): "RGB", (False, True): "RGBA"}
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif_block(orientation=1):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x8298] = "Maker", orientation, "Someone"
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0x829A: 0.125, 0x927C: b"maker\0note"}
    exif[0x8825] = {1: "N"}
    return exif.tobytes()


def picture(channels=3, dtype=np.uint8, height=13, width=17):
    rng = np.random.default_rng(channels)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


def tensor(pixels):
    return torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)


def photo(bits=8, grey=False, alpha=False, **metadata):
    x = tensor(picture(4, np.uint8 if bits == 8 else np.uint16))
    rgb = x[:1].expand(3, -1, -1) if grey else x[:3]
    return Photo(rgb, x[3:] if alpha else None, bits, grey, **metadata)


def assert_same(a, b):
    assert torch.equal(a.rgb, b.rgb)
    assert (a.alpha is None) == (b.alpha is None)
    assert a.alpha is None or torch.equal(a.alpha, b.alpha)
    assert (a.bits, a.grey) == (b.bits, b.grey)


def words(exif):
    """The words of an EXIF block, directory by directory."""
    block = Image.Exif()
    block.load(exif)
    return {k: v for k, v in block.items() if k < 0x8000}, dict(block.get_ifd(0x8769)), dict(block.get_ifd(0x8825))


# Round trips


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_lossless_round_trip_with_metadata(tmp_path, suffix, bits, grey, alpha):
    path = tmp_path / f"größe 写真{suffix}"
    before = photo(bits, grey, alpha, icc=ICC, exif=exif_block())
    write_photo(path, before)
    after = read_photo(path)
    assert_same(before, after)
    assert after.icc == ICC
    assert after.exif is not None
    (main, exif, gps), (main2, exif2, gps2) = words(before.exif), words(after.exif)
    assert (exif, gps) == (exif2, gps2)
    main.pop(0x0112), main2.pop(0x0112, None)
    assert main == main2
    assert suffix != ".png" or after.exif == before.exif
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".bmp"])
def test_other_formats(tmp_path, suffix, grey):
    smooth = torch.linspace(0.2, 0.8, 40).expand(3, 30, 40) * torch.tensor([1.0, 0.8, 0.6])[:, None, None]
    smooth = smooth[:1].expand(3, -1, -1) if grey else smooth
    write_photo(tmp_path / f"x{suffix}", Photo(smooth, grey=grey, icc=ICC, exif=exif_block()))
    after = read_photo(tmp_path / f"x{suffix}")
    assert (after.rgb - smooth).abs().max() < (0.003 if suffix == ".bmp" else 0.03)
    assert after.grey == (grey and suffix != ".webp")
    if suffix != ".bmp":
        assert after.icc == ICC and after.exif == exif_block()


def test_webp_alpha_is_kept(tmp_path):
    before = photo(alpha=True)
    write_photo(tmp_path / "x.webp", before)
    assert torch.equal(read_photo(tmp_path / "x.webp").alpha, before.alpha)


@pytest.mark.parametrize(("grey", "alpha"), MODES)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_other_programs_read_what_is_written(tmp_path, suffix, bits, grey, alpha):
    before = photo(bits, grey, alpha, icc=ICC, exif=exif_block())
    path = tmp_path / f"x{suffix}"
    write_photo(path, before)
    expected = torch.cat([before.rgb[: 1 if grey else 3], *([before.alpha] if alpha else [])]).permute(1, 2, 0)
    expected = (expected.double() * (2**bits - 1)).round().numpy()
    if suffix == ".tif":
        np.testing.assert_array_equal(tifffile.imread(path).reshape(expected.shape), expected)
    if bits == 8:
        with Image.open(path) as im:
            assert im.mode == MODES[grey, alpha]
            np.testing.assert_array_equal(np.asarray(im).reshape(expected.shape), expected)
    elif suffix == ".png":
        with Image.open(path) as im:
            im.load()  # checks every CRC
        out = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).reshape(13, 17, -1)
        order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[expected.shape[-1]]
        np.testing.assert_array_equal(out, expected[..., order])


@pytest.mark.parametrize(("height", "width"), list(itertools.product([1, 2, 31], repeat=2)))
def test_odd_sizes(tmp_path, height, width):
    for bits, suffix in ((8, ".png"), (16, ".png"), (8, ".tif"), (16, ".tif")):
        before = Photo(tensor(picture(3, np.uint8 if bits == 8 else np.uint16, height, width)), bits=bits)
        write_photo(tmp_path / f"x{suffix}", before)
        assert_same(before, read_photo(tmp_path / f"x{suffix}"))


def test_values_are_clamped_and_near_grey_is_averaged(tmp_path):
    x = torch.tensor([-0.5, 0.5, 1.5]).expand(1, 2, 3)
    write_photo(tmp_path / "x.png", Photo(torch.cat([x, x + 0.1, x - 0.1]), grey=True))
    expected = torch.tensor([0, 128, 255]) / 255
    assert torch.equal(read_photo(tmp_path / "x.png").rgb, expected.expand(3, 2, 3))


# Kinds that only come in


def test_palette(tmp_path):
    rgb = Image.fromarray(picture() // 128 * 200)
    rgb.quantize(8).save(tmp_path / "p.png")
    after = read_photo(tmp_path / "p.png")
    assert after.alpha is None and not after.grey
    assert torch.equal(after.rgb, tensor(np.asarray(rgb)))
    rgb.quantize(8).save(tmp_path / "t.png", transparency=3)
    after = read_photo(tmp_path / "t.png")
    hidden = torch.from_numpy(np.asarray(rgb.quantize(8)) == 3)
    assert hidden.any() and torch.equal(after.alpha[0] == 0, hidden)


def test_one_bit_and_transparent_grey(tmp_path):
    Image.fromarray(picture(1)[..., 0] > 99).save(tmp_path / "one.png")
    after = read_photo(tmp_path / "one.png")
    assert after.grey and set(after.rgb.unique().tolist()) == {0.0, 1.0}
    Image.fromarray(picture(1)[..., 0] // 64).save(tmp_path / "key.png", transparency=2)
    after = read_photo(tmp_path / "key.png")
    assert after.grey and torch.equal(after.alpha[0] == 0, after.rgb[0] == 2 / 255)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_rgb_without_its_profile(tmp_path, suffix):
    im = Image.new("CMYK", (16, 8), (0, 255, 255, 0))  # red
    im.save(tmp_path / f"x{suffix}", icc_profile=b"profile of the inks")
    after = read_photo(tmp_path / f"x{suffix}")
    assert after.icc is None and not after.grey
    assert (after.rgb.mean((1, 2)) - torch.tensor([1.0, 0, 0])).abs().max() < 0.02


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_orientation_is_applied_once(tmp_path, suffix, orientation):
    path, again = tmp_path / f"x{suffix}", tmp_path / f"y{suffix}"
    blocks = np.kron(picture(3, height=2, width=3), np.ones((16, 16, 1), np.uint8))
    Image.fromarray(blocks).save(path, exif=exif_block(orientation))
    with Image.open(path) as im:
        expected = tensor(np.asarray(ImageOps.exif_transpose(im).convert("RGB")))
    first = read_photo(path)
    write_photo(again, first)
    second = read_photo(again)
    assert torch.equal(first.rgb, expected)
    assert second.rgb.shape == first.rgb.shape and (second.rgb - first.rgb).abs().mean() < 0.05
    for exif in (first.exif, second.exif):
        block = Image.Exif()
        block.load(exif)
        assert block.get(0x0112, 1) == 1 and block[0x010F] == "Maker"
        assert block.get_ifd(0x8769)[0x927C] == b"maker\0note"


def upright(x, orientation):
    """Orientation by the words of the standard: where row 0 and column 0 of the file lie in the scene."""
    row0, column0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    if row0 in ("left", "right"):
        x = x.transpose(1, 0, 2)
    x = x[::-1] if "bottom" in (row0, column0) else x
    return x[:, ::-1] if "right" in (row0, column0) else x


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["rgb", "planar", "grey+alpha", "png"])
def test_orientation_of_16_bits(tmp_path, kind, orientation):
    pixels = picture(2 if kind == "grey+alpha" else 3, np.uint16)
    if kind == "png":
        path = tmp_path / "x.png"
        write_photo(path, Photo(tensor(pixels), bits=16, exif=exif_block(orientation)))
    else:
        path = tmp_path / "x.tif"
        options = {
            "rgb": {"photometric": "rgb"},
            "planar": {"photometric": "rgb", "planarconfig": "separate"},
            "grey+alpha": {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]},
        }[kind]
        data = np.moveaxis(pixels, -1, 0) if kind == "planar" else pixels
        tifffile.imwrite(path, data, extratags=[(274, "H", 1, orientation, True)], **options)
    after, expected = read_photo(path), tensor(upright(pixels, orientation).copy())
    assert after.bits == 16 and after.grey == (kind == "grey+alpha")
    assert torch.equal(after.rgb, expected[:1].expand(3, -1, -1) if after.grey else expected)
    assert (after.alpha is not None) == after.grey
    assert after.alpha is None or torch.equal(after.alpha, expected[1:])


def test_16_bit_tiff_layouts(tmp_path):
    x, path = picture(4, np.uint16), tmp_path / "x.tif"
    tifffile.imwrite(path, x[..., 0], photometric="miniswhite")
    assert torch.equal(read_photo(path).rgb[0], tensor(65535 - x)[0])
    tifffile.imwrite(path, x, photometric="rgb", extrasamples=["unspecified"])
    assert read_photo(path).alpha is None and torch.equal(read_photo(path).rgb, tensor(x)[:3])
    times = np.concatenate([x[..., :3] * (x[..., 3:] / 65535.0), x[..., 3:]], -1).round().astype(np.uint16)
    tifffile.imwrite(path, times, photometric="rgb", extrasamples=["assocalpha"])
    after = read_photo(path)
    assert ((after.rgb - tensor(x)[:3]).abs() * after.alpha).max() < 2e-5
    for order in "<>":
        tifffile.imwrite(path, x[..., :3], photometric="rgb", byteorder=order, compression="zlib", predictor=True)
        assert torch.equal(read_photo(path).rgb, tensor(x)[:3])
    cv2.imwrite(str(path), np.ascontiguousarray(x[..., 2::-1]))  # LZW
    assert torch.equal(read_photo(path).rgb, tensor(x)[:3])
    tifffile.imwrite(path, x[..., :3], photometric="rgb", bigtiff=True)
    assert torch.equal(read_photo(path).rgb, tensor(x)[:3])
    with tifffile.TiffWriter(path) as tif:  # a thumbnail is no second picture
        tif.write(x[..., :3], photometric="rgb")
        tif.write(x[::4, ::4, :3], photometric="rgb", subfiletype=1)
    assert torch.equal(read_photo(path).rgb, tensor(x)[:3])


def test_content_decides_not_the_extension(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.JPG")
    assert torch.equal(read_photo(tmp_path / "x.JPG").rgb, tensor(picture()))


def test_second_picture_of_a_phone_is_ignored(tmp_path):
    first, second = (Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (50, 200))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    with Image.open(tmp_path / "x.jpg") as im:
        assert im.n_frames == 2
    assert (read_photo(tmp_path / "x.jpg").rgb * 255 - 50).abs().max() <= 1


# Errors


def encoded(kind, pixels, **options):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def tiff(pixels, **options):
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


def bad_files():
    big, deep = picture(3, height=64, width=64), picture(3, np.uint16, height=64, width=64)
    gif = encoded("GIF", picture())
    frames = [Image.fromarray(picture(height=9) + np.uint8(i)) for i in range(2)]
    webp, pages = io.BytesIO(), io.BytesIO()
    frames[0].save(webp, "WEBP", save_all=True, append_images=frames[1:])
    frames[0].save(pages, "TIFF", save_all=True, append_images=frames[1:])
    yield "empty.png", b"", "zero bytes"
    yield "text.jpg", b"hello " * 50, "not an image"
    yield "gif.png", gif, "not an image"
    yield "picture.gif", gif, "extension"
    yield "frames.webp", webp.getvalue(), "2 frames"
    yield "pages.tif", pages.getvalue(), "2 pages"
    yield "float.tif", tiff(picture(1)[..., 0].astype(np.float32)), "IEEEFP of 32 bits"
    yield "float3.tif", tiff(picture().astype(np.float32), photometric="rgb"), "IEEEFP of 32 bits"
    yield "signed.tif", tiff(picture(1)[..., 0].astype(np.int16)), "INT of 16 bits"
    yield "bits32.tif", tiff(picture().astype(np.uint32), photometric="rgb"), "32 bits"
    yield "five.tif", tiff(picture(5), photometric="minisblack", planarconfig="contig"), ""
    five = tiff(picture(5, np.uint16), photometric="minisblack", planarconfig="contig")
    yield "five16.tif", five, "5 channels of 16 bits"
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif")):
        data = encoded(kind, big)
        yield f"half.{suffix}", data[: len(data) // 2], ""
        yield f"head.{suffix}", data[:20], ""
    for compression in (None, "zlib"):
        data = tiff(deep, photometric="rgb", compression=compression)
        yield f"half16{compression}.tif", data[: len(data) // 2], ""
    grey = tiff(deep[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    yield "half16la.tif", grey[: len(grey) // 2], ""
    data = cv2.imencode(".png", deep)[1].tobytes()
    yield "half16.png", data[: len(data) // 2], ""


@pytest.mark.parametrize(("name", "data", "words"), list(bad_files()), ids=lambda v: v if isinstance(v, str) else "")
def test_bad_files_are_errors_that_name_the_file(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError) as caught:
        read_photo(tmp_path / name)
    message = str(caught.value)
    assert name in message and words in message and "allowed:" in message and "\n" not in message
    assert len(message) < 500 + len(str(tmp_path))


def test_any_truncation_is_an_error_or_complete(tmp_path):
    """Cut anywhere, a file is refused or read in full (what follows the pixels may be missing), never half read."""
    for suffix, bits in ((".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".webp", 8), (".jpg", 8)):
        path = tmp_path / f"x{suffix}"
        write_photo(path, photo(bits))
        data, whole = path.read_bytes(), read_photo(path)
        for cut in range(0, len(data), 29):
            path.write_bytes(data[:cut])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    part = read_photo(path)
                except ImageError:
                    continue
            assert_same(whole, part)


def test_missing_file_and_folder_as_file(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.png: no such file"):
        read_photo(tmp_path / "nothing.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"folder\.png: cannot be read"):
        read_photo(tmp_path / "folder.png")


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("x.jpg", photo(16), "16-bit"),
        ("x.webp", photo(16), "16-bit"),
        ("x.jpg", photo(alpha=True), "alpha"),
        ("x.bmp", photo(alpha=True), "alpha"),
        ("x.gif", photo(), "extension"),
        ("x", photo(), "extension"),
        ("none/x.png", photo(), "does not exist"),
        ("x.png", Photo(torch.rand(1, 4, 4)), "rgb"),
        ("x.png", Photo(torch.rand(3, 4, 4), torch.rand(1, 4, 5)), "alpha"),
        ("x.png", Photo(torch.full((3, 4, 4), float("nan"))), "finite"),
        ("x.png", Photo(torch.zeros(3, 4, 4, dtype=torch.uint8)), "uint8"),
        ("x.png", Photo(torch.zeros(3, 4, 4), bits=12), "bits"),
        ("x.webp", Photo(torch.zeros(3, 1, 20000)), "cannot be written"),
        ("x.jpg", Photo(torch.zeros(3, 4, 4), exif=b"Exif\0\0II*\0" + bytes(70000)), "EXIF"),
    ],
)
def test_refused_writes_leave_nothing_behind(tmp_path, name, bad, words):
    with pytest.raises(ImageError, match=words) as caught:
        write_photo(tmp_path / name, bad)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    write_photo(path, photo())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ImageError, match="No space left"):
        write_photo(path, photo(grey=True))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_list_photos(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt", "deep/c.tif"):
        (tmp_path / name).touch()
    assert list_photos(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b.PNG"]
    assert list_photos(tmp_path, recursive=True) == [tmp_path / n for n in ("a.jpg", "b.PNG", "deep/c.tif")]
    (tmp_path / "empty").mkdir()
    for folder, words in (("gone", "no such folder"), ("a.jpg", "not a folder"), ("empty", "no picture")):
        with pytest.raises(ImageError, match=f"{folder}: {words}"):
            list_photos(tmp_path / folder)
