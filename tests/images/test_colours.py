"""Colours that files describe in various ways, read correctly.

Expected colours are those of CSS Color 4's matrices and curves, worked out apart from ours.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from image_files import SRGB, chunk, file_of, png_of, profile
from PIL import ExifTags, Image

from service.errors import BadImage
from service.images import colour
from service.images.read import Metadata, read_image
from service.images.write import Format, write_image
from service.picture import Picture

P3_RED, SRGB_RED = (230, 60, 40), (250, 31, 13)
D65 = (0.3127, 0.3290)
P3 = (*D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
ADOBE = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
SRGB_POINTS = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def read(data: bytes, metadata: Metadata = "icc") -> Picture:
    return read_image(data, max_pixels=1 << 20, metadata=metadata)


def flat(colour: Any = P3_RED, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (32, 16), colour)


def png(image: Image.Image, *chunks: tuple[bytes, bytes], **options: Any) -> bytes:
    """Return a PNG with chunks after its header."""
    data = file_of(image, "PNG", **options)
    return data[:33] + b"".join(chunk(*each) for each in chunks) + data[33:]


def gamma(value: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(value * 1e5))


def points(values: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", b"".join(struct.pack(">i", round(v * 1e5)) for v in values)


def cicp(primaries: int, transfer: int) -> tuple[bytes, bytes]:
    return b"cICP", bytes([primaries, transfer, 0, 1])


def avif(primaries: int, transfer: int, **options: Any) -> bytes:
    data = bytearray(file_of(flat(), "AVIF", quality=100, subsampling="4:4:4", **options))
    at = data.index(b"colrnclx") + 8
    data[at : at + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(data)


def exif_with_colour_space(space: int, index: bytes) -> bytes:
    made = Image.Exif()
    made[ExifTags.IFD.Exif] = {
        ExifTags.Base.ColorSpace: space,
        ExifTags.IFD.Interop: {1: index.decode()},
    }
    return made.tobytes()


def middle(picture: Picture) -> list[int]:
    return [int(v) for v in picture.rgb[8, 16]]


def close(actual: list[int], expected: tuple[int, ...], within: int = 2) -> bool:
    return bool(np.abs(np.subtract(actual, expected)).max() <= within)


WIDE = {
    "PNG cICP": png(flat(), cicp(12, 13)),
    "PNG gAMA and cHRM": png(flat(), gamma(1 / 2.2), points(P3)),
    "PNG cHRM": png(flat(), points(P3)),
    "AVIF nclx": avif(12, 13),
}


@pytest.mark.parametrize("by", WIDE)
def test_display_p3_is_carried_as_a_profile_or_converted(by: str) -> None:
    kept, converted = read(WIDE[by]), read(WIDE[by], "none")
    assert close(middle(kept), P3_RED) and kept.icc is not None and by in kept.notes[0]
    assert close(middle(converted), SRGB_RED) and converted.icc is None and by in converted.notes[0]


@pytest.mark.parametrize("format", ["png", "webp", "jpeg", "avif"])
def test_a_profile_made_so_reaches_the_output_and_means_the_same_there(format: Format) -> None:
    written = write_image(read(WIDE["PNG cICP"]), format, quality=None if format == "png" else 95)
    with Image.open(io.BytesIO(written)) as image:
        assert image.info["icc_profile"] == read(WIDE["PNG cICP"]).icc
    assert close(middle(read(written, "none")), SRGB_RED, 4)


def test_the_profile_is_one_that_littlecms_and_others_read() -> None:
    icc = read(WIDE["PNG cICP"]).icc
    assert icc is not None and len(icc) < 500 and len(icc) == struct.unpack(">I", icc[:4])[0]
    assert colour.space(icc) == "RGB" and icc[36:40] == b"acsp"
    assert read(file_of(flat(), "PNG", icc_profile=icc)).icc == icc


@pytest.mark.parametrize("metadata", ["icc", "none", "all"])
@pytest.mark.parametrize(
    ("value", "sample", "expected"), [(1.0, 128, 188), (1.0, 10, 56), (1 / 1.8, 128, 146)]
)
def test_other_gammas_are_converted(
    metadata: Metadata, value: float, sample: int, expected: int
) -> None:
    """Linear samples are recoded with any `metadata`, because they would be coded badly."""
    palette = Image.new("P", (32, 16), 0)
    palette.putpalette([sample, sample, sample, 255, 0, 0])
    palette.putpixel((0, 0), 1)
    images = flat((sample,) * 3), flat(sample, "L"), flat((sample, 255), "LA"), palette
    for image in images:
        picture = read(png(image, gamma(value)), metadata)
        assert close(middle(picture), (expected,) * 3, 1), image.mode
        assert picture.icc is None and "PNG gAMA" in picture.notes[0]


DEEP = np.array([0, 40, 100, 200, 400, 32896, 65535], ">u2")
DEEP_AS_SRGB = [0, 2, 5, 10, 18, 188, 255]
"""Dark samples: reduced to 8 bits first, they would become 0 or 13."""


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("linear", [gamma(1.0), cicp(1, 8)])
def test_samples_of_16_bits_are_converted_before_they_are_reduced(
    channels: int, linear: tuple[bytes, bytes]
) -> None:
    colours = np.stack([DEEP, DEEP[::-1], DEEP], axis=1)[:, : 1 if channels < 3 else 3]
    alpha = np.full((7, 1), 0x80FF, ">u2")
    deep = (np.hstack([colours, alpha]) if channels in (2, 4) else colours).astype(">u2")
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    picture = read(png_of(b"\0" + deep.tobytes(), (7, 1), 16, kind, chunk(*linear)))
    expected = np.stack([DEEP_AS_SRGB, DEEP_AS_SRGB[::-1], DEEP_AS_SRGB], axis=1)
    if channels < 3:
        expected = np.repeat(expected[:, :1], 3, axis=1)
    assert np.abs(picture.rgb[0].astype(int) - expected).max() <= 1
    assert (picture.alpha is None) if channels in (1, 3) else (picture.alpha == 0x80).all()  # type: ignore[union-attr]
    assert picture.icc is None and len(picture.notes) == 2 and "16-bit" in picture.notes[1]


def test_interlaced_samples_of_16_bits_are_converted_alike() -> None:
    """The first pass of Adam7 has one of two pixels, the sixth the other."""
    rows = b"".join(b"\0" + np.full(3, value, ">u2").tobytes() for value in (40, 400))
    data = bytearray(png_of(rows, (2, 1), 16, 2, chunk(*gamma(1.0))))
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert read(bytes(data)).rgb[0, :, 0].tolist() == [2, 18]


def test_linear_samples_of_a_wide_space_get_the_curve_of_srgb() -> None:
    """The expected values are those of CSS for `color(display-p3-linear ...)`."""
    data = png(flat(), cicp(12, 8))
    kept, converted = read(data), read(data, "none")
    assert close(middle(kept), (244, 133, 110), 1) and "transfer curve" in kept.notes[1]
    assert close(middle(converted), (255, 126, 103)) and converted.icc is None
    assert kept.icc == read(png(flat(), cicp(12, 13))).icc


@pytest.mark.parametrize(
    "data",
    [
        png(flat(), gamma(1 / 2.2)),
        png(flat(), gamma(1 / 2.2), points(SRGB_POINTS)),
        png(flat(), (b"sRGB", b"\0"), gamma(1.0), points(P3)),
        png(flat(), cicp(1, 13), gamma(1.0)),
        png(flat(), cicp(1, 1)),
        avif(1, 13),
        avif(2, 2),
    ],
)
def test_srgb_by_any_name_is_left_alone(data: bytes) -> None:
    for metadata in ("icc", "none"):
        picture = read(data, metadata)  # type: ignore[arg-type]
        assert close(middle(picture), P3_RED) and picture.icc is None and picture.notes == ()


def test_of_several_the_one_that_png_puts_first_counts() -> None:
    wide = profile()
    over_profile = read(png(flat(), cicp(12, 13), icc_profile=wide), "none")
    assert close(middle(over_profile), SRGB_RED)
    profile_over_gamma = read(png(flat(), gamma(1.0), icc_profile=wide))
    assert profile_over_gamma.icc == wide and middle(profile_over_gamma) == list(P3_RED)
    profile_over_nclx = read(avif(12, 13, icc_profile=wide))
    assert profile_over_nclx.icc == wide
    adobe = exif_with_colour_space(0xFFFF, b"R03")
    srgb_over_exif = read(png(flat(), (b"sRGB", b"\0"), exif=adobe))
    assert srgb_over_exif.icc is None and srgb_over_exif.notes == ()


@pytest.mark.parametrize("points", [(2, 2), (99, 13), (12, 99)])
def test_code_points_that_say_nothing_leave_the_word_to_what_comes_next(
    points: tuple[int, int],
) -> None:
    wide, said_nothing = profile(), cicp(*points)
    assert read(png(flat(), said_nothing, icc_profile=wide)).icc == wide
    assert close(middle(read(png(flat((128,) * 3), said_nothing, gamma(1.0)))), (188,) * 3, 1)
    adobe = exif_with_colour_space(0xFFFF, b"R03")
    assert read(png(flat(), said_nothing, exif=adobe)).icc is not None
    assert read(avif(*points, exif=adobe)).icc is not None


def with_first_property(file: bytes, box: bytes) -> bytes:
    """Return an AVIF file of one item with a property before its own that no item has."""
    out, size = bytearray(file), len(box)
    for name in (b"meta", b"iprp", b"ipco"):
        at = out.index(name) - 4
        out[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", out, at)[0] + size)
    (pixels,) = struct.unpack_from(">I", out, out.index(b"iloc") + 18)
    struct.pack_into(">I", out, out.index(b"iloc") + 18, pixels + size)
    associations = out.index(b"ipma") + 15
    for at in range(associations, associations + out[associations - 1]):
        out[at] += 1
    first = out.index(b"ipco") + 4
    return bytes(out[:first] + box + out[first:])


@pytest.mark.parametrize("points", [(12, 13), (9, 16)])
def test_code_points_of_other_items_than_the_picture_do_not_count(points: tuple[int, int]) -> None:
    """Code points of a gain map or thumbnail must neither change colours nor refuse the file."""
    box = struct.pack(">I4s4sHHHB", 19, b"colr", b"nclx", *points, 6, 0x80)
    picture = read(with_first_property(avif(1, 13), box))
    assert close(middle(picture), P3_RED) and picture.icc is None and picture.notes == ()


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_with_the_reason(transfer: int, name: str) -> None:
    wide = profile()
    files = [png(flat(), cicp(9, transfer), **k) for k in ({}, {"icc_profile": wide})]
    for data in (*files, avif(9, transfer), avif(9, transfer, icc_profile=wide)):
        with pytest.raises(BadImage, match=f"HDR .{name} by"):
            read(data)


@pytest.mark.parametrize(
    "chunks",
    [
        [cicp(99, 13)],
        [cicp(12, 99)],
        [(b"cICP", bytes([12, 13, 0, 0]))],
        [(b"cICP", bytes([12, 13, 1, 1]))],
        [(b"cICP", bytes([12, 13]))],
        [(b"cICP", b"")],
        [gamma(0.0)],
        [gamma(42000)],
        [points((0.3, 0.0, *P3[2:]))],
        [points((0.3, 0.3) * 4)],
        [points((*D65, 0.64, 0.33, 0.64, 0.33, 0.15, 0.06))],
        [points((0.8, 0.1, *P3[2:]))],
        [points((-20000.0,) * 8)],
    ],
)
def test_what_makes_no_sense_is_left_out_with_a_note(chunks: list[tuple[bytes, bytes]]) -> None:
    picture = read(png(flat(), *chunks))
    assert middle(picture) == list(P3_RED) and picture.icc is None
    assert "that PNG" in picture.notes[0]


@pytest.mark.parametrize("cut", [1, 9, 40, 60, 100, 200])
def test_boxes_that_lie_about_their_size_are_no_trouble(cut: int) -> None:
    """Each box of an AVIF is made huge, empty or of another kind, one at a time."""
    data = avif(12, 13)
    for size in (0, 1, 7, 8, 2**31, 2**32 - 1):
        changed = data[:cut] + struct.pack(">I", size) + data[cut + 4 :]
        try:
            assert read(changed).rgb.shape == (16, 32, 3)
        except BadImage:
            pass


@pytest.mark.parametrize(("space", "index", "is_adobe"), [
    (0xFFFF, b"R03", True), (2, b"R98", True), (0xFFFF, b"R98", False), (1, b"R98", False),
])  # fmt: skip
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_adobe_rgb_that_only_exif_tells(
    format: str, space: int, index: bytes, is_adobe: bool
) -> None:
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    block = exif_with_colour_space(space, index)
    options = lossless.get(format, {})
    data = file_of(flat((120, 160, 90)), format, exif=block, **options)
    kept, converted = read(data), read(data, "none")
    assert close(middle(kept), (120, 160, 90)) and (kept.icc is not None) == is_adobe
    assert close(middle(converted), (97, 160, 84) if is_adobe else (120, 160, 90), 3)
    with_profile = file_of(flat(), format, exif=block, icc_profile=SRGB, **options)
    assert read(with_profile).notes == () and read(with_profile).icc is None


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "avif"])
def test_exif_that_is_kept_never_says_more_than_the_pixels_do(format: Format) -> None:
    """Greys of Adobe RGB become those of sRGB; the written file must not be converted again."""
    block = exif_with_colour_space(0xFFFF, b"R03")
    grey = read(file_of(flat(64, "L"), "JPEG", exif=block, quality=100), "all")
    assert close(middle(grey), (62,) * 3, 1) and grey.icc is None
    again = read(write_image(grey, format), "all")
    assert close(middle(again), middle(grey), 1) and again.notes == ()  # type: ignore[arg-type]
    carried = read(file_of(flat(), "PNG", exif=block), "all")
    again = read(write_image(carried, format), "all")
    assert carried.icc is not None and again.icc == carried.icc
    own = read(file_of(flat(64, "L"), "JPEG", exif=block, icc_profile=profile(b"GRAY")), "all")
    converted = read(write_image(own, format), "none")
    assert close(middle(converted), (81,) * 3) and "Exif" not in "".join(converted.notes)


def steps_in_floating_point(count: int) -> bytes:
    """A profile whose transform repeats one step, which swaps red and blue, many times."""
    swap = (0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0)
    step = b"matf" + bytes(4) + struct.pack(">HH12f", 3, 3, *swap)
    place = struct.pack(">II", 16 + 8 * count, len(step))
    return b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, count) + place * count + step


def test_a_profile_s_steps_in_floating_point_are_not_taken() -> None:
    """Each step is computed for 36,000 colours, and a profile may have half a million steps."""
    plain = profile()
    tags = {name: steps_in_floating_point(1) for name in (b"D2B0", b"D2B1", b"B2D0", b"B2D1")}
    more = profile(more=tags)
    expected = read(file_of(flat(), "PNG", icc_profile=plain), "none").rgb
    assert np.array_equal(read(file_of(flat(), "PNG", icc_profile=more), "none").rgb, expected)
    assert read(file_of(flat(), "PNG", icc_profile=more)).icc == more, "the profile is kept whole"
    for cut in range(120, 260):
        colour.to_srgb(more[:cut], "RGB")
    many = profile(more={b"D2B1": steps_in_floating_point(100_000)})
    assert np.array_equal(read(file_of(flat(), "JPEG", icc_profile=many), "none").rgb, read(
        file_of(flat(), "JPEG", icc_profile=plain), "none").rgb)  # fmt: skip
