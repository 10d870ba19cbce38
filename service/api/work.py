"""Requests' work from file bytes to file bytes, alone or several in one call of the codec.

It runs in a worker thread and knows no HTTP; nothing here may touch the event loop.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, TypeVar

from service.engine.target import Target
from service.engine.types import (
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
from service.images.cost import WriteLimits, effort_for
from service.images.read import Metadata, image_size, read_image
from service.images.resize import shrink, size_within, update_exif
from service.images.write import Format, WrittenImage, write_with_notes
from service.picture import Picture, Region, larger_note
from service.runtime.interruption import allow_interruption

T = TypeVar("T")

PIXELS_PER_SECOND: Final = 5e6
"""Pixels, as `Load` counts them, that a machine decodes in the time in which it writes
an image file for one second of `image_cost`: about what two cores of a Zen 4 do."""

SMALL_WORK: Final = 8 * 10**6
"""Largest work, in those pixels, that takes the lane for small work: a picture of about three
megapixels compressed and checked, or one to three seconds of two cores."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A fresh stream, the hash of its bytes in hex, and what reading the file changed."""

    compressed: Compressed
    sha256: str
    notes: tuple[str, ...]
    source_bytes: int
    read_s: float


@dataclass(frozen=True)
class View:
    """What to show of a stream, and how to write it.

    Attributes:
        forms: that may be written, the best first; the first that can hold the picture is.
        region: to show, None is all. max_size: of the longest side in pixels, None is as it is.
    """

    forms: tuple[Form, ...]
    region: Region | None
    max_size: int | None


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A written image file of `width` x `height` pixels, how it came about, and what it lacks."""

    data: bytes
    format: Format
    width: int
    height: int
    rate: float
    model: str
    timings: Timings
    write_s: float
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CompressFile:
    """An image file to compress at a rate or to a target. Calling it does the work.

    Raises:
        BadImage, TooManyPixels, RateUnavailable, TargetUnreachable: as `read_image` and `Codec` do.
    """

    codec: Codec
    data: bytes
    wanted: float | Target
    tune: str
    metadata: Metadata
    frame: int | None
    max_pixels: int

    def __call__(self) -> Stream:
        """Read the file and compress it."""
        picture, read_s = self.read()
        compressed = self.codec.compress(picture, self.wanted, self.tune)
        return self.stream(compressed, picture, read_s)

    def stream(self, compressed: Compressed, picture: Picture, read_s: float) -> Stream:
        """The answer, with what should be known of it."""
        digest = hashlib.sha256(compressed.data).hexdigest()
        notes = picture.notes + larger_note(len(compressed.data), len(self.data))
        return Stream(compressed, digest, notes, len(self.data), read_s)

    def read(self) -> tuple[Picture, float]:
        """The picture, and the seconds that reading it took."""
        begun = time.perf_counter()
        picture = read_image(
            self.data, max_pixels=self.max_pixels, metadata=self.metadata, frame=self.frame
        )
        return picture, time.perf_counter() - begun

    def load(self) -> Load:
        """What it may run beside and how much it is, by the file's header.

        The header tells of the first frame alone: pages of a TIFF may differ in size.

        Raises:
            TooManyPixels: as `Codec.compress` does.
        """
        size = None if self.frame else image_size(self.data)
        return self.codec.picture_load(size, self.wanted, self.tune)


@dataclass(frozen=True, eq=False)
class DecompressFile:
    """A stream to decompress to an image file. Calling it does the work.

    Raises:
        BadStream, TooManyPixels, BadParameter: as `Codec.decompress` does.
        NotAcceptable: the picture can be written in no form that is asked for.
    """

    codec: Codec
    data: bytes
    view: View
    limits: WriteLimits

    def __call__(self) -> ImageFile:
        """Decompress the stream and write the file."""
        forms = self.forms()
        return self.write(self.codec.decompress(self.data, self.view.region), forms)

    def forms(self) -> tuple[Form, ...]:
        """What may be written, the best first. Raises BadStream, NotAcceptable."""
        return self._forms_of(self._shape())

    def _forms_of(self, shape: StreamShape) -> tuple[Form, ...]:
        return choose_forms(self.view.forms, shape, self.limits)

    @cached_property
    def _preview(self) -> StreamPreview:
        """What the stream's header tells, read once."""
        return self.codec.preview_stream(self.data, self.view.region)

    def _shape(self) -> StreamShape:
        """What will be written, by the stream's header. Raises BadStream, BadParameter."""
        shape, view = self._preview.shape, self.view
        width, height = shape.width, shape.height
        if view.region is not None:
            view.region.check_inside(width, height)
            width, height = view.region.width, view.region.height
        if view.max_size is not None:
            width, height = size_within(width, height, view.max_size)
        return StreamShape(width, height, shape.has_alpha)

    def write(self, decoded: Decompressed, forms: Sequence[Form]) -> ImageFile:
        """The picture as an image file, in the first form that its encoder can write."""
        begun = time.perf_counter()
        picture, view = decoded.picture, self.view
        if view.region is not None:
            picture = update_exif(picture)
        if view.max_size is not None:
            picture = shrink(picture, view.max_size)
        allow_interruption()
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
        )

    def load(self) -> Load:
        """What it may run beside and how much it is, by the stream's header.

        Raises:
            BadStream, TooManyPixels, BadParameter: as `Codec.decompress` does.
            NotAcceptable: the picture can be written in no form that is asked for.
        """
        load, shape = self._preview.load, self._shape()
        form, area = self._forms_of(shape)[0], shape.width * shape.height
        seconds = effort_for(form.format, form.quality, area).seconds(area)
        return Load(load.pixels + round(seconds * PIXELS_PER_SECOND), load.group)


