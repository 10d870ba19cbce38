"""Image files to pictures and back, with real files of every kind."""

from __future__ import annotations

import io
from typing import Any, get_args

import numpy as np
import pytest
from image_files import SRGB, chunk, exif_of, file_of, grey_tiff, photo, png_of, profile
from PIL import ExifTags, Image, ImageCms, ImageOps

from service.errors import BadImage, BadParameter, NotAcceptable
from service.images.read import Metadata, read_image
from service.images.resize import shrink
from service.images.write import MEDIA_TYPES, Format, write_image, write_with_notes
from service.picture import U8, Picture, Region, View

RGB = photo()
GREY = RGB[..., 1]
ALPHA: U8 = np.ascontiguousarray(RGB[..., 0])
FORMATS: tuple[Format, ...] = get_args(Format)


def read(data: bytes, metadata: Metadata = "icc") -> Picture:
    return read_image(data, max_pixels=1 << 20, metadata=metadata)


def psnr_db(a: U8, b: U8) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def three(grey: U8) -> U8:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg", "quality": 100}),
        ("BMP", {}),
        ("PPM", {}),
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}),
        ("AVIF", {"quality": 98, "subsampling": "4:4:4"}),
    ],
)
def test_colours_are_those_of_the_file(format: str, options: dict[str, Any]) -> None:
    picture = read(file_of(Image.fromarray(RGB), format, **options))
    lossy = "quality" in options
    assert picture.rgb.dtype == np.uint8 and picture.rgb.shape == RGB.shape
    assert psnr_db(picture.rgb, RGB) > (38 if lossy else 90)
    assert picture.alpha is None and picture.icc is None and picture.exif is None
    assert not picture.grey and picture.notes == ()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_alpha_is_kept_and_colours_under_it_are_not_touched(format: str) -> None:
    rgba = np.dstack([RGB, ALPHA])
    lossless = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}}
    data = file_of(Image.fromarray(rgba), format, **lossless.get(format, {}))
    picture = read(data)
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, ALPHA)
    if format != "AVIF":
        assert np.array_equal(picture.rgb, RGB)


def test_alpha_that_hides_nothing_is_dropped() -> None:
    opaque = np.full_like(GREY, 255)
    picture = read(file_of(Image.fromarray(np.dstack([RGB, opaque])), "PNG"))
    assert picture.alpha is None
    assert np.array_equal(picture.rgb, RGB)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "GIF", "JPEG"])
def test_grey_gives_three_equal_channels(format: str) -> None:
    options = {"quality": 100} if format == "JPEG" else {}
    picture = read(file_of(Image.fromarray(GREY), format, **options))
    assert picture.grey
    assert np.array_equal(picture.rgb, three(picture.rgb[..., 0]))
    assert np.abs(picture.rgb[..., 0].astype(int) - GREY).max() <= (1 if options else 0)


def test_bilevel_is_black_and_white() -> None:
    bits = Image.fromarray(GREY).point(lambda v: 255 * (v > 99), mode="1")
    for format in ("PNG", "TIFF", "BMP", "GIF", "PPM"):
        picture = read(file_of(bits, format))
        assert picture.grey
        assert np.array_equal(picture.rgb, three(np.where(GREY > 99, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_grey_with_alpha(format: str) -> None:
    picture = read(file_of(Image.fromarray(np.dstack([GREY, ALPHA])), format))
    assert picture.grey and picture.alpha is not None
    assert np.array_equal(picture.alpha, ALPHA)
    assert np.array_equal(picture.rgb, three(GREY))


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "BMP"])
def test_palette_colours_are_looked_up(format: str) -> None:
    indexed = Image.fromarray(RGB).quantize(50)
    picture = read(file_of(indexed, format))
    assert np.array_equal(picture.rgb, np.asarray(indexed.convert("RGB")))
    assert picture.alpha is None and not picture.grey


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_alpha(format: str) -> None:
    indexed = Image.fromarray(RGB).quantize(50)
    picture = read(file_of(indexed, format, transparency=7))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.where(np.asarray(indexed) == 7, 0, 255))


