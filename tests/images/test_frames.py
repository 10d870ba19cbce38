"""One frame or page of files that have several, and HEIC files."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import pillow_heif
import pytest
from image_files import file_of, photo
from PIL import Image

from service.errors import BadImage, BadParameter, TooManyPixels
from service.images.read import Metadata, read_image
from service.picture import U8, Picture

FORMATS = {
    "GIF": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "TIFF": {},
}
COLOURS = [(200, 30, 40), (20, 180, 60), (30, 50, 220), (240, 240, 240)]


def read(
    data: bytes, frame: int | None = None, metadata: Metadata = "icc", max_pixels: int = 1 << 20
) -> Picture:
    return read_image(data, max_pixels=max_pixels, metadata=metadata, frame=frame)


def animation(format: str, **options: Any) -> bytes:
    """Return frames of one colour each with a moving square: later frames change little."""
    frames = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    for place, frame in enumerate(frames):
        frame.paste((0, 0, 0), (place * 5, 4, place * 5 + 8, 12))
    more: dict[str, Any] = FORMATS[format]
    return file_of(
        frames[0], format, save_all=True, append_images=frames[1:], **more, **options
    )


def colour_of(rgb: U8) -> tuple[int, ...]:
    return tuple(int(v) for v in rgb[25, 35])


@pytest.mark.parametrize("format", FORMATS)
def test_every_frame_is_the_whole_picture_at_its_time(format: str) -> None:
    data = animation(format)
    for number, colour in enumerate(COLOURS):
        picture = read(data, number)
        assert picture.rgb.shape == (30, 40, 3)
        assert np.abs(np.subtract(colour_of(picture.rgb), colour)).max() <= 4
        square = picture.rgb[4:12, number * 5 : number * 5 + 8]
        assert square.max() <= 12


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_number_such_a_file_is_refused_with_the_way_out(format: str) -> None:
    with pytest.raises(BadImage, match=r"has 4 (frames|pages), expected one; choose one: frame=0"):
        read(animation(format))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("frame", [4, 1000, -1])
def test_a_frame_that_there_is_not_is_refused_with_the_number_there_are(
    format: str, frame: int
) -> None:
    with pytest.raises(BadParameter, match=rf"frame is {frame}, .* has 4 (frames|pages)"):
        read(animation(format), frame)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM"])
def test_a_still_picture_is_its_own_first_frame(format: str) -> None:
    data = file_of(Image.fromarray(photo()), format)
    assert np.array_equal(read(data, 0).rgb, read(data).rgb)
    with pytest.raises(BadParameter, match="has 1 (frame|page), the first is 0"):
        read(data, 1)


def test_pages_may_differ_in_size_and_each_is_limited() -> None:
    pages = [Image.fromarray(photo(20, 30)), Image.fromarray(photo(50, 40))]
    data = file_of(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(read(data, 1, max_pixels=2000).rgb, photo(50, 40))
    assert read(data, 0, max_pixels=1999).rgb.shape == (20, 30, 3)
    with pytest.raises(TooManyPixels, match="50"):
        read(data, 1, max_pixels=1999)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_the_work_for_a_late_frame_is_limited(format: str) -> None:
    """To see frame 3, four frames of 1,200 pixels are decoded."""
    data = animation(format)
    assert read(data, 3, max_pixels=4800).rgb.shape == (30, 40, 3)
    with pytest.raises(TooManyPixels, match="frame 3 of .* takes 4800 pixels"):
        read(data, 3, max_pixels=4799)


def test_the_canvas_of_a_gif_grows_and_so_does_the_work_for_its_frames() -> None:
    """Header, first and last frame are of 1x1 pixels, those between of 100x60."""
    data = growing_gif(frames=5)
    with pytest.raises(TooManyPixels, match="frame 5 of the GIF file takes 36000 pixels"):
        read(data, 5, max_pixels=35_999)
    assert read(data, 5, max_pixels=36_000).rgb.shape == (60, 100, 3)
    assert read(data, 0, max_pixels=1).rgb.shape == (1, 1, 3)


def growing_gif(frames: int) -> bytes:
    header = b"GIF89a" + struct.pack("<2H3B", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    small = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    large = file_of(Image.new("L", (100, 60)), "GIF")
    frame = large[large.index(b"\x2c\0\0\0\0", 13) : -1]
    return header + small + frame * (frames - 1) + small + b";"


@pytest.mark.parametrize("frame", [None, 0, 30])
def test_directories_of_pages_that_overlap_are_refused(frame: int | None) -> None:
    """For each of 40 small pages, Pillow would read nearly the whole file."""
    page = file_of(Image.new("L", (1, 1)), "TIFF")
    (first,) = struct.unpack_from("<I", page, 4)
    (entries,) = struct.unpack_from("<H", page, first)
    body = bytearray(struct.pack("<6H", 900, 1, 1, 0, 0, 0) * 1000)
    for number in range(40):  # each begins 12 bytes behind the one before it
        following = len(page) + 12 * (number + 1) if number < 39 else 0
        struct.pack_into("<I", body, 12 * number + 2 + 12 * 900, following)
    data = bytearray(page + body)
    struct.pack_into("<I", data, first + 2 + 12 * entries, len(page))
    with pytest.raises(BadImage, match=r"its directories take \d+ bytes of \d+"):
        read(bytes(data), frame)


def test_frames_with_alpha_keep_it() -> None:
    frames = [Image.new("RGBA", (20, 10), (200, 0, 0, 255)), Image.new("RGBA", (20, 10))]
    frames[1].paste((0, 0, 250, 255), (0, 0, 10, 10))
    data = file_of(frames[0], "PNG", save_all=True, append_images=frames[1:], disposal=1)
    picture = read(data, 1)
    assert picture.alpha is not None
    assert picture.alpha[:, :10].min() == 255 and picture.alpha[:, 10:].max() == 0
    assert tuple(picture.rgb[5, 5]) == (0, 0, 250)


# --- HEIC --------------------------------------------------------------------------------------


def heic(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(image).save(out, quality=90, chroma=444, **options)
    return out.getvalue()


def test_heic_is_read() -> None:
    picture = read(heic(Image.fromarray(photo(64, 96))))
    assert np.abs(picture.rgb.astype(int) - photo(64, 96)).mean() < 3
    assert picture.alpha is None and picture.icc is None and picture.notes == ()


def test_heic_is_turned_upright_and_keeps_its_exif() -> None:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Maker"
    picture = read(heic(Image.fromarray(photo(64, 96)), exif=exif.tobytes()), metadata="all")
    assert picture.rgb.shape == (96, 64, 3)
    assert np.abs(picture.rgb.astype(int) - np.rot90(photo(64, 96), -1)).mean() < 3
    assert picture.exif is not None
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept[271] == "Maker" and kept.get(274, 1) == 1


def test_heic_has_limits_and_faults_like_any_file() -> None:
    data = heic(Image.fromarray(photo(64, 96)))
    with pytest.raises(TooManyPixels, match="96x64"):
        read(data, max_pixels=96 * 64 - 1)
    for end in (12, 40, len(data) // 2, len(data) - 20):
        with pytest.raises(BadImage, match="the HEIC file is cut short"):
            read(data[:end])


@pytest.mark.parametrize("primary", [0, 1])
def test_heic_of_several_pictures_is_read_as_the_one_it_is_of(primary: int) -> None:
    """Phones store the views for both eyes, or a burst, with the photograph, as in MPO."""
    several = pillow_heif.HeifFile()
    for colour in COLOURS[:3]:
        several.add_from_pillow(Image.new("RGB", (64, 64), colour))
    out = io.BytesIO()
    several.save(out, quality=95, chroma=444, primary_index=primary)
    for frame, expected in ((None, primary), (0, 0), (1, 1), (2, 2)):
        found = colour_of(read(out.getvalue(), frame).rgb)
        assert np.abs(np.subtract(found, COLOURS[expected])).max() <= 6
    with pytest.raises(BadParameter, match="frame is 3, the HEIC file has 3 frames"):
        read(out.getvalue(), 3)


def test_deep_heic_is_reduced_to_8_bits_with_a_note() -> None:
    deep = pillow_heif.from_bytes(
        "RGB;16", (64, 64), (photo(64, 64).astype(np.uint16) * 257).tobytes()
    )
    out = io.BytesIO()
    deep.save(out, quality=95, chroma=444)
    picture = read(out.getvalue())
    assert picture.notes == ("10-bit samples reduced to 8 bits",)
    assert np.abs(picture.rgb.astype(int) - photo(64, 64)).mean() < 3


def test_without_pillow_heif_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(Image.fromarray(photo(64, 96)))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImage, match=r"pip install 'rankpress\[heif\]'"):
        read(data)
