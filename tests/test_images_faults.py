"""What is complete is read; of what is not, the message says what is wrong with it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from image_files import file_of, photo
from PIL import Image

from service.errors import BadImage
from service.images import read_image
from service.picture import U8

PICTURE = Image.fromarray(photo(61, 90))

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "JPEG": ("JPEG", {"quality": 90}),
    "progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "restarts": ("JPEG", {"quality": 90, "restart_marker_blocks": 2}),
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
JPEGS = ("JPEG", "progressive", "restarts")


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


def test_a_progressive_jpeg_cut_between_two_scans_is_refused() -> None:
    """What is there is whole, but it is not the picture."""
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
    """Pillow gives what comes before the damage, and black."""
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
        with pytest.raises(BadImage, match="is of a variant that is not read"):
            read(data)
