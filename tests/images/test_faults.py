"""Complete files are read; for others, the message says what is wrong."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from image_files import file_of, photo
from PIL import Image

from service.errors import BadImage
from service.images.read import read_image
from service.picture import U8

PICTURE = Image.fromarray(photo(61, 90))

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "JPEG": ("JPEG", {"quality": 90}),
    "progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "restarts": ("JPEG", {"quality": 90, "restart_marker_blocks": 2}),
    "progressive restarts": (
        "JPEG",
        {"quality": 90, "progressive": True, "restart_marker_blocks": 2},
    ),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {}),
    "GIF": ("GIF", {}),
    "TIFF": ("TIFF", {}),
    "TIFF of LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "BMP": ("BMP", {}),
    "PPM": ("PPM", {}),
}
FILES = {name: file_of(PICTURE, format, **options) for name, (format, options) in WAYS.items()}
JPEGS = ("JPEG", "progressive", "restarts", "progressive restarts")


def read(data: bytes) -> U8:
    return read_image(data, max_pixels=1 << 20).rgb


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("junk", [b"\r\n--boundary--\r\n" * 20, bytes(64), b"\xff\xd8\xff", b"x"])
def test_bytes_behind_a_file_change_nothing(name: str, junk: bytes) -> None:
    assert np.array_equal(read(FILES[name] + junk), read(FILES[name]))


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("end", [b"", b"\xff", bytes(64)])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_whole(name: str, end: bytes) -> None:
    assert FILES[name].endswith(b"\xff\xd9")
    assert np.array_equal(read(FILES[name][:-2] + end), read(FILES[name]))


def test_so_is_one_of_cmyk_and_a_grey_one() -> None:
    for mode in ("CMYK", "L"):
        data = file_of(PICTURE.convert(mode), "JPEG", quality=90)
        assert np.array_equal(read(data[:-2]), read(data))


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_pixels_is_refused_wherever_it_ends(name: str) -> None:
    data = FILES[name]
    assert len(data) > 1000
    for end in (*range(len(data) - 60, len(data) - 6, 3), *range(0, len(data) - 60, 97)):
        if end >= 3:
            with pytest.raises(BadImage, match="the JPEG file is cut short|is damaged"):
                read(data[:end])


@pytest.mark.parametrize("name", ["restarts", "progressive restarts"])
def test_a_jpeg_cut_where_a_restart_is_due_is_refused(name: str) -> None:
    """All data are whole: only the missing restart marker shows that data are missing."""
    data = FILES[name]
    restarts = [match.start() for match in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    assert len(restarts) > 10
    for at in restarts:
        for end in (b"", b"\xff", data[at : at + 2], bytes(64)):
            with pytest.raises(BadImage, match="the JPEG file is cut short"):
                read(data[:at] + end)


@pytest.mark.parametrize("name", JPEGS)
def test_zeros_in_the_place_of_what_never_came_are_no_pixels(name: str) -> None:
    """Files may get their size before their content; the zeros at their end decode to something."""
    data, zeros = FILES[name], bytes(5000)
    for end in (*range(len(data) - 40, len(data) - 3), *range(800, len(data) - 40, 29)):
        with pytest.raises(BadImage, match="the JPEG file is cut short"):
            read(data[:end] + zeros)
    for end in (len(data) - 2, len(data) - 1):
        assert np.array_equal(read(data[:end] + zeros), read(data))


def test_coded_data_that_end_in_zeros_are_complete() -> None:
    data = file_of(Image.new("L", (320, 64), 200), "JPEG", optimize=True)
    assert data.endswith(bytes(20) + b"\xff\xd9")
    assert np.array_equal(read(data[:-2]), read(data))
    with pytest.raises(BadImage, match="cut short"):
        read(data[:-3])


def test_so_are_those_that_end_in_a_stuffed_byte() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8), np.uint8)
    files = [file_of(Image.fromarray(one), "JPEG", quality=100) for one in noise]
    stuffed = [data for data in files if data.endswith(b"\xff\0\xff\xd9")]
    assert stuffed
    for data in stuffed:
        for end in (b"", b"\xff", bytes(64)):
            assert np.array_equal(read(data[:-2] + end), read(data))


def test_a_progressive_jpeg_cut_between_two_scans_is_refused() -> None:
    """The scans in the file are whole, but some scans are missing."""
    data = FILES["progressive"]
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 4
    for scan in scans[1:]:
        at = data.rindex(b"\xff\xc4", 0, scan)  # the tables of the scan
        with pytest.raises(BadImage, match="cut short"):
            read(data[: at if at > scans[0] else scan])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_file_that_was_cut_says_so(name: str, share: float) -> None:
    data = FILES[name]
    with pytest.raises(BadImage, match=r"the \w+ file is cut short"):
        read(data[: int(len(data) * share)])


@pytest.mark.parametrize("big", [False, True])
def test_a_file_of_pages_that_was_cut_says_so(big: bool) -> None:
    pages = [Image.fromarray(photo(20, 30)) for _ in range(3)]
    data = file_of(pages[0], "TIFF", save_all=True, append_images=pages[1:], big_tiff=big)
    assert np.array_equal(read_image(data, max_pixels=600, frame=2).rgb, photo(20, 30))
    third = len(data) // 3
    for end in range(2 * third + 60, len(data) - 8, 41):
        with pytest.raises(BadImage, match="the TIFF file is cut short"):
            read_image(data[:end], max_pixels=600, frame=2)


def test_damage_is_called_damage() -> None:
    avif = FILES["AVIF"].replace(b"ispe", b"isqe")
    jpeg = bytearray(FILES["JPEG"])
    at = jpeg.index(b"\xff\xdb") + 4  # a table of quantisation
    jpeg[at : at + 2] = b"\x77\x77"
    for data in (bytes(jpeg), avif):
        with pytest.raises(BadImage, match="is damaged"):
            read(data)


@pytest.mark.parametrize("place", [0, 2, 50, -20, -6])
def test_a_png_whose_pixels_are_damaged_is_refused(place: int) -> None:
    """Pillow returns the rows before the damage, and black rows."""
    png = bytearray(FILES["PNG"])
    begin, end = png.index(b"IDAT") + 4, png.index(b"IEND") - 8
    png[begin + place if place >= 0 else end + place] ^= 0x55
    with pytest.raises(BadImage, match="the PNG file is damaged"):
        read(bytes(png))


def test_a_variant_that_is_not_known_is_called_so() -> None:
    bmp = bytearray(FILES["BMP"])
    bmp[30:34] = (77).to_bytes(4, "little")
    tiff = io.BytesIO()
    PICTURE.save(tiff, "TIFF")
    other = bytearray(tiff.getvalue())
    at = other.index(b"\x03\x01\x03\x00\x01\x00\x00\x00")  # compression
    other[at + 8 : at + 10] = (34712).to_bytes(2, "little")  # JPEG 2000
    for data in (bytes(bmp), bytes(other)):
        with pytest.raises(BadImage, match="is of a variant that cannot be read"):
            read(data)
