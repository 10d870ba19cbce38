"""Image files that are damaged, hostile or refused: always BadImage, in bounded memory."""

from __future__ import annotations

import io
import struct
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import chunk, exif_of, file_of, grey_tiff, photo, png_of, profile
from PIL import Image

from service.errors import BadImage, TooManyPixels
from service.images.limits import MAX_METADATA_BYTES
from service.images.read import read_image
from service.picture import Picture

RGB = photo(12, 17)
INTERNALS = ("Image", "object at", "Traceback", "PIL", "plugin", "broken data", "tile cannot")


def read(data: bytes, max_pixels: int = 1 << 16) -> Picture:
    return read_image(data, max_pixels=max_pixels, metadata="all")


@cache
def samples() -> dict[str, bytes]:
    """Return a small file of each kind, with metadata where the kind has any."""
    rgb, grey = Image.fromarray(RGB), Image.fromarray(RGB[..., 0])
    rgba = Image.fromarray(np.dstack([RGB, RGB[..., 0]]))
    more = {"exif": b"Exif\0\0" + exif_of(6), "icc_profile": profile()}
    return {
        "png": file_of(rgb, "PNG", **more),
        "png palette": file_of(rgb.quantize(9), "PNG", transparency=3),
        "png 16": file_of(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "PNG"),
        "jpeg": file_of(rgb, "JPEG", **more),
        "jpeg progressive": file_of(rgb, "JPEG", progressive=True),
        "jpeg cmyk": file_of(rgb.convert("CMYK"), "JPEG"),
        "webp": file_of(rgba, "WEBP", **more),
        "webp lossless": file_of(rgb, "WEBP", lossless=True),
        "avif": file_of(rgba, "AVIF", **more),
        "gif": file_of(rgb.quantize(9), "GIF", transparency=3),
        "tiff": file_of(rgb, "TIFF", **more),
        "tiff lzw": file_of(grey, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": file_of(rgb, "TIFF", compression="jpeg"),
        "heic": heic_of(rgb, exif=exif_of(6)),
        "bmp": file_of(rgb, "BMP"),
        "ppm": file_of(rgb, "PPM"),
    }


def heic_of(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, **options)
    return out.getvalue()


KINDS = tuple(samples())


def read_or_refuse(data: bytes) -> Picture | None:
    """Check that any bytes give a picture within the limit, or BadImage with our own message."""
    try:
        picture = read(data)
    except BadImage as error:
        assert not [word for word in INTERNALS if word in str(error)], str(error)
        return None
    assert picture.rgb.shape[2] == 3 and picture.width * picture.height <= 1 << 16
    return picture


@pytest.mark.parametrize("kind", KINDS)
def test_every_prefix_is_refused_or_the_same_picture(kind: str) -> None:
    data = samples()[kind]
    whole = read(data)
    for end in range(len(data)):
        cut = read_or_refuse(data[:end])
        if cut is not None:  # only bytes after the pixels are missing
            assert end > len(data) // 2
            assert np.array_equal(cut.rgb, whole.rgb)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), max_size=6))
def test_flipped_bytes_give_a_picture_or_bad_image(kind: str, flips: list[tuple[int, int]]) -> None:
    data = bytearray(samples()[kind])
    for position, flip in flips:
        data[position % len(data)] ^= flip
    read_or_refuse(bytes(data))


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(KINDS), keep=st.integers(2, 64), rest=st.binary(max_size=300))
def test_any_bytes_after_a_true_beginning(kind: str, keep: int, rest: bytes) -> None:
    read_or_refuse(samples()[kind][:keep] + rest)


@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    read_or_refuse(data)


def test_the_limit_is_checked_before_decoding() -> None:
    rows = zlib.compress(bytes(20001), 9)
    bomb = png_of(b"", (20000, 20000), 8, 0, chunk(b"IDAT", rows * 20))
    tracemalloc.start()
    with pytest.raises(TooManyPixels, match="20000x20000 = 400000000 pixels, the limit is 65536"):
        read(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_exact(kind: str) -> None:
    data = samples()[kind]
    assert read(data, max_pixels=12 * 17).rgb.size == RGB.size
    with pytest.raises(TooManyPixels, match="= 204 pixels, the limit is 203"):
        read(data, max_pixels=12 * 17 - 1)


@pytest.mark.parametrize(
    "size", [(9500, 9500), (14000, 14000), (65535, 65535)], ids=["warns", "raises", "most"]
)
def test_the_limit_of_the_library_does_not_show(size: tuple[int, int]) -> None:
    def check(data: bytes) -> None:
        with pytest.raises(TooManyPixels, match=r"pixels, the limit is 65536"):
            read(data)

    width, height = size
    check(png_of(b"", size, 8, 2))
    check(b"P6 %d %d 255\n" % size)
    jpeg = bytearray(samples()["jpeg progressive"])
    at = jpeg.index(b"\xff\xc2") + 5
    jpeg[at : at + 4] = struct.pack(">HH", height, width)
    check(bytes(jpeg))
    gif = bytearray(samples()["gif"])
    gif[6:10] = struct.pack("<HH", *size)
    check(bytes(gif))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "PPM", "AVIF"])
