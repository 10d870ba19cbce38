"""Pictures with any bytes for Exif and profile are read, and written in every format."""

from __future__ import annotations

import io
import random
import struct
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from image_files import chunk, exif_of, file_of, photo, profile
from PIL import Image

from images.test_exif import camera_exif
from service.images import exif
from service.images.colour import SRGB_PRIMARIES, ColourSpace, TransferCurve
from service.images.read import read_image
from service.images.resize import shrink
from service.images.write import Format, write_with_notes
from service.picture import Picture, Region, View

FORMATS: tuple[Format, ...] = ("png", "webp", "jpeg", "avif")
RGB, ALPHA = photo(6, 5), photo(6, 5)[..., 0]
GREY = np.repeat(ALPHA[..., None], 3, axis=2)
PICTURES = {
    "rgb": Picture(RGB),
    "rgba": Picture(RGB, ALPHA),
    "grey": Picture(GREY, grey=True),
    "grey with alpha": Picture(GREY, ALPHA, grey=True),
}


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """Return a block of one entry."""
    head = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHI", tag, kind, count)
    return head + value.ljust(4, b"\0")[:4] + bytes(4)


DAMAGED = {
    "empty": b"",
    "no Exif": b"no Exif at all",
    "cut in its beginning": b"II*\0\x08",
    "orientation of bytes": entry(0x0112, 1, 1, b"\6"),
    "orientation of text": entry(0x0112, 2, 4, b"six"),
    "orientation of a fraction": exif_of(6)[:8] + entry(0x0112, 5, 1, b"\x1a\0\0\0")[8:] + bytes(8),
}
"""Blocks that a writer refuses, each for another reason; Pillow reads the first ones silently."""


@pytest.fixture(autouse=True)
def _as_in_a_program() -> Iterator[None]:
    """Pillow's warnings are silenced, as the service and the command line do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def mutated(blocks: list[bytes], count: int, seed: int = 1) -> Iterator[bytes]:
    """Yield blocks with bytes changed, inserted, removed and cut off."""
    draw = random.Random(seed)
    for _ in range(count):
        block = bytearray(draw.choice(blocks))
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(block) + 1)
            way = draw.random()
            if way < 0.7:
                block[at : at + 1] = bytes([draw.choice((0, 1, 255, draw.randrange(256)))])
            elif way < 0.8:
                block[at:at] = draw.randbytes(draw.randint(1, 8))
            elif way < 0.9:
                del block[at : at + draw.randint(1, 12)]
            else:
                del block[at:]
        yield bytes(block)


def check_written(picture: Picture) -> None:
    """Check that a picture is written in every format, with a note on what a file lacks."""
    for format in FORMATS:
        written = write_with_notes(picture, format)
        with Image.open(io.BytesIO(written.data)) as image:
            image.load()
            assert image.size == (picture.width, picture.height)
            has_exif, has_profile = "exif" in image.info, bool(image.info.get("icc_profile"))
        noted = " ".join(written.notes)
        assert not ("the Exif block" in noted and has_exif), (format, noted)
        if picture.exif is not None and format != "avif":  # whose boxes may stand for all of it
            assert "the Exif block" in noted or has_exif, (format, noted)
        if picture.icc is not None and not picture.grey:
            assert has_profile != ("the colour profile" in noted), (format, noted)


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_exif_of_a_stream_is_left_out_with_a_note(kind: str, name: str) -> None:
    """Damaged Exif in a stream from elsewhere must not prevent that its picture is written."""
    picture = replace(PICTURES[kind], exif=DAMAGED[name])
    check_written(picture)
    noted = write_with_notes(picture, "avif").notes
    assert noted == ("the Exif block is damaged, or too large for avif, and was left out",)


def test_any_exif_and_any_profile_are_written_or_left_out_in_every_format() -> None:
    blocks = [exif_of(1), exif_of(6, ">"), camera_exif()]
    grey = ColourSpace(TransferCurve(1.8), SRGB_PRIMARIES).profile(grey=True)
    profiles = [profile(), grey, profile()[:200], bytes(132)]
    pairs = zip(mutated(blocks, 300), mutated(profiles, 300), strict=True)
    for number, (block, icc) in enumerate(pairs):
        picture = list(PICTURES.values())[number % 4]
        check_written(replace(picture, exif=block, icc=icc))
        shrink(replace(picture, exif=block, icc=icc), View(max_size=3))


def read_with(block: bytes, way: str) -> Picture:
    """Return the picture of a file with a block, read with `metadata="all"`."""
    image = Image.fromarray(photo())
    if way == "PNG":
        png = file_of(image, "PNG")
        data = png[:33] + chunk(b"eXIf", block) + png[33:]
    else:
        data = file_of(image, way, exif=exif.PREFIX + block)
    return read_image(data, max_pixels=1 << 16, metadata="all")


@pytest.mark.parametrize("way", ["PNG", "JPEG", "WEBP"])
def test_exif_that_is_kept_is_written_in_every_format(way: str) -> None:
    kept = 0
    blocks = [*DAMAGED.values(), *mutated([exif_of(1), exif_of(6, ">"), camera_exif()], 200, 2)]
    for block in blocks:
        picture = read_with(block, way)
        kept += picture.exif is not None
        assert picture.exif is not None or not block or "the Exif block" in " ".join(picture.notes)
        small = replace(picture, rgb=RGB, alpha=None)
        for format in FORMATS:
            assert not write_with_notes(small, format).notes, (way, format, block)
    assert 5 < kept < len(blocks) - 5, "the law is of both"


def test_an_orientation_that_only_pillow_understands_is_not_kept() -> None:
    """Only the writer of AVIF would turn the picture by such an orientation."""
    two = entry(0x0112, 3, 2, struct.pack("<HH", 6, 6))
    assert exif.orientation(two) is None
    picture = read_with(two, "PNG")
    assert picture.exif is None and picture.notes == ("the Exif block is damaged and was left out",)
    turned = read_with(exif_of(6), "PNG")
    assert turned.exif == exif_of(1) and (turned.width, turned.height) == (24, 37)


def test_a_long_block_is_left_out_of_jpeg_alone_and_noted() -> None:
    long = exif_of(1) + bytes(70_000)
    picture = read_with(long, "PNG")
    assert picture.exif == long and not picture.notes
    for format in FORMATS:
        notes = write_with_notes(picture, format).notes
        assert bool(notes) == (format == "jpeg")
    assert notes == () and "too large for jpeg" in write_with_notes(picture, "jpeg").notes[0]


def test_a_block_that_takes_seconds_to_take_apart_is_left_out() -> None:
    """A block of half a million fractions, which AVIF's writer would process one by one."""
    fractions = struct.pack("<II", 4_000_000_001, 4_000_000_003) * 500_000
    slow = b"II*\0" + struct.pack("<IH", 8, 2)
    slow += struct.pack("<HHII", 0x011A, 5, 500_000, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 1, 0)
    slow += bytes(4) + fractions
    picture = Picture(RGB, exif=slow)
    for format in FORMATS:
        assert "the Exif block" in write_with_notes(picture, format).notes[0]
    part = shrink(picture, View(Region(0, 0, 1, 1)))
    assert part.exif is None and part.notes == ("the Exif block is damaged and was left out",)


def test_a_part_of_a_picture_with_damaged_exif_is_noted() -> None:
    picture = shrink(Picture(RGB, exif=b"no Exif at all"), View(max_size=3))
    assert picture.exif is None and picture.notes == ("the Exif block is damaged and was left out",)
    assert shrink(Picture(RGB, exif=exif_of(1)), View(max_size=3)).notes == ()
