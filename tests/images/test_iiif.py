"""Paths and documents of the IIIF Image API 3.0, for every form of its specification."""

from __future__ import annotations

import numpy as np
import pytest

from service.errors import BadImagePath, BadParameter, UpscalingUnsupported
from service.images.effects import Effects
from service.images.iiif import ImagePath, SizeLimits, describe_image
from service.images.write import WriteLimits
from service.picture import WHOLE, Picture, Region, View

WIDE = SizeLimits(65_500, 10**9)
"""Limits that no picture here reaches."""

SIZE = 300, 200
"""Of the picture in the examples of the specification."""


def path(text: str) -> ImagePath:
    """The path that begins so, and ends as that of the whole picture as a JPEG file."""
    given = text.split("/")
    region, size, rotation, rest = given + ["full", "max", "0", "default.jpg"][len(given) :]
    quality, _, format = rest.partition(".")
    return ImagePath(region, size, rotation, quality, format)


def view(text: str, limits: SizeLimits = WIDE, size: tuple[int, int] = SIZE) -> View:
    return path(text).view(*size, limits)


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("full", None),
        ("0,0,300,200", None),
        ("pct:0,0,100,100", None),
        ("square", Region(50, 0, 200, 200)),
        ("125,15,120,140", Region(125, 15, 120, 140)),
        ("pct:41.6,7.5,40,70", Region(125, 15, 120, 140)),
        ("125,15,200,200", Region(125, 15, 175, 185)),
        ("pct:41.6,7.5,66.6,100", Region(125, 15, 175, 185)),
        ("299,199,1,1", Region(299, 199, 1, 1)),
        ("0,0,999999999,999999999", None),
        ("pct:.5,0,0.5,50", Region(2, 0, 1, 100)),
        ("pct:0,0,33.33333333333333333333,100", Region(0, 0, 100, 200)),
    ],
)
def test_a_region_is_cut_at_the_edges(text: str, region: Region | None) -> None:
    assert view(text) == View(region)


def test_percentages_that_meet_leave_no_gap_and_do_not_overlap() -> None:
    parts = [view(f"pct:{10 * n},0,10,100", size=(47, 1)).region for n in range(10)]
    edges = [(p.x, p.x + p.width) for p in parts if p is not None]
    assert edges[0][0] == 0 and edges[-1][1] == 47
    assert all(left[1] == right[0] for left, right in zip(edges, edges[1:], strict=False))


def test_a_tall_picture_is_square_in_its_middle() -> None:
    assert view("square", size=(200, 301)) == View(Region(0, 50, 200, 200))


@pytest.mark.parametrize(
    "text", ["300,0,1,1", "0,200,5,5", "0,0,0,10", "0,0,10,0", "pct:100,0,1,1", "pct:0,0,0.1,50"]
)
def test_a_region_without_pixels_of_the_picture_is_refused(text: str) -> None:
    with pytest.raises(BadImagePath, match="has no pixels"):
        view(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("full/max", None),
        ("full/300,", None),
        ("full/300,200", None),
        ("full/!999,200", None),
        ("full/!999,999", None),
        ("full/pct:100", None),
        ("full/150,", (150, 100)),
        ("full/,150", (225, 150)),
        ("full/pct:50", (150, 100)),
        ("full/pct:33.3", (100, 67)),
        ("full/225,100", (225, 100)),
        ("full/!225,100", (150, 100)),
        ("full/!100,225", (100, 67)),
        ("full/^150,", (150, 100)),
        ("full/^,100", (150, 100)),
        ("full/^225,100", (225, 100)),
        ("full/^!225,100", (150, 100)),
        ("full/^pct:50", (150, 100)),
        ("full/1,", (1, 1)),
        ("full/,1", (2, 1)),
        ("full/pct:0.01", (1, 1)),
        ("125,15,200,200/50,", (50, 53)),
    ],
)
def test_a_size_is_that_of_the_region(text: str, size: tuple[int, int] | None) -> None:
    assert view(text).size == size


@pytest.mark.parametrize("text", ["301,", ",201", "300,201", "301,200", "pct:100.1", "pct:120"])
def test_what_would_be_enlarged_is_refused(text: str) -> None:
    with pytest.raises(BadImagePath, match="larger than the region"):
        view(f"full/{text}")
    with pytest.raises(UpscalingUnsupported):
        view(f"full/^{text}")