def test_the_callers_limit_alone_counts(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
    large = Image.new("L", (1500, 1500), 77)
    picture = read_image(file_of(large, format), max_pixels=1500 * 1500)
    assert picture.rgb.shape == (1500, 1500, 3)
    assert np.abs(picture.rgb.astype(int) - 77).max() <= 1


def frames(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.roll(RGB, n, axis=1)) for n in range(count)]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_animations_are_refused_by_number(format: str) -> None:
    first, *others = frames(3)
    data = file_of(first, format, save_all=True, append_images=others)
    with pytest.raises(BadImage, match=r"has 3 (frames|pages), expected one; choose one"):
        read(data)
    with pytest.raises(TooManyPixels):
        read(data, max_pixels=3)


def test_counting_frames_of_a_hostile_file_ends() -> None:
    one = samples()["gif"]
    start = one.index(b"!\xf9")
    many = one[:start] + one[start:-1] * 3000 + b";"
    with pytest.raises(BadImage, match="has 1000 or more frames"):
        read(many)
    pages = b"II*\0\x08\0\0\0" + b"".join(
        bytes(2) + struct.pack("<I", 14 + 6 * n) for n in range(2000)
    )
    assert read_or_refuse(pages) is None
    one_page = samples()["tiff"]
    loop = bytearray(one_page)
    (directory,) = struct.unpack_from("<I", loop, 4)
    (entries,) = struct.unpack_from("<H", loop, directory)
    struct.pack_into("<I", loop, directory + 2 + 12 * entries, directory)
    assert np.array_equal(read(bytes(loop)).rgb, read(one_page).rgb)


def test_phone_pictures_with_more_in_them_are_read_as_the_first() -> None:
    first, *others = (Image.fromarray(np.full((12, 17, 3), v, np.uint8)) for v in (40, 90, 200))
    picture = read(file_of(first, "MPO", save_all=True, append_images=others))
    assert np.abs(picture.rgb.astype(int) - 40).max() <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "the file is of an unknown kind, expected one of PNG, JPEG"),
        (b"%PDF-1.7 ...", "PDF files are not read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript files are not read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "the HEIC file is damaged"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc", "HEIF sequence files are not read"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 files are not read"),
        (b"P3 1 1 255 1 2 3", "PPM files must be binary"),
        (b"P6 1 1 1000\n" + bytes(6), "PPM files must be binary"),
    ],
)
def test_what_is_refused_is_named(data: bytes, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        read(data)


@pytest.mark.parametrize(
    ("dtype", "kind", "message"),
    [
        (np.float32, 3, "floating-point numbers"),
        (np.int32, 2, "signed or 32-bit integers"),
        (np.uint32, 1, "signed or 32-bit integers"),
        (np.int16, 2, "signed or 32-bit integers"),
    ],
)
def test_samples_without_a_white_are_refused(dtype: type, kind: int, message: str) -> None:
    deep = np.zeros((4, 5), dtype)
    with pytest.raises(BadImage, match=f"this TIFF file cannot be read: its samples are {message}"):
        read(grey_tiff(deep, deep.itemsize * 8, photometric=1, kind=kind))


def test_lab_is_refused() -> None:
    with pytest.raises(BadImage, match="its colours are CIE Lab; save it as RGB"):
        read(file_of(Image.new("LAB", (3, 2)), "TIFF"))


def test_metadata_bombs_are_bounded() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 9))
    tracemalloc.start()
    assert read_or_refuse(png_of(b"\0\0\0\0", (1, 1), 8, 2, text)) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    huge = exif_of(6) + bytes(MAX_METADATA_BYTES)
    picture = read(file_of(Image.fromarray(RGB), "PNG", exif=huge))
    assert picture.exif is None and picture.rgb.shape == (17, 12, 3)
    assert [note for note in picture.notes if "too large and was left out" in note]


def test_an_oversized_profile_is_applied_instead_of_kept() -> None:
    wide = profile() + bytes(MAX_METADATA_BYTES)
    wide = struct.pack(">I", len(wide)) + wide[4:]
    picture = read(file_of(Image.fromarray(RGB), "JPEG", icc_profile=wide))
    assert picture.icc is None
    assert picture.notes == ("colours converted to sRGB by the file's profile",)


def test_threads_do_not_disturb_each_other() -> None:
    kinds = [samples()[kind] for kind in KINDS]
    alone = [read(data).rgb for data in kinds]
    start = threading.Barrier(4)

    def work(_: int) -> list[bool]:
        start.wait()
        return [np.array_equal(read(d).rgb, a) for d, a in zip(kinds * 3, alone * 3, strict=True)]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(results) for results in pool.map(work, range(4)))


def test_a_photograph_is_held_as_an_array_once() -> None:
    tall = np.zeros((3000, 2000, 3), np.uint8)
    data = file_of(Image.fromarray(tall), "JPEG", exif=b"Exif\0\0" + exif_of(6))
    tracemalloc.start()  # sees numpy's and Python's memory, not Pillow's own copy
    picture = read_image(data, max_pixels=1 << 24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.rgb.shape == (2000, 3000, 3)
    assert peak < 1.8 * tall.nbytes
