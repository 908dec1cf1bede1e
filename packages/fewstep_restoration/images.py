"""Read and write photographs without losing what they carry: 8 or 16 bits, grey, alpha, ICC profile, EXIF.

Tensors are (3, H, W) or (1, H, W), float32 in [0, 1]; integers exist only inside this file, as arrays (H, W, C) of
uint8 or uint16 with C = 1 grey, 2 grey + alpha, 3 colour, 4 colour + alpha.

Pillow reads and writes 8 bits and the metadata. It cuts 16-bit colour down to 8, so those pixels come from OpenCV
(tifffile for the TIFF layouts OpenCV gets wrong) and are written here.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fewstep.whole_file import whole

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DEEP_SUFFIXES = (".png", ".tif", ".tiff")  # can hold 16 bits
ALPHA_SUFFIXES = (".png", ".webp", ".tif", ".tiff")

_ALLOWED = f"one 8- or 16-bit picture, grey or colour, with or without alpha, in {' '.join(SUFFIXES)}"
_ORIENTATION = 0x0112
# What to keep of a TIFF's own tags: words about the photograph, never the layout of its pixels.
# ImageDescription, Make, Model, resolution, Software, DateTime, Artist, Copyright, EXIF and GPS directories.
_TIFF_WORDS = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853)
_PIL_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}
_PIL_MODES |= {"RGBa": "RGBA", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}

Pixels: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # (H, W, C), uint8 or uint16


class ImageError(ValueError):
    """A photograph cannot be read or written. One line: the file, what is wrong, what is allowed."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph and what belongs to it.

    Attributes:
        rgb: (3, H, W) float32 in [0, 1], upright; three equal channels when `grey`.
        alpha: (1, H, W) float32 in [0, 1], 0 transparent, not multiplied into rgb; None when the picture is opaque.
        bits: integer depth of the file.
        grey: the file has one colour channel. Writing keeps the mean of rgb.
        icc: ICC profile of rgb; None after a conversion from CMYK, whose profile no longer applies.
        exif: EXIF block starting with b"Exif\\0\\0", orientation tag already applied and reset to 1.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    bits: Literal[8, 16] = 8
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None


def read_photo(path: str | Path) -> Photo:
    """Read one photograph: png, jpg, jpeg, webp, bmp, tif or tiff; the content decides, not the extension.

    Palettes become RGB(A), CMYK becomes RGB (plain conversion, profile dropped), the EXIF orientation is applied once.

    Raises:
        ImageError: missing or empty file, extension not allowed, not an image, truncated, several pages or frames,
            float samples, depth other than 1-8 or 16 bits, unknown channel layout.
    """
    path = Path(path)
    _check_suffix(path, SUFFIXES, "pictures")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; allowed: {_ALLOWED}") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); allowed: {_ALLOWED}") from error
    try:
        return _decode(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}; allowed: {_ALLOWED}") from error.__cause__


def write_photo(path: str | Path, photo: Photo) -> None:
    """Write one photograph; the extension chooses the format.

    The file appears complete or not at all: it is written under a temporary name in the same folder, then renamed.
    png and tif(f) are lossless; jpg and webp use quality 95. bmp has no place for ICC and EXIF and drops them; webp has
    no grey and stores RGB.

    Raises:
        ImageError: extension not allowed, 16 bits or alpha in a format without them, rgb or alpha of wrong shape, dtype
            or not finite (values outside [0, 1] are clamped), missing folder, disk errors.
    """
    path = Path(path)
    _check_suffix(path, SUFFIXES, "pictures")
    if photo.bits not in (8, 16):
        raise ImageError(f"{path}: bits is {photo.bits}; allowed: 8, 16")
    if photo.bits == 16:
        _check_suffix(path, DEEP_SUFFIXES, "16-bit pictures")
    if photo.alpha is not None:
        _check_suffix(path, ALPHA_SUFFIXES, "pictures with alpha")
    _check_tensors(path, photo)
    if not path.parent.is_dir():
        raise ImageError(f"{path}: folder {path.parent} does not exist; allowed: an existing folder")
    try:
        with whole(path) as part:
            part.write_bytes(_encode(photo, path.suffix.lower()))
    except (OSError, ValueError, struct.error) as error:
        raise ImageError(f"{path}: cannot be written ({_one_line(error)}); allowed: {_ALLOWED}") from error


