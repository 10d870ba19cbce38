"""Orientation and Exif: read where files keep them, and kept correctly."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from api.fake_codec import FakeCodec
from image_files import chunk, exif_of, file_of, photo
from PIL import ExifTags, Image, ImageOps

from service.api.file_work import DecompressFile, Rendition
from service.http.negotiate import Form
from service.images import exif
from service.images.read import Metadata, read_image
from service.images.resize import shrink
from service.images.write import WriteLimits, write_image
from service.picture import Picture, Region, View


def read(data: bytes, metadata: Metadata = "icc") -> Picture:
    return read_image(data, max_pixels=1 << 20, metadata=metadata)


def png(image: Image.Image, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with chunks after its header."""
    data = file_of(image, "PNG")
    return data[:33] + b"".join(chunk(*each) for each in chunks) + data[33:]


def test_an_orientation_of_four_bytes_is_applied_and_reset() -> None:
    for order in "<>":
        block = bytearray(exif_of(6, order))
        at = block.index(struct.pack(order + "H", ExifTags.Base.Orientation))
        block[at : at + 12] = struct.pack(order + "HHII", ExifTags.Base.Orientation, 4, 1, 6)
        data = file_of(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0" + bytes(block))
        picture = read(data, "all")
        assert picture.rgb.shape == (37, 24, 3)
        assert picture.exif is not None and exif.orientation(picture.exif) == 1


@pytest.mark.parametrize("name", ["exif", "APP1"])
@pytest.mark.parametrize("packed", [True, False])
def test_exif_in_a_text_of_a_png_is_exif(name: str, packed: bool) -> None:
    block = b"Exif\0\0" + exif_of(6)
    text = f"\n{name}\n{len(block):8}\n".encode()
    text += b"\n".join(block.hex().encode()[k : k + 72] for k in range(0, 2 * len(block), 72))
    key = f"Raw profile type {name}".encode() + b"\0"
    extra = (b"zTXt", key + b"\0" + zlib.compress(text)) if packed else (b"tEXt", key + text)
    picture = read(png(Image.fromarray(photo()), extra), "all")
    assert np.array_equal(picture.rgb, np.rot90(photo(), -1))
    assert picture.exif == exif_of(1)
    broken = (b"tEXt", key + b"\nexif\n  99\nthis is no hex")
    assert read(png(Image.fromarray(photo()), broken)).rgb.shape == (24, 37, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("in_exif", [None, 1, 3])
def test_an_orientation_that_xmp_alone_tells_is_applied_as_pillow_does(
    format: str, in_exif: int | None
) -> None:
    """Exif overrides XMP. In AVIF, whose boxes turn the picture, XMP is ignored."""
    text = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    options: dict[str, Any] = {**lossless.get(format, {"quality": 100, "subsampling": "4:4:4"})}
    if in_exif is not None:
        options["exif"] = exif.PREFIX + exif_of(in_exif)
    source = Image.fromarray(photo())
    if format == "PNG":
        key = b"XML:com.adobe.xmp\0\0\0\0\0"
        data = file_of(source, format, **options)
        data = data[:33] + chunk(b"iTXt", key + text) + data[33:]
    else:
        data = file_of(source, format, xmp=text, **options)
    turned = read(data, "all")
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image if format == "AVIF" else ImageOps.exif_transpose(image))
    if format == "AVIF" and in_exif == 3:
        expected = expected[::-1, ::-1]
    assert turned.rgb.shape == expected.shape
    assert np.abs(turned.rgb.astype(int) - expected).mean() < 3
    assert exif.orientation(turned.exif or b"") in (None, 1)


def test_a_picture_that_was_turned_says_its_new_size() -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    sizes = {ExifTags.Base.ExifImageWidth: 37, ExifTags.Base.ExifImageHeight: 24}
    tags[ExifTags.IFD.Exif] = {**sizes, ExifTags.Base.MakerNote: b"note"}
    picture = read(file_of(Image.fromarray(photo()), "JPEG", exif=tags), "all")
    kept = Image.Exif()
    kept.load(picture.exif or b"")
    camera = kept.get_ifd(ExifTags.IFD.Exif)
    assert (picture.width, picture.height) == (24, 37)
    assert camera[ExifTags.Base.ExifImageWidth] == 24
    assert camera[ExifTags.Base.ExifImageHeight] == 37
    assert kept[ExifTags.Base.Orientation] == 1 and camera[ExifTags.Base.MakerNote] == b"note"


XMP_PACKET, PHOTOSHOP, SUBJECT_AREA = 700, 0x8649, 0x9214


def camera_exif() -> bytes:
    """Return a block with sizes, a maker note, GPS and a thumbnail of the whole picture."""
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "Maker"
    tags[XMP_PACKET] = b"<xmpGImg:image>a thumbnail</xmpGImg:image>"
    tags[PHOTOSHOP] = b"8BIM, a thumbnail"
    tags[ExifTags.IFD.Exif] = {
        SUBJECT_AREA: (30, 20),
        ExifTags.IFD.Interop: {1: "R98"},
        ExifTags.Base.ExifImageWidth: 37,
        ExifTags.Base.ExifImageHeight: 24,
        ExifTags.Base.MakerNote: b"the focus was at 30, 20",
        ExifTags.Base.LensModel: "50 mm",
    }
    tags[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    block = bytearray(tags.tobytes().removeprefix(exif.PREFIX))
    order = "<" if block[:2] == b"II" else ">"
    first = struct.unpack_from(order + "I", block, 4)[0]
    count = struct.unpack_from(order + "H", block, first)[0]
    thumbnail = file_of(Image.fromarray(photo(12, 18)), "JPEG")
    at = len(block)
    struct.pack_into(order + "I", block, first + 2 + 12 * count, at)
    directory = struct.pack(order + "H", 2)
    directory += struct.pack(order + "HHII", ExifTags.Base.JpegIFOffset, 4, 1, at + 30)
    directory += struct.pack(order + "HHII", ExifTags.Base.JpegIFByteCount, 4, 1, len(thumbnail))
    return bytes(block) + directory + bytes(4) + thumbnail


def with_camera_exif() -> Picture:
    data = file_of(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0" + camera_exif())
    picture = read(data, "all")
    assert picture.exif is not None and b"\xff\xd8" in picture.exif, "a whole one keeps it all"
    return picture


@pytest.mark.parametrize("way", ["cut", "scaled"])
def test_a_picture_of_another_view_has_exif_of_that_alone(way: str) -> None:
    picture = with_camera_exif()
    if way == "scaled":
        other = shrink(picture, View(max_size=20))
    else:
        part = replace(picture, rgb=picture.rgb[4:14, 5:25])
        other = shrink(part, View(Region(5, 4, 20, 10)))
    assert other.exif is not None
    for gone in (b"\xff\xd8", b"focus", b"thumbnail"):
        assert gone not in other.exif
    for format in ("jpeg", "png", "webp", "avif"):
        kept = read(write_image(other, format), "all").exif  # type: ignore[arg-type]
        assert kept is not None
        rebuilt = Image.Exif()
        rebuilt.load(kept)
        camera = rebuilt.get_ifd(ExifTags.IFD.Exif)
        assert rebuilt[ExifTags.Base.Make] == "Maker"
        assert camera[ExifTags.Base.LensModel] == "50 mm"
        assert SUBJECT_AREA not in camera and ExifTags.IFD.Interop not in camera
        assert camera[ExifTags.Base.ExifImageWidth] == other.width == 20
        assert camera[ExifTags.Base.ExifImageHeight] == other.height
        assert rebuilt.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        assert not rebuilt.get_ifd(ExifTags.IFD.IFD1)


@pytest.mark.parametrize(
    ("region", "max_size", "whole"),
    [(None, None, True), (Region(0, 0, 30, 20), None, False), (None, 20, False)],
)
def test_the_service_gives_a_part_no_exif_of_the_whole(
    region: Region | None, max_size: int | None, whole: bool
) -> None:
    picture = with_camera_exif()
    codec, form = FakeCodec(), Form("jpeg", 90)
    codec.exif = picture.exif
    stream = codec.compress(picture, 4).data
    rendition = Rendition((form,), View(region, max_size))
    file = DecompressFile(codec, stream, rendition, WriteLimits(1.0, 2**20))()
    kept = read(file.data, "all").exif
    assert kept is not None and (b"\xff\xd8" in kept) == whole


def test_gps_is_kept_by_all_alone() -> None:
    data = file_of(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0" + camera_exif())
    assert read(data).exif is None and read(data, "none").exif is None


@pytest.mark.parametrize("size", [0, 7, 8, 20, 60, 150])
def test_damaged_exif_of_another_view_is_left_out(size: int) -> None:
    block = camera_exif()
    for damaged in (block[:size], block[:8] + bytes(size), block[: len(block) - size]):
        part = shrink(Picture(photo(10, 10), exif=damaged), View(Region(0, 0, 10, 10)))
        assert part.exif is None or exif.is_exif(part.exif)
