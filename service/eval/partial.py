"""What parts of streams show: the picture after each segment, and pictures decoded at a scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import fmean
from typing import Any, Final

from service.codec import container
from service.engine.types import Codec
from service.eval.machine import Machine
from service.eval.metrics import psnr_db
from service.eval.pictures import NamedPicture
from service.images.resize import shrink
from service.picture import Picture, View

SCALES: Final = (8, 4, 2)
"""Divisors of both sides."""


@dataclass(frozen=True)
class PartMeasurement:
    """A part of a stream.

    Attributes:
        part: a segment, after which the stream is cut, or a scale such as "1/8".
        share: of the stream's bytes that are read, 0–1.
        psnr_db: against the original for a segment, against the shrunk whole picture for a scale.
    """

    image: str
    rate: float
    part: str
    share: float
    psnr_db: float


def measure_parts(
    pictures: Sequence[NamedPicture],
    codec: Codec,
    rates: Sequence[float],
    keep: Callable[[PartMeasurement], None],
) -> None:
    """Measure every part of every picture's stream at every rate, and hand each to `keep`."""
    for named in pictures:
        for rate in rates:
            data = codec.compress(named.picture, rate).data
            for part in chain(_segments(named.picture, codec, data), _scales(codec, data)):
                keep(PartMeasurement(named.name, rate, *part))


def _segments(picture: Picture, codec: Codec, data: bytes) -> Iterator[tuple[str, float, float]]:
    for segment, end in container.describe(data).marks:
        decoded = codec.decompress(data[:end], View(partial=True)).picture
        yield segment, end / len(data), psnr_db(picture, decoded.rgb)


def _scales(codec: Codec, data: bytes) -> Iterator[tuple[str, float, float]]:
    whole = codec.decompress(data).picture
    for scale in SCALES:
        view = View(size=(-(-whole.width // scale), -(-whole.height // scale)))
        decoded = codec.decompress(data, view).picture
        yield f"1/{scale}", 1.0, psnr_db(shrink(whole, view), decoded.rgb)


def summarise_parts(
    rows: Sequence[PartMeasurement], codec: Codec, machine: Machine
) -> dict[str, Any]:
    """Means over pictures for each rate and part, and how often PSNR fell after a segment."""
    groups: Mapping[tuple[float, str], list[PartMeasurement]] = defaultdict(list)
    for row in rows:
        groups[row.rate, row.part].append(row)
    model = codec.models()[0]
    return {
        "what": "parts",
        "schema": 1,
        "model": {"name": model.name, "sha256": model.sha256, "parameters": model.parameters},
        "machine": asdict(machine),
        "images": len({row.image for row in rows}),
        "falls": _falls(rows),
        "parts": [
            {
                "rate": rate,
                "part": part,
                "share": fmean(row.share for row in group),
                "largest_share": max(row.share for row in group),
                "psnr_db": fmean(row.psnr_db for row in group),
                "lowest_psnr_db": min(row.psnr_db for row in group),
            }
            for (rate, part), group in groups.items()
        ],
    }


def _falls(rows: Sequence[PartMeasurement]) -> int:
    """Number of segments after which a picture was worse than after the one before."""
    count = 0
    for before, after in zip(rows, rows[1:], strict=False):
        is_next = (before.image, before.rate) == (after.image, after.rate) and before.share < 1
        count += is_next and after.part[:2] != "1/" and after.psnr_db < before.psnr_db
    return count