def test_a_palette_may_have_an_alpha_for_each_entry() -> None:
    indexed = Image.fromarray(RGB).quantize(50)
    alphas = bytes(range(100, 150))
    picture = read(file_of(indexed, "PNG", transparency=alphas))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.asarray(indexed) + np.uint8(100))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_shallow_grey_is_spread_and_its_transparent_level_found(bits: int) -> None:
    top = (1 << bits) - 1
    row = bytes([0, int("".join(f"{v:0{bits}b}" for v in [0, top] * (4 // bits)), 2)])
    level = chunk(b"tRNS", top.to_bytes(2, "big"))
    width = len([0, top] * (4 // bits))
    picture = read(png_of(row, (width, 1), bits, 0, level))
    assert picture.alpha is not None and picture.grey and picture.notes == ()
    assert picture.rgb[0, :2, 0].tolist() == [0, 255]
    assert picture.alpha[0, :2].tolist() == [255, 0]


DEEP = (np.arange(37, dtype=np.uint32)[None, :] * 65535 // 36 * np.ones((3, 1), np.uint32)).astype(
    np.uint16
)
DEEP_IN_8 = np.round(DEEP / 257).astype(np.uint8)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    note = ("16-bit samples reduced to 8 bits",)
    for format in ("PNG", "TIFF", "PPM"):
        picture = read(file_of(Image.fromarray(DEEP), format))
        assert np.array_equal(picture.rgb, three(DEEP_IN_8))
        assert picture.grey and picture.notes == note


def test_white_may_be_zero_in_a_deep_tiff() -> None:
    picture = read(grey_tiff(DEEP, 16, photometric=0))
    assert np.array_equal(picture.rgb, three(255 - DEEP_IN_8))


def test_16_bit_grey_may_have_a_transparent_level() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    level = chunk(b"tRNS", int(DEEP[0, 5]).to_bytes(2, "big"))
    picture = read(png_of(rows, (37, 3), 16, 0, level))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.where(DEEP == DEEP[0, 5], 0, 255))


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_and_alpha_are_noted(colour: int, channels: int) -> None:
    samples = np.stack([DEEP] * (channels - 1) + [DEEP[:, ::-1]], axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    picture = read(png_of(rows, (37, 3), 16, colour))
    assert np.abs(picture.rgb[..., 0].astype(int) - DEEP_IN_8).max() <= 1
    assert picture.grey == (colour == 4)
    assert (picture.alpha is not None) == (colour != 2)
    assert picture.notes == ("16-bit samples reduced to 8 bits",)


def test_16_bit_rgb_may_have_a_transparent_colour() -> None:
    samples = np.stack([DEEP, DEEP, DEEP], axis=-1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    level = chunk(b"tRNS", int(DEEP[0, 36]).to_bytes(2, "big") * 3)
    picture = read(png_of(rows, (37, 3), 16, 2, level))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.where(DEEP == 65535, 0, 255))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_without_a_profile_is_converted_plainly(format: str, progressive: bool) -> None:
    cmyk = Image.fromarray(RGB).convert("CMYK")
    options = {"quality": 98, "subsampling": 0} if format == "JPEG" else {}
    picture = read(file_of(cmyk, format, progressive=progressive, **options))
    assert psnr_db(picture.rgb, RGB) > 38
    assert picture.notes == ("CMYK without a profile converted to RGB",)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, format: str, order: str) -> None:
    block = exif_of(orientation, order)
    lossy = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}
    lossy["AVIF"] = {"quality": 98, "subsampling": "4:4:4"}
    exif = Image.Exif()
    exif.load(block)
    data = file_of(Image.fromarray(RGB), format, exif=exif, **lossy.get(format, {}))
    upright = np.asarray(ImageOps.exif_transpose(_with_orientation(orientation)))
    picture = read(data, metadata="all")
    assert picture.rgb.shape == upright.shape
    assert psnr_db(picture.rgb, upright) > 38
    again = read(write_image(picture, "png"), metadata="all")
    assert np.array_equal(again.rgb, picture.rgb)


def _with_orientation(orientation: int) -> Image.Image:
    image = Image.fromarray(RGB)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return image


def test_orientation_turns_alpha_too() -> None:
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    picture = read(file_of(rgba, "PNG", exif=exif_of(6)))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.rot90(ALPHA, -1))


@pytest.mark.parametrize("format", FORMATS)
def test_all_keeps_exif_with_the_orientation_reset(format: Format) -> None:
    data = file_of(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0" + exif_of(6))
    picture = read(data, metadata="all")
    assert picture.exif == exif_of(1)
    assert read(data).exif is None and read(data, metadata="none").exif is None
    written = read(write_image(picture, format), metadata="all")
    assert written.exif is not None and written.rgb.shape == (37, 24, 3)
    kept = Image.Exif()
    kept.load(written.exif)
    assert kept[ExifTags.Base.Make] == "abc"


def test_exif_of_tiff_is_its_describing_tags() -> None:
    made = Image.Exif()
    made[ExifTags.Base.Make] = "abc"
    made[ExifTags.IFD.Exif] = {ExifTags.Base.LensModel: "50 mm"}
    exif = Image.Exif()
    exif.load(made.tobytes())
    picture = read(file_of(Image.fromarray(RGB), "TIFF", exif=exif), metadata="all")
    assert picture.exif is not None
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept[ExifTags.Base.Make] == "abc"
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] == "50 mm"
    assert ExifTags.Base.ImageWidth not in kept


def test_a_profile_is_kept_and_written() -> None:
    wide = profile()
    picture = read(file_of(Image.fromarray(RGB), "PNG", icc_profile=wide))
    assert picture.icc == wide and picture.notes == ()
    assert np.array_equal(picture.rgb, RGB)
    for format in FORMATS:
        assert read(write_image(picture, format)).icc == wide


def test_without_the_profile_colours_are_converted_not_shifted() -> None:
    wide = profile()
    image = Image.fromarray(RGB)
    picture = read(file_of(image, "PNG", icc_profile=wide), metadata="none")
    expected = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(wide)),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    assert expected is not None
    assert np.abs(picture.rgb.astype(int) - np.asarray(expected)).max() <= 2
    assert np.abs(picture.rgb.astype(int) - RGB).max() > 20
    assert picture.icc is None
    assert picture.notes == ("colours converted to sRGB by the file's profile",)


def test_a_profile_that_says_srgb_says_nothing() -> None:
    data = file_of(Image.fromarray(RGB), "PNG", icc_profile=SRGB)
    for metadata in ("icc", "none"):
        picture = read(data, metadata)
        assert picture.icc is None and picture.notes == ()
        assert np.array_equal(picture.rgb, RGB)
    assert read(data, "all").icc == SRGB


def test_a_grey_profile_stays_with_grey_files_only() -> None:
    gamma = profile(b"GRAY")
    picture = read(file_of(Image.fromarray(GREY), "PNG", icc_profile=gamma))
    assert picture.grey and picture.icc == gamma
    assert read(write_image(picture, "png")).icc == gamma
    expected = read(file_of(Image.fromarray(GREY), "PNG", icc_profile=gamma), "none")
    assert expected.icc is None
    linear = (GREY / 255) ** 1.8
    srgb = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert np.abs(expected.rgb[..., 0] - srgb).max() <= 2
    webp = read(write_image(picture, "webp"))
    assert webp.icc is None
    assert np.array_equal(webp.rgb, expected.rgb)


@pytest.mark.parametrize("bad", [profile(b"GRAY"), b"not a profile", profile()[:200]])
def test_a_profile_that_does_not_fit_is_left_out_with_a_note(bad: bytes) -> None:
    picture = read(file_of(Image.fromarray(RGB), "JPEG", icc_profile=bad), "all")
    assert picture.icc is None
    assert [note for note in picture.notes if "profile" in note]


def test_a_grey_file_with_a_colour_profile_is_converted() -> None:
    picture = read(file_of(Image.fromarray(GREY), "PNG", icc_profile=profile()))
    assert picture.grey and picture.icc is None and len(picture.notes) == 1
    assert np.array_equal(picture.rgb, three(picture.rgb[..., 0]))
    assert not np.array_equal(picture.rgb[..., 0], GREY)


@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_lossless_formats_give_back_the_picture(
    format: Format, grey: bool, alpha: U8 | None
) -> None:
    rgb = three(GREY) if grey else RGB
    back = read(write_image(Picture(rgb, alpha, grey), format))
    visible = np.ones_like(rgb, bool) if alpha is None else (alpha > 0)[..., None]
    assert np.array_equal(back.rgb, np.where(visible, rgb, 0))
    assert (back.alpha is None) if alpha is None else np.array_equal(back.alpha, alpha)
    assert back.grey == (grey and format == "png")


@pytest.mark.parametrize("quality", [None, 60])
@pytest.mark.parametrize("format", ["png", "webp", "avif"])
def test_colours_under_alpha_0_change_no_byte_that_is_written(
    format: Format, quality: int | None
) -> None:
    if format == "png":
        quality = None
    alpha = np.where(ALPHA > 128, ALPHA, 0).astype(np.uint8)
    other = np.where(alpha[..., None] > 0, RGB, RGB[::-1])
    assert not np.array_equal(other, RGB)
    files = [write_image(Picture(rgb, alpha), format, quality=quality) for rgb in (RGB, other)]
    assert files[0] == files[1]
    back = read(files[0])
    assert back.alpha is not None
    if quality is None and format != "avif":
        assert not back.rgb[back.alpha == 0].any()


def test_grey_is_written_as_grey_where_the_format_can() -> None:
    picture = Picture(three(GREY), None, grey=True)
    for format in ("png", "jpeg"):
        with Image.open(io.BytesIO(write_image(picture, format))) as image:
            assert image.mode == "L"
    assert psnr_db(read(write_image(picture, "avif")).rgb, picture.rgb) > 34


def test_jpeg_is_laid_on_white() -> None:
    back = read(write_image(Picture(RGB, ALPHA), "jpeg", quality=100))
    weight = ALPHA[..., None] / 255
    expected = np.round(RGB * weight + 255 * (1 - weight)).astype(np.uint8)
    assert psnr_db(back.rgb, expected) > 38


@pytest.mark.parametrize("format", ["webp", "jpeg", "avif"])
def test_more_quality_is_more_bytes_and_less_error(format: Format) -> None:
    picture = Picture(photo(64, 64))
    files = [write_image(picture, format, quality=quality) for quality in (10, 60, 95)]
    sizes = [len(data) for data in files]
    errors = [psnr_db(read(data).rgb, picture.rgb) for data in files]
    assert sizes == sorted(sizes) and errors == sorted(errors) and errors[0] + 3 < errors[2]


def test_a_quick_png_is_the_same_picture_in_more_bytes_than_a_small_one() -> None:
    rows = np.random.default_rng(2).integers(0, 256, (6, 80, 3), np.uint8)
    picture = Picture(np.tile(rows, (10, 1, 1)))  # repeats that are no runs
    quick = write_image(picture, "png")
    small = write_with_notes(picture, "png", small_png=True).data
    assert np.array_equal(read(quick).rgb, picture.rgb)
    assert np.array_equal(read(small).rgb, picture.rgb)
    assert len(small) < len(quick)


def test_a_quick_png_of_one_colour_is_small() -> None:
    flat = Picture(np.full((300, 400, 3), 77, np.uint8))
    assert len(write_image(flat, "png")) < 300 * 400 * 3 / 100


def test_bad_quality_is_refused() -> None:
    with pytest.raises(BadParameter, match="PNG is lossless"):
        write_image(Picture(RGB), "png", quality=90)
    for quality in (0, 101):
        with pytest.raises(BadParameter, match=f"quality is {quality}, expected 1 to 100"):
            write_image(Picture(RGB), "jpeg", quality=quality)


def test_a_side_too_long_for_the_format_is_refused() -> None:
    with pytest.raises(NotAcceptable, match="webp holds at most 16383 pixels a side"):
        write_image(Picture(np.zeros((1, 16384, 3), np.uint8)), "webp")
    assert read(write_image(Picture(np.zeros((1, 16383, 3), np.uint8)), "webp")).width == 16383
    with pytest.raises(NotAcceptable, match="jpeg holds at most"):
        write_image(Picture(np.zeros((65501, 1, 3), np.uint8)), "jpeg")


def test_exif_too_long_for_jpeg_is_left_out() -> None:
    long = exif_of(1) + bytes(65536)
    picture = Picture(RGB, exif=long)
    assert read(write_image(picture, "jpeg"), "all").exif is None
    assert read(write_image(picture, "png"), "all").exif == long


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("format", FORMATS)
def test_the_smallest_pictures_are_written_and_read(format: Format, size: tuple[int, int]) -> None:
    back = read(write_image(Picture(np.full((*size, 3), 100, np.uint8)), format))
    assert back.rgb.shape == (*size, 3)
    assert np.abs(back.rgb.astype(int) - 100).max() <= 2


def test_media_types_are_those_that_pillow_knows() -> None:
    assert MEDIA_TYPES == {format: Image.MIME[format.upper()] for format in FORMATS}


@pytest.mark.parametrize("grey", [False, True])
def test_shrinking_a_flat_picture_keeps_its_colour(grey: bool) -> None:
    flat = Picture(np.full((40, 100, 3), 90, np.uint8), None, grey, notes=("kept",))
    small = shrink(flat, View(max_size=25))
    assert small.rgb.shape == (10, 25, 3) and (small.rgb == 90).all()
    assert small.grey == grey and small.notes == ("kept",) and small.alpha is None


def test_shrinking_never_enlarges_or_loses_a_side() -> None:
    picture = Picture(RGB)
    assert shrink(picture, View(max_size=37)) is picture
    line = shrink(Picture(np.zeros((1, 500, 3), np.uint8)), View(max_size=10))
    assert line.rgb.shape == (1, 10, 3)
    assert shrink(picture, View(size=(30, 5))).rgb.shape == (5, 30, 3)
    outside = Region(9, 0, 30, 1)
    for view in (View(max_size=0), View(size=(38, 1)), View(size=(0, 1)), View(outside)):
        with pytest.raises(BadParameter, match=r"max_size is 0|size is|reaches outside"):
            view.part(37, 24)


def test_transparent_pixels_do_not_bleed_when_shrunk() -> None:
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[:, :15, 0], rgb[:, 15:, 1] = 200, 255
    alpha = np.zeros((32, 32), np.uint8)
    alpha[:, :15] = 255
    small = shrink(Picture(rgb, alpha), View(max_size=8))
    assert small.alpha is not None
    visible = small.alpha > 20
    assert small.rgb[visible][:, 1].max() == 0 and small.rgb[visible][:, 0].min() > 190


def test_floating_point_is_refused_with_a_way_out() -> None:
    unread = Image.fromarray(DEEP.astype(np.float32))
    with pytest.raises(BadImage, match="floating-point numbers; save it with 8 or 16 bits"):
        read(file_of(unread, "TIFF"))