def test_largest_sizes_that_may_be_enlarged_would_be() -> None:
    for text in ("^max", "^!301,201", "^!999,999"):
        with pytest.raises(UpscalingUnsupported):
            view(f"full/{text}")


@pytest.mark.parametrize("text", ["0,", ",0", "0,10", "10,0", "!0,10", "!10,0", "pct:0", "^0,5"])
def test_an_empty_size_is_refused(text: str) -> None:
    with pytest.raises(BadImagePath, match="empty"):
        view(f"full/{text}")


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        (SizeLimits(150, 10**9), (150, 100)),
        (SizeLimits(300, 15_000), (150, 100)),
        (SizeLimits(299, 10**9), (299, 199)),
        (SizeLimits(300, 59_999), (299, 199)),
    ],
)
def test_limits_make_the_largest_size_smaller(limits: SizeLimits, size: tuple[int, int]) -> None:
    assert view("full/max", limits).size == size
    assert view("full/^max", limits).size == size
    with pytest.raises(BadImagePath, match="expected at most"):
        view("full/300,200", limits)
    confined = view("full/!300,200", limits).size
    assert confined is not None and limits.allow(*confined)
    assert view("0,0,10,10/max", limits) == View(Region(0, 0, 10, 10))


@pytest.mark.parametrize(
    "text",
    [
        "", "Full", "full ", "1,2,3", "1,2,3,4,5", "-1,0,5,5", "1.5,0,5,5", "+1,0,5,5", "a,0,5,5",
        "1234567890,0,5,5", "pct:", "pct:1,2,3", "pct:-1,0,5,5", "pct:1e1,0,5,5", "pct:1.,0,5,5",
        "pct:٣,0,5,5", "1,2,3,4\n",
    ],
)  # fmt: skip
def test_a_malformed_region_is_refused(text: str) -> None:
    with pytest.raises(BadImagePath, match="malformed"):
        ImagePath(text, "max", "0", "default", "jpg")


@pytest.mark.parametrize(
    "text",
    [
        "", "full", ",", "!,", "!5,", "!,5", "^", "^^max", "max^", "5", "-5,", "1.5,", "pct:",
        "pct:-5", "pct:5,5", "!pct:5", "!max", "!^5,5", "5,5,", "٣,",
    ],
)  # fmt: skip
def test_a_malformed_size_is_refused(text: str) -> None:
    with pytest.raises(BadImagePath, match="malformed"):
        ImagePath("full", text, "0", "default", "jpg")


@pytest.mark.parametrize(
    ("rotation", "mirrored", "turns"),
    [
        ("0", False, 0), ("90", False, 1), ("180", False, 2), ("270", False, 3), ("360", False, 0),
        ("90.0", False, 1), ("!0", True, 0), ("!90", True, 1), ("!180", True, 2), ("!270", True, 3),
    ],
)  # fmt: skip
def test_rotations_are_quarter_turns(rotation: str, mirrored: bool, turns: int) -> None:
    assert path(f"full/max/{rotation}/gray.png").effects == Effects(mirrored, turns, "gray")


def test_other_rotations_qualities_and_formats_are_refused() -> None:
    for rotation in ("22.5", "450", "!1"):
        with pytest.raises(BadImagePath, match="multiple of 90"):
            path(f"full/max/{rotation}/default.jpg")
    for rotation in ("", "-90", "!", "!!0", "90!", "0x0"):
        with pytest.raises(BadImagePath, match="malformed"):
            path(f"full/max/{rotation}/default.jpg")
    for end in ("Default.jpg", "native.jpg", "default.jpeg", "default.gif", "default.", ".jpg"):
        with pytest.raises(BadImagePath, match="expected"):
            path(f"full/max/0/{end}")
    assert issubclass(BadImagePath, BadParameter)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("full/max/0/default.jpg", "full/max/0/default.jpg"),
        ("pct:0,0,100,100/300,/360/color.png", "full/max/0/default.png"),
        ("0,0,400,400/pct:50/!270.0/gray.webp", "full/150,100/!270/gray.webp"),
        ("square/!100,150/90/bitonal.avif", "50,0,200,200/100,100/90/bitonal.avif"),
        ("125,15,200,200/^175,/0/default.jpg", "125,15,175,185/max/0/default.jpg"),
    ],
)
def test_equal_pictures_have_one_canonical_path(text: str, canonical: str) -> None:
    assert path(text).canonical(*SIZE, WIDE) == canonical
    assert path(canonical).canonical(*SIZE, WIDE) == canonical
    assert path(canonical).view(*SIZE, WIDE) == path(text).view(*SIZE, WIDE)