def _written(picture: Picture, forms: Sequence[Form]) -> tuple[Form, WrittenImage]:
    """The first form that the encoder can write the picture in. Raises NotAcceptable."""
    for form in forms[:-1]:
        with suppress(NotAcceptable):
            return form, write_with_notes(picture, form.format, quality=form.quality)
    last = forms[-1]
    return last, write_with_notes(picture, last.format, quality=last.quality)


def together(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Several of one group in one call of the codec: what each gives, or the exception it raises.

    Files are read and written one by one; what fails for one does not touch the others.
    """
    if all(isinstance(work, CompressFile) for work in works):
        return _compress_together([w for w in works if isinstance(w, CompressFile)])
    return _decompress_together([w for w in works if isinstance(w, DecompressFile)])


def _compress_together(works: Sequence[CompressFile]) -> list[Any]:
    read = [_outcome(work.read) for work in works]
    good = [outcome for outcome in read if not isinstance(outcome, Exception)]
    codec, rate, tune = works[0].codec, works[0].wanted, works[0].tune
    assert not isinstance(rate, Target)  # those have no group
    made = iter(codec.compress_batch([picture for picture, _ in good], rate, tune))

    def finish(work: CompressFile, outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            return outcome
        compressed = next(made)
        if isinstance(compressed, Exception):
            return compressed
        return work.stream(compressed, *outcome)

    return [finish(work, outcome) for work, outcome in zip(works, read, strict=True)]


def _decompress_together(works: Sequence[DecompressFile]) -> list[Any]:
    chosen = [_outcome(work.forms) for work in works]
    good = [w.data for w, forms in zip(works, chosen, strict=True) if isinstance(forms, tuple)]
    decoded = iter(works[0].codec.decompress_batch(good))

    def finish(work: DecompressFile, forms: tuple[Form, ...] | Exception) -> Any:
        if isinstance(forms, Exception):
            return forms
        one = next(decoded)
        return one if isinstance(one, Exception) else _outcome(partial(work.write, one, forms))

    return [finish(work, forms) for work, forms in zip(works, chosen, strict=True)]


def _outcome(work: Callable[[], T]) -> T | Exception:
    """What a step of one request gives; its failure is that request's alone."""
    try:
        return work()
    except Exception as error:
        return error