def list_photos(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Sorted paths of the photographs in `folder` (and below it if `recursive`), chosen by extension.

    Files whose name starts with a dot are left out.

    Raises:
        ImageError: the folder is missing, is a file, or holds no photograph.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; allowed: a folder")
    found = folder.rglob("*") if recursive else folder.iterdir()
    photos = [p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not photos:
        below = " or below" if recursive else ""
        raise ImageError(f"{folder}: no picture in it{below}; allowed: at least one of {' '.join(SUFFIXES)}")
    return sorted(photos)


def _check_suffix(path: Path, allowed: tuple[str, ...], what: str) -> None:
    if path.suffix.lower() not in allowed:
        raise ImageError(f"{path}: extension {path.suffix!r} cannot hold {what}; allowed: {' '.join(allowed)}")


def _check_tensors(path: Path, photo: Photo) -> None:
    size = tuple(photo.rgb.shape[-2:])
    for name, x, channels in (("rgb", photo.rgb, 3), ("alpha", photo.alpha, 1)):
        if x is None:
            continue
        if tuple(x.shape) != (channels, *size) or 0 in size or not x.is_floating_point() or not x.isfinite().all():
            what = f"{x.dtype} of shape {tuple(x.shape)}"
            raise ImageError(f"{path}: {name} is {what}; allowed: ({channels}, H, W), float, finite, sizes equal")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# Reading


def _decode(data: bytes) -> Photo:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ImageError("the file has zero bytes")
    tiff = data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    try:
        pixels, icc, exif = _decode_tiff(data) if tiff else _decode_other(data)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image, or a damaged one") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels ({_one_line(error)})") from error
    # What Pillow and tifffile document or are seen to raise on broken data.
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, EOFError, struct.error) as error:
        raise ImageError(f"truncated or damaged image ({_one_line(error)})") from error
    x = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1).contiguous()
    channels, bits = len(x), 16 if pixels.dtype == np.uint16 else 8
    rgb, alpha = (x, None) if channels in (1, 3) else (x[:-1], x[-1:].clone())
    return Photo(rgb.expand(3, -1, -1).clone(), alpha, bits, channels < 3, icc, exif)


def _decode_other(data: bytes) -> tuple[Pixels, bytes | None, bytes | None]:
    """Anything but TIFF -> upright pixels, ICC, EXIF."""
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "BMP", "DIB")) as im:
        frames = getattr(im, "n_frames", 1)
        # Phones store a depth map or a preview as second frame of a JPEG (MPO); the first is the photograph.
        if frames > 1 and im.format != "MPO":
            raise ImageError(f"the file holds {frames} frames")
        im.load()
        deep = im.format == "PNG" and data[24] == 16  # bit depth in the IHDR chunk
        pixels = _deep_png(data, im) if deep else _shallow(im)
        icc = None if im.mode == "CMYK" else im.info.get("icc_profile")
        exif, raw = im.getexif(), im.info.get("exif")
        turn = exif.get(_ORIENTATION, 1)
        if raw:
            raw = _reset_orientation(raw)
        elif exif:
            exif[_ORIENTATION] = 1
            raw = exif.tobytes()
    return _upright(pixels, turn), icc, raw or None


