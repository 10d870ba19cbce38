"""The work to read a file before its first pixel is bounded by the size of the file."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import hostile_images as hostile
import numpy as np
import pytest
from image_files import chunk, file_of
from PIL import Image

from service.errors import BadImage
from service.images.limits import (
    MAX_EXIF_SEGMENTS,
    MAX_PACKED_CHUNKS,
    MAX_SCANS,
    MAX_SEGMENTS,
    MeteredFile,
)
from service.images.parts import work_limit
from service.images.read import image_size, read_image
from service.picture import Picture


@pytest.fixture(autouse=True)
def _as_in_a_program() -> Iterator[None]:
    """Pillow's warnings are silenced, as the service and the command line do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read(data: bytes, frame: int | None = None) -> Picture:
    return read_image(data, max_pixels=1 << 24, metadata="all", frame=frame)


def refused(data: bytes) -> str:
    """Return the message with which a file is refused."""
    with pytest.raises(BadImage) as caught:
        read(data)
    return str(caught.value)


def lines_of(work: Callable[[], object]) -> int:
    """Return the number of lines of Python that a call executes."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def try_to_read(data: bytes) -> None:
    """Read size and picture, as a request does."""
    image_size(data)
    try:
        read(data)
    except BadImage:
        pass


@pytest.mark.parametrize("name", hostile.SMALL_PARTS)
def test_small_parts_take_little_work(name: str) -> None:
    """Without limits, a megabyte of such parts takes 2 to 21 million lines of Python."""
    data = hostile.SMALL_PARTS[name](1 << 20)
    assert lines_of(lambda: try_to_read(data)) < 1_900_000


def test_a_file_in_memory_counts_its_reads() -> None:
    file = MeteredFile(bytes(1000))
    most = work_limit(1000)
    for _ in range(most):
        file.read(1)
    assert file.reads == most and file.getvalue() == bytes(1000)
    with pytest.raises(BadImage, match="too many small parts"):
        file.read(1)


def test_the_smallest_parts_that_programs_write_are_far_from_the_limit() -> None:
    """Sub-blocks of a GIF have 255 bytes and take two reads: of their length and their data."""
    size = 64 << 20
    assert 2 * size / 256 < work_limit(size) / 2


# --- what libraries in C do, which no line of Python shows


@pytest.mark.parametrize(
    "unit",
    [
        pytest.param(hostile.bomb(b"a\0\0", b"iCCP"), id="profiles"),
        pytest.param(hostile.bomb(b"\0\0", b"zTXt"), id="texts without a name"),
        pytest.param(hostile.bomb(b"a\0\1\0\0\0", b"iTXt", b"\xff"), id="texts that are no UTF-8"),
    ],
)
def test_few_parts_of_a_png_may_be_unpacked(unit: bytes) -> None:
    """Pillow does not limit these chunks: 6 MB of them took more than half a minute."""
    read(hostile.png(unit * MAX_PACKED_CHUNKS))
    message = "too many compressed texts or profiles"
    assert message in refused(hostile.png(unit * (MAX_PACKED_CHUNKS + 1)))
    assert message in refused(hostile.png(b"", after=unit * (MAX_PACKED_CHUNKS + 1)))


def test_packed_parts_and_pixels_have_no_more_data_than_they_can_take() -> None:
    """Empty blocks of deflate take up to 0.1 microseconds a byte to inflate."""
    text = chunk(b"zTXt", b"a\0\0" + hostile.empty_deflate(5 << 20))
    assert "too many compressed texts" in refused(hostile.png(text))
    large = hostile.png_of_pixels(hostile.empty_deflate(1 << 20))
    assert "more data than its pixels" in refused(large)
    late = large[:8] + chunk(b"abCd", b"\xff" * 30) + large[8:]  # its header comes second
    assert "more data than its pixels" in refused(late)
    plain = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * (5 << 20))
    assert read(hostile.png(plain)).width == hostile.SIDE, "uncompressed ones may be long"


def test_a_png_in_chunks_of_a_kilobyte_is_read() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1500, 1500, 3), np.uint8)
    data = file_of(Image.fromarray(noise), "PNG", compress_level=0)
    begin, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise), 0)
    cut = b"".join(chunk(b"IDAT", packed[k : k + 1024]) for k in range(0, len(packed), 1024))
    assert np.array_equal(read(data[:begin] + cut + data[end:]).rgb, noise)


def test_a_jpeg_has_a_hundred_scans_at_most() -> None:
    """A scan of a few bytes takes a pass over the whole picture: 2 MB of them took minutes."""
    assert read(hostile.jpeg_of_scans(MAX_SCANS)).width == hostile.SIDE
    assert "more than 100 scans" in refused(hostile.jpeg_of_scans(MAX_SCANS + 1))
    hidden = hostile.segment(0xFE, b"\xff\xd9")  # the end, in a comment
    data = hostile.jpeg_of_scans(MAX_SCANS + 1)
    last = data.rindex(b"\xff\xda")
    assert "more than 100 scans" in refused(data[:last] + hidden + data[last:])
    scans = hostile.segment(0xE1, b"\xff\xda" * 200)
    assert read(hostile.jpeg(scans)).width == hostile.SIDE, "in a segment they are none"


def test_a_jpeg_has_so_much_metadata_and_no_more() -> None:
    large = hostile.segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000))
    assert read(hostile.jpeg(large * 300)).width == hostile.SIDE
    many = "too many segments before its pixels"
    assert (
        read(hostile.jpeg(hostile.segment(0xFE, b"") * (MAX_SEGMENTS - 20))).width == hostile.SIDE
    )
    assert many in refused(hostile.jpeg(hostile.segment(0xFE, b"") * MAX_SEGMENTS))
    exif = hostile.segment(0xE1, b"Exif\0\0" + bytes(1000))
    assert read(hostile.jpeg(exif * MAX_EXIF_SEGMENTS)).width == hostile.SIDE
    assert many in refused(hostile.jpeg(exif * (MAX_EXIF_SEGMENTS + 1)))
    resources = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000
    assert many in refused(hostile.jpeg(hostile.segment(0xED, resources) * 80))
    early = file_of(hostile.IMAGE, "JPEG")
    ended = early[:2] + b"\xff\xd9" + exif * (MAX_EXIF_SEGMENTS + 1) + early[2:]
    assert many in refused(ended), "Pillow reads on after an end before the pixels"


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_a_heif_file_has_few_boxes_and_items(kind: str) -> None:
    """libavif searches the whole list for each item: 65,000 items took more than 20 seconds."""
    infe = b"".join(
        hostile.box(b"infe", b"\2\0\0\0" + struct.pack(">HH", 100 + n, 0) + b"abcd\0")
        for n in range(4000)
    )
    free = hostile.box(b"free", b"")
    message = "too many boxes, or items in them"
    assert message in refused(hostile.heif_with(kind, (b"meta", b"iinf"), infe))
    assert message in refused(hostile.heif_with(kind, (b"meta", b"iprp", b"ipco"), free * 1000))
    assert message in refused(hostile.heif_with(kind, (b"meta",), free * 10_000))
    assert message in refused(hostile.heif(kind) + free * 10_000)
    assert message in refused(hostile.heif(kind) + hostile.box(b"moov", bytes(300_000)))
    assert read(hostile.heif(kind) + free * 100).width == hostile.SIDE


def test_a_tiff_may_have_many_strips_pages_and_a_large_palette() -> None:
    tall = np.random.default_rng(2).integers(0, 256, (3000, 2), np.uint8)
    strips = file_of(Image.fromarray(tall), "TIFF", strip_size=2)
    assert np.array_equal(read(strips).rgb[..., 0], tall)
    first, *others = (Image.new("L", (2, 2), n % 256) for n in range(990))
    pages = file_of(first, "TIFF", save_all=True, append_images=others)
    assert read(pages, frame=500).rgb[0, 0, 0] == 500 % 256
    palette = hostile.tiff(320, 3, 3 * 65_536, bytes(6 * 65_536))
    assert read(palette).width == 4


def test_an_animation_is_read_to_its_last_frame() -> None:
    frames = [Image.new("P", (64, 64), n % 3) for n in range(400)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 90, 90, 90, 200, 200, 200])
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False)
    with Image.open(io.BytesIO(data)) as image:
        count = getattr(image, "n_frames", 1)
    assert count > 300
    assert read(data, frame=count - 1).width == 64


def test_exif_of_64_kib_is_no_reason_to_refuse_a_picture() -> None:
    """The work is bounded for any damage."""
    fractions = hostile.exif_of_fractions(8000)
    picture = read(hostile.jpeg(hostile.segment(0xE1, b"Exif\0\0" + fractions)))
    assert (picture.width, picture.height) == (hostile.SIDE, hostile.SIDE)
    entries = b"II*\0" + struct.pack("<IH", 8, 65_535)
    entries += b"".join(struct.pack("<HHII", n, 5, 8000, 8) for n in range(5400))
    assert read(hostile.jpeg(hostile.segment(0xE1, b"Exif\0\0" + entries))).width == hostile.SIDE
