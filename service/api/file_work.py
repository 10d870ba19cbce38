"""The work of requests, from file bytes to file bytes, for one request or for a batch of them.

It runs in a worker thread, knows no HTTP, and must not touch the event loop.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, TypeVar

from service.engine.comparison import (
    PEER_EFFORTS,
    USUAL_ENCODES,
    PeerFile,
    PeerFormat,
    check_comparable,
    compare,
)
from service.engine.target import Target
from service.engine.types import (
    LEAST_WORK,
    Codec,
    Compressed,
    Decompressed,
    Load,
    StreamPreview,
    StreamShape,
    Timings,
)
from service.errors import NotAcceptable
from service.http.negotiate import Form, choose_forms
from service.images.effects import Effects
from service.images.read import Metadata, image_size, read_image
from service.images.write import Format, WriteLimits, WrittenImage, effort_for, write_with_notes
from service.picture import WHOLE, Picture, View, larger_note

T = TypeVar("T")

PIXELS_PER_SECOND: Final = 5e6
"""Pixels, as `Load` counts them, that a machine decodes in one second. It converts the
seconds of writing an image file to pixels. Measured on two cores of a Zen 4."""

SMALL_WORK: Final = 8 * 10**6
"""Largest work, in pixels, that counts as small: to compress and check a picture of about three
megapixels, or one to three seconds of two cores."""


@dataclass(frozen=True, eq=False)
class StreamFile:
    """A new stream, the hash of its bytes in hex, and notes of what reading the file changed.

    `visible_share` is that of its picture.
    """

    compressed: Compressed
    sha256: str
    notes: tuple[str, ...]
    source_bytes: int
    read_s: float
    visible_share: float

    @property
    def timings(self) -> Timings:
        """Seconds of each part of the work but `read_s`."""
        return self.compressed.timings


@dataclass(frozen=True)
class Rendition:
    """What to decode of a stream, and how to write it.

    Attributes:
        forms: file formats, the best first. The first one that can hold the picture is written.
        effects: on the decoded picture, None for none at all.
    """

    forms: tuple[Form, ...]
    view: View = WHOLE
    effects: Effects | None = None


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image file of `width` x `height` pixels, its origin, and notes of what it leaves out.

    `complete` is the share of the coded picture that was there, see `Decompressed`.
    """

    data: bytes
    format: Format
    width: int
    height: int
    rate: float
    model: str
    timings: Timings
    write_s: float
    notes: tuple[str, ...]
    complete: float


@dataclass(frozen=True, eq=False)
class ComparedFile:
    """An image file in another format, the size of the picture, and the seconds of all work."""

    file: PeerFile
    width: int
    height: int
    work_s: float

    @property
    def bpp(self) -> float:
        """Bits of the file per pixel."""
        return 8 * len(self.file.data) / (self.width * self.height)


@dataclass(frozen=True, eq=False)
class CompressFile:
    """An image file to compress at a rate or to a target. Calling it does the work.

    `model` is the name of the model that compresses; None takes the first.

    Raises:
        BadImage, TooManyPixels, ModelUnavailable, RateUnavailable, TargetUnreachable: as
            `read_image` and `Codec` do.
    """

    codec: Codec
    data: bytes
    rate: float | Target
    tune: str
    model: str | None
    metadata: Metadata
    frame: int | None
    max_pixels: int

    def __call__(self) -> StreamFile:
        """Read the file and compress it."""
        read = self.prepare()
        compressed = self.codec.compress(read[0], self.rate, self.tune, self.model)
        return self.finish(read, compressed)

    def prepare(self) -> tuple[Picture, float]:
        """The picture, and the seconds that reading it took."""
        begun = time.perf_counter()
        picture = read_image(
            self.data, max_pixels=self.max_pixels, metadata=self.metadata, frame=self.frame
        )
        return picture, time.perf_counter() - begun

    def code_batch(
        self, prepared: Sequence[tuple[Picture, float]]
    ) -> Sequence[Compressed | Exception]:
        """Compress the pictures of several requests of one group."""
        assert not isinstance(self.rate, Target)  # requests with a target have no group
        pictures = [picture for picture, _ in prepared]
        return self.codec.compress_batch(pictures, self.rate, self.tune, self.model)

    def finish(self, read: tuple[Picture, float], compressed: Compressed) -> StreamFile:
        """The result for a compressed picture."""
        picture, read_s = read
        digest = hashlib.sha256(compressed.data).hexdigest()
        notes = picture.notes + larger_note(len(compressed.data), len(self.data))
        size, visible = len(self.data), picture.visible_share
        return StreamFile(compressed, digest, notes, size, read_s, visible)

    def load(self) -> Load:
        """How much work it is, by the file's header.

        The header describes only the first frame; pages of a TIFF may differ in size.

        Raises:
            TooManyPixels, ModelUnavailable: as `Codec.compress` does.
        """
        size = None if self.frame else image_size(self.data)
        return self.codec.picture_load(size, self.rate, self.tune, self.model)