def _decode_tiff(data: bytes) -> tuple[Pixels, bytes | None, bytes | None]:
    """TIFF -> upright pixels, ICC, EXIF. 16 bits by OpenCV or tifffile, the rest by Pillow."""
    import tifffile
    from PIL import Image

    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        every: list[Any] = list(tif.pages)
        page, pages = every[0], 1 + sum(not other.is_reduced for other in every[1:])  # thumbnails do not count
        bits, kind, layout = page.bitspersample, page.sampleformat, page.photometric
        profile = page.tags.get(34675)
        if pages > 1:
            raise ImageError(f"the file holds {pages} pages")
        if kind not in (1, 4):  # unsigned, undefined
            raise ImageError(f"samples are {getattr(kind, 'name', kind)} of {bits} bits, not unsigned integers")
        if bits != 16 and bits not in range(1, 9):
            raise ImageError(f"samples have {bits} bits")
        if bits == 16:
            pixels = _deep_tiff(data, page)
        else:
            with Image.open(io.BytesIO(data), formats=("TIFF",)) as im:
                im.load()  # applies the orientation
                pixels = _shallow(im)
    icc = None if profile is None or layout == 5 else bytes(profile.value)
    words = Image.Exif()
    if data[2:4] not in (b"+\0", b"\0+"):  # Pillow finds EXIF in a classic TIFF only, not in a BigTIFF
        words.load(data)
    for tag in list(words):
        if tag not in _TIFF_WORDS:
            del words[tag]
    return pixels, icc, words.tobytes() if words else None


def _shallow(im: "Image.Image") -> Pixels:
    """A loaded Pillow image of at most 8 bits -> uint8 (H, W, C)."""
    if im.mode not in _PIL_MODES:
        raise ImageError(f"colour layout {im.mode!r} is not supported")
    mode = _PIL_MODES[im.mode]
    if "transparency" in im.info and mode in ("L", "RGB"):
        mode = {"L": "LA", "RGB": "RGBA"}[mode]
    pixels = np.asarray(im.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def _deep_png(data: bytes, im: "Image.Image") -> Pixels:
    """16-bit PNG -> uint16 (H, W, C)."""
    pixels = _opencv(data)
    if data[25] == 4:  # grey + alpha, which OpenCV spreads over BGRA
        return pixels[..., [0, 3]]
    key = im.info.get("transparency")
    if data[25] == 0 and key is not None:  # a grey value that means transparent; OpenCV honours it in colour only
        return np.concatenate([pixels, np.where(pixels == key, 0, 65535).astype(np.uint16)], -1)
    return pixels


def _deep_tiff(data: bytes, page: Any) -> Pixels:
    """16-bit TIFF -> upright uint16 (H, W, C)."""
    from PIL import Image

    channels, layout, extra = page.samplesperpixel, int(page.photometric), [int(e) for e in page.extrasamples]
    if (layout, channels - len(extra)) not in ((0, 1), (1, 1), (2, 3)) or len(extra) > 1:
        raise ImageError(f"{channels} channels of 16 bits, photometric {layout}, {len(extra)} extra, not supported")
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**30)
    if page.imagewidth * page.imagelength > limit:
        raise ImageError(f"too many pixels ({page.imagewidth} x {page.imagelength}, limit {limit})")
    if channels == 2 or (page.planarconfig == 2 and channels > 1):  # OpenCV 4.10: cut to 8 bits, scrambled
        pixels = page.asarray().squeeze()
        pixels = pixels.reshape(page.shaped[1:]) if pixels.ndim != 3 else pixels
        pixels = np.moveaxis(pixels, 0, -1) if page.planarconfig == 2 else pixels
        turn = page.tags.get(_ORIENTATION)
        pixels = _upright(pixels, int(turn.value) if turn is not None else 1)
    else:
        pixels = _opencv(data)  # applies TIFF orientation, whatever the flags say
    if layout == 0:  # white is zero
        pixels = np.concatenate([65535 - pixels[..., :1], pixels[..., 1:]], -1)
    if extra == [0]:  # a channel of unknown meaning
        pixels = pixels[..., :-1]
    if extra == [1]:  # colours multiplied by alpha
        alpha = pixels[..., -1:].astype(np.float64)
        colour = np.rint(pixels[..., :-1] * (65535 / np.maximum(alpha, 1))).clip(0, 65535)
        pixels = np.concatenate([colour, alpha], -1).astype(np.uint16)
    return pixels


def _opencv(data: bytes) -> Pixels:
    """Decode to uint16 (H, W, C), colours in RGB order. The bytes come from memory: cv2.imread fails on some names."""
    import cv2

    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"truncated or damaged image ({_one_line(error)})") from error
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError("truncated, damaged or in an unknown 16-bit layout")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}
    return pixels[..., order[pixels.shape[-1]]]