def test_the_whole_picture_may_share_a_call_with_others() -> None:
    assert view("full/max") == WHOLE


def test_the_document_describes_the_picture_and_what_is_extra() -> None:
    document = describe_image("https://a.b/iiif/x", 8192, 6144, WIDE, has_alpha=False)
    assert next(iter(document)) == "@context"
    assert document == {
        "@context": "http://iiif.io/api/image/3/context.json",
        "id": "https://a.b/iiif/x",
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": 8192,
        "height": 6144,
        "sizes": [
            {"width": 1024, "height": 768},
            {"width": 2048, "height": 1536},
            {"width": 4096, "height": 3072},
            {"width": 8192, "height": 6144},
        ],
        "tiles": [{"width": 1024, "scaleFactors": [1, 2, 4, 8]}],
        "extraFormats": ["webp", "avif"],
        "extraQualities": ["color", "gray", "bitonal"],
        "extraFeatures": ["canonicalLinkHeader", "mirroring", "profileLinkHeader"],
    }
    clear = describe_image("x", 1, 1, WIDE, has_alpha=True)
    assert clear["preferredFormats"] == ["webp", "png"]
    assert clear["sizes"] == [{"width": 1, "height": 1}]
    assert clear["tiles"] == [{"width": 1024, "scaleFactors": [1]}]


def test_the_document_offers_nothing_beyond_the_limits() -> None:
    document = describe_image("x", 4001, 1000, SizeLimits(2500, 600_000), has_alpha=False)
    assert (document["maxWidth"], document["maxHeight"]) == (2500, 2500)
    assert document["maxArea"] == 600_000
    assert document["sizes"] == [{"width": 501, "height": 125}, {"width": 1001, "height": 250}]
    assert document["tiles"] == [{"width": 774, "scaleFactors": [1, 2, 4, 8]}]


def test_a_picture_of_the_largest_area_can_be_written_and_a_larger_one_cannot() -> None:
    limits = WriteLimits(1.0, 2**24)
    for format in ("jpeg", "png"):
        area = limits.largest_area(format)
        assert limits.refusal(format, None, area) is None
        assert limits.refusal(format, None, area + 2) is not None


RGB = np.random.default_rng(1).integers(0, 256, (3, 4, 3), np.uint8)


def test_a_picture_is_mirrored_before_it_is_turned_clockwise() -> None:
    alpha = RGB[..., 0]
    for turns in range(4):
        for mirrored in (False, True):
            made = Effects(mirrored, turns).apply(Picture(RGB, alpha, exif=b"MM"))
            expected = RGB[:, ::-1] if mirrored else RGB
            for _ in range(turns):  # the left column, read upwards, becomes the top row
                expected = expected[::-1].transpose(1, 0, 2)
            assert np.array_equal(made.rgb, expected)
            assert made.alpha is not None and np.array_equal(made.alpha, expected[..., 0])
            assert made.rgb.flags.c_contiguous and made.exif is None and not made.grey


def test_grey_and_black_and_white_are_of_the_luma() -> None:
    luma = (RGB @ np.array([19595, 38470, 7471]) + 0x8000 >> 16).astype(np.uint8)
    grey = Effects(tone="gray").apply(Picture(RGB))
    assert grey.grey and np.array_equal(grey.samples()[..., 0], luma)
    two = Effects(tone="bitonal").apply(Picture(RGB))
    assert two.grey and np.array_equal(two.samples()[..., 0], np.where(luma < 128, 0, 255))
    with_profile = Effects(tone="gray").apply(Picture(RGB, icc=b"profile"))
    assert not with_profile.grey and np.array_equal(with_profile.rgb, grey.rgb)