@dataclass(frozen=True, eq=False)
class DecompressFile:
    """A stream to decompress to an image file. Calling it does the work.

    Raises:
        BadStream, TooManyPixels, BadParameter: as `Codec.decompress` does.
        NotAcceptable: the picture can be written in no requested form.
    """

    codec: Codec
    data: bytes
    rendition: Rendition
    limits: WriteLimits

    def __call__(self) -> ImageFile:
        """Decompress the stream and write the file."""
        forms = self.forms
        return self.write(self.codec.decompress(self.data, self.rendition.view), forms)

    def prepare(self) -> tuple[bytes, tuple[Form, ...]]:
        """The stream, and the forms that can be written."""
        return self.data, self.forms

    def code_batch(
        self, prepared: Sequence[tuple[bytes, tuple[Form, ...]]]
    ) -> Sequence[Decompressed | Exception]:
        """Decompress the streams of several requests of one group."""
        return self.codec.decompress_batch([stream for stream, _ in prepared])

    def finish(self, prepared: tuple[bytes, tuple[Form, ...]], decoded: Decompressed) -> ImageFile:
        """The image file of a decompressed stream."""
        return self.write(decoded, prepared[1])

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """Forms that can be written, the best first. Raises BadStream, NotAcceptable."""
        return choose_forms(self.rendition.forms, self._shape, self.limits)

    @cached_property
    def _preview(self) -> StreamPreview:
        """What the stream's header tells, read once."""
        return self.codec.preview_stream(self.data, self.rendition.view)

    @cached_property
    def _shape(self) -> StreamShape:
        """Shape of the image file, by the stream's header. Raises BadStream, BadParameter."""
        shape, view = self._preview.shape, self.rendition.view
        part = view.part(shape.width, shape.height)
        return StreamShape(*view.fit(part.width, part.height), shape.has_alpha)

    def write(self, decoded: Decompressed, forms: Sequence[Form]) -> ImageFile:
        """The picture as an image file, in the first form that its encoder can write."""
        begun = time.perf_counter()
        effects, picture = self.rendition.effects, decoded.picture
        if effects is not None:
            picture = effects.apply(picture)
        form, written = _written(picture, forms)
        return ImageFile(
            data=written.data,
            format=form.format,
            width=picture.width,
            height=picture.height,
            rate=decoded.rate,
            model=decoded.model,
            timings=decoded.timings,
            write_s=time.perf_counter() - begun,
            notes=picture.notes + written.notes,
            complete=decoded.complete,
        )

    def load(self) -> Load:
        """How much work it is, by the stream's header.

        Raises:
            BadStream, TooManyPixels, BadParameter: as `Codec.decompress` does.
            NotAcceptable: the picture can be written in no requested form.
        """
        load, form = self._preview.load, self.forms[0]
        area = self._shape.width * self._shape.height
        seconds = effort_for(form.format, form.quality, area).seconds(area)
        return Load(load.pixels + round(seconds * PIXELS_PER_SECOND), load.group)


def _written(picture: Picture, forms: Sequence[Form]) -> tuple[Form, WrittenImage]:
    """The first form that the encoder can write the picture in. Raises NotAcceptable."""
    for form in forms[:-1]:
        with suppress(NotAcceptable):
            return form, write_with_notes(picture, form.format, quality=form.quality)
    last = forms[-1]
    return last, write_with_notes(picture, last.format, quality=last.quality)


@dataclass(frozen=True, eq=False)
class CompareFile:
    """An image file to write in another format, for a size or a quality. Calling it does the work.

    Raises:
        BadImage, TooManyPixels, TargetUnreachable, NotAcceptable: as `read_image` and `compare` do.
    """

    data: bytes
    format: PeerFormat
    target: Target
    frame: int | None
    max_pixels: int
    limits: WriteLimits

    def __call__(self) -> ComparedFile:
        """Read the file and search for the quality."""
        begun = time.perf_counter()
        picture = read_image(
            self.data, max_pixels=self.max_pixels, metadata="none", frame=self.frame
        )
        file = compare(picture, self.format, self.target, self.limits)
        return ComparedFile(file, picture.width, picture.height, time.perf_counter() - begun)

    def load(self) -> Load:
        """How much work it is, by the file's header. Raises NotAcceptable: see `compare`."""
        size = None if self.frame else image_size(self.data)
        if size is None:
            return Load()
        check_comparable(self.format, *size, self.limits)
        seconds = USUAL_ENCODES * PEER_EFFORTS[self.format].seconds(size[0] * size[1])
        return Load(LEAST_WORK + round(seconds * PIXELS_PER_SECOND))


def run_batch(works: Sequence[Any]) -> list[Any]:
    """Do the work of several requests of one group in one call of the codec.

    Files are read and written one by one, and a failure of one request does not affect the others.

    Args:
        works: all of them a `CompressFile`, or all of them a `DecompressFile`.

    Returns:
        For each request its result, or the exception that it raised.
    """
    prepared = [_outcome(work.prepare) for work in works]
    ready = [item for item in prepared if not isinstance(item, Exception)]
    results = iter(works[0].code_batch(ready))
    outcomes = []
    for work, item in zip(works, prepared, strict=True):
        outcome = item if isinstance(item, Exception) else next(results)
        if not isinstance(outcome, Exception):
            outcome = _outcome(partial(work.finish, item, outcome))
        outcomes.append(outcome)
    return outcomes


def _outcome(work: Callable[[], T]) -> T | Exception:
    """The result of a step of one request, or the exception that it raised."""
    try:
        return work()
    except Exception as error:
        return error