def _upright(pixels: Pixels, turn: int) -> Pixels:
    """Apply EXIF orientation 1-8: odd mirrorings, half and quarter turns; unknown values leave it as it is."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _reset_orientation(exif: bytes) -> bytes:
    """Set the orientation to 1 in place: a rewritten block would break the offsets inside maker notes."""
    block = bytearray(exif if exif.startswith(b"Exif\0\0") else b"Exif\0\0" + exif)
    order = "<" if block[6:8] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", block, 10)
        (count,) = struct.unpack_from(order + "H", block, 6 + start)
        for entry in range(8 + start, 8 + start + 12 * count, 12):
            if struct.unpack_from(order + "H", block, entry) == (_ORIENTATION,):
                struct.pack_into(order + "HIHH", block, entry + 2, 3, 1, 1, 0)
    except struct.error:  # Pillow reads such a block as far as it goes, and so do viewers
        pass
    return bytes(block)


# Writing


def _encode(photo: Photo, suffix: str) -> bytes:
    from PIL import Image

    colour = photo.rgb.double().mean(0, keepdim=True) if photo.grey else photo.rgb.double()
    x = colour if photo.alpha is None else torch.cat([colour, photo.alpha.to(colour)])
    top, dtype = (255, np.uint8) if photo.bits == 8 else (65535, np.uint16)
    x = (x.detach().cpu().clamp(0, 1) * top).round().permute(1, 2, 0)
    pixels = np.ascontiguousarray(x.numpy().astype(dtype))
    if suffix in (".tif", ".tiff"):
        return _tiff(pixels, photo.icc, photo.exif)
    if photo.bits == 16:
        return _png16(pixels, photo.icc, photo.exif)
    im = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    kind, options = {
        ".png": ("PNG", {}),
        ".webp": ("WEBP", {"quality": 95, "exact": True}),
        ".bmp": ("BMP", {}),
    }.get(suffix, ("JPEG", {"quality": 95, "subsampling": 0}))
    if kind != "BMP":
        options |= {name: value for name, value in (("icc_profile", photo.icc), ("exif", photo.exif)) if value}
    out = io.BytesIO()
    im.save(out, kind, **options)
    return out.getvalue()


def _png16(pixels: Pixels, icc: bytes | None, exif: bytes | None) -> bytes:
    """uint16 (H, W, C) -> PNG. OpenCV writes neither grey + alpha nor metadata."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    up = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # filter 2: minus the row above, modulo 256
    body = np.concatenate([np.full((height, 1), 2, np.uint8), up], 1).tobytes()
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if icc:
        parts.append(chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    if exif:
        parts.append(chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")])


def _tiff(pixels: Pixels, icc: bytes | None, exif: bytes | None) -> bytes:
    """uint8 or uint16 (H, W, C) -> TIFF: deflate, horizontal differences. Pillow has no 16-bit colour."""
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    height, width, channels = pixels.shape
    differences = pixels.copy()
    differences[:, 1:] -= pixels[:, :-1]
    body = zlib.compress(differences.astype(pixels.dtype.newbyteorder("<")).tobytes())
    ifd = ImageFileDirectory_v2()  # little endian
    words = Image.Exif()
    if exif:
        words.load(exif)
    for tag in _TIFF_WORDS:
        if tag in words:
            ifd[tag] = words.get_ifd(tag) if tag in (34665, 34853) else words[tag]
    ifd[256], ifd[257], ifd[258] = width, height, (8 * pixels.itemsize,) * channels
    ifd[259], ifd[317] = 8, 2  # deflate, horizontal predictor
    ifd[262], ifd[277] = (1 if channels < 3 else 2), channels
    ifd[273], ifd[278], ifd[279] = 0, height, len(body)  # one strip; save() moves its offset behind the directory
    ifd[284] = 1
    if channels in (2, 4):
        ifd[338] = 2  # alpha, not multiplied in
    if icc:
        ifd.tagtype[34675] = 7
        ifd[34675] = icc
    out = io.BytesIO()
    ifd.save(out)
    out.write(body)
    return out.getvalue()
