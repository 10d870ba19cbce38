"""Rate and quality of the codec and its peers over a folder of pictures, from whole files.

Every picture goes through every codec at every setting; what is measured is the file's length and
the pixels that come back out of it, never an estimate. Our encoder runs without its own check here,
since the stream is decoded anyway: times are pixels to bytes and bytes to pixels for everyone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from time import perf_counter
from typing import Any, Final

from service.codec.container import PSNR, TUNES
from service.engine.types import Codec
from service.errors import BadParameter
from service.eval import curves, metrics
from service.eval.machine import Machine
from service.eval.peers import Peer, decompress, library_versions
from service.eval.pictures import Named, decode_on_white
from service.eval.rows import OUR_NAMES, OURS, Row, our_name
from service.picture import U8

SCHEMA: Final = 1
DEFAULT_ANCHORS: Final = ("avif-s6-444", "avif-s6-420", "webp-m6", "jpeg-420")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        rates: of our ladders. peers: with all their qualities.
        perceptual: also SSIMULACRA 2, about a second for each file.
        tunes: which of our ladders.
    """

    rates: tuple[float, ...]
    peers: tuple[Peer, ...]
    perceptual: bool = False
    tunes: tuple[str, ...] = (PSNR,)

    @property
    def files(self) -> int:
        """Files for each picture."""
        return len(self.rates) * len(self.tunes) + sum(len(p.qualities) for p in self.peers)


def parse_rates(text: str) -> tuple[float, ...]:
    """Read "4", "1-8" or "2,4,6.5".

    Raises:
        BadParameter: neither numbers nor a range of whole numbers.
    """
    try:
        if "-" in text:
            first, last = (int(part) for part in text.split("-"))
            rates = tuple(float(r) for r in range(first, last + 1))
        else:
            rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates:
        raise BadParameter(f"rates are {text!r}, expected 4, or 1-8, or 2,4,6.5")
    return rates


def parse_tunes(text: str) -> tuple[str, ...]:
    """Read "psnr" or "psnr,ms-ssim".

    Raises:
        BadParameter: a name that is no tune.
    """
    tunes = tuple(dict.fromkeys(text.split(",")))
    unknown = [t for t in tunes if t not in TUNES]
    if unknown:
        raise BadParameter(f"no tune {unknown[0]!r}; there are {', '.join(TUNES)}")
    return tunes


def evaluate(
    pictures: Sequence[Named],
    codec: Codec,
    plan: Plan,
    known: Sequence[Row],
    done: Callable[[Row], None],
) -> tuple[Row, ...]:
    """Measure every picture with every codec at every setting.

    Args:
        pictures: to compress. codec: ours. plan: the settings.
        known: rows of earlier runs; those of the same pixels, peer and setting are taken over.
        done: called with each row as it is finished.

    Raises:
        RateUnavailable: the store does not hold one of the rates; nothing was measured.
    """
    for tune, rate in product(plan.tunes, plan.rates):
        codec.compress(pictures[0].picture, rate, tune)  # also warms up
    taken = {row.key: row for row in known if row.codec not in OUR_NAMES}
    rows = []
    for named in pictures:
        for codec_name, setting, compress, expand in _codecs(codec, plan, named):
            row = taken.get((digest(named), codec_name, setting))
            if row is None or (plan.perceptual and row.ssimulacra2 is None):
                row = _measure(named, codec_name, setting, compress, expand, plan.perceptual)
            rows.append(row)
            done(row)
    return tuple(rows)


def summarise(
    rows: Sequence[Row], codec: Codec, machine: Machine, anchor: str | None
) -> dict[str, Any]:
    """All results as one JSON object.

    Args:
        rows: of one evaluation. codec: for the model's name and hash. machine: that it ran on.
        anchor: of BD-rate: a codec that was measured, or a published curve over Kodak.

    Raises:
        BadParameter: there is no curve of the anchor's name.
    """
    images = tuple(dict.fromkeys(r.image for r in rows))
    measured = curves.average(rows)
    references = curves.published() if curves.is_kodak(images) else ()
    base = _anchor(measured, references, anchor)
    model = codec.models()[0]
    return {
        "what": "eval",
        "schema": SCHEMA,
        "images": len(images),
        "kodak": curves.is_kodak(images),
        "model": {"name": model.name, "sha256": model.sha256, "parameters": model.parameters},
        "machine": asdict(machine),
        "libraries": library_versions(),
        "curves": [_curve(c) for c in measured],
        "at_equal": {m: [asdict(e) for e in curves.at_equal(rows, m)] for m in curves.METRICS},
        "published_at_our_psnr": _published(measured, references),
        "bd_rate": _bd_rates(measured, references, base) if base else None,
        "tunes": _between_tunes(measured),
    }


def to_json(summary: Mapping[str, Any]) -> str:
    """The summary as it is committed: indented, six digits, ends in a newline."""
    return json.dumps(_rounded(summary), indent=1, allow_nan=False) + "\n"


def _codecs(
    codec: Codec, plan: Plan, named: Named
) -> Iterator[tuple[str, str, Callable[[], bytes], Callable[[bytes], U8]]]:
    """(codec, setting, compress, decompress) of every file to make of a picture."""
    for tune, rate in product(plan.tunes, plan.rates):

        def ours(rate: float = rate, tune: str = tune) -> bytes:
            return codec.compress(named.picture, rate, tune).data

        setting = f"rate {rate:g}"
        yield our_name(tune), setting, ours, partial(decode_on_white, codec)
    for peer in plan.peers:
        for quality in peer.qualities:

            def theirs(peer: Peer = peer, quality: int = quality) -> bytes:
                return peer.compress(named.picture, quality)

            yield peer.name, f"q{quality}", theirs, decompress


def _measure(
    named: Named,
    codec: str,
    setting: str,
    compress: Callable[[], bytes],
    expand: Callable[[bytes], U8],
    perceptual: bool,
) -> Row:
    start = perf_counter()
    data = compress()
    encoded = perf_counter()
    rgb = expand(data)
    decoded = perf_counter()
    original = named.on_white
    height, width, _ = original.shape
    return Row(
        image=named.name,
        sha256=digest(named),
        width=width,
        height=height,
        codec=codec,
        setting=setting,
        bytes=len(data),
        bpp=8 * len(data) / (width * height),
        psnr_db=metrics.psnr_db(named.picture, rgb),
        ms_ssim=metrics.ms_ssim(original, rgb),
        ssimulacra2=metrics.ssimulacra2(original, rgb) if perceptual else None,
        encode_ms=1000 * (encoded - start),
        decode_ms=1000 * (decoded - encoded),
    )


def digest(named: Named) -> str:
    """The first 16 hex digits of the sha256 of a picture's pixels."""
    alpha = b"" if named.alpha is None else named.alpha.tobytes()
    pixels = named.rgb.tobytes() + repr(named.rgb.shape).encode() + alpha
    return hashlib.sha256(pixels).hexdigest()[:16]


def _anchor(
    measured: Sequence[curves.Curve], references: Sequence[curves.Curve], wanted: str | None
) -> curves.Curve | None:
    """The curve that is wanted; else VTM over Kodak, else the peer that does best as a rule."""
    by_name = {c.name: c for c in (*references, *measured)}
    if wanted is not None and wanted not in by_name:
        raise BadParameter(f"no curve {wanted!r} to compare with; there are {', '.join(by_name)}")
    peers = [c.name for c in measured if c.name not in OUR_NAMES]
    names = (wanted,) if wanted else ("vtm", *DEFAULT_ANCHORS, *peers)
    return next((by_name[n] for n in names if n in by_name), None)


def _bd_rates(
    measured: Sequence[curves.Curve], references: Sequence[curves.Curve], anchor: curves.Curve
) -> dict[str, Any]:
    found: dict[str, Any] = {"anchor": anchor.name, "anchor_source": anchor.source}
    for metric in curves.METRICS:
        rates = [curves.bd_rate(anchor, c, metric) for c in (*measured, *references)]
        found[metric] = [asdict(r) for r in rates if r is not None]
    return found


def _between_tunes(measured: Sequence[curves.Curve]) -> dict[str, Any]:
    """BD-rate of each of our other ladders against the first, by metric."""
    by_name = {c.name: c for c in measured}
    found = {}
    for metric in curves.METRICS:
        rates = [
            curves.bd_rate(by_name[OURS], by_name[name], metric)
            for name in OUR_NAMES[1:]
            if OURS in by_name and name in by_name
        ]
        found[metric] = [asdict(r) for r in rates if r is not None]
    return found


def _published(
    measured: Sequence[curves.Curve], references: Sequence[curves.Curve]
) -> list[dict[str, Any]]:
    """Bits per pixel of published mean curves at the mean PSNR of each of our settings."""
    ours = [p for c in measured if c.name == OURS for p in c.points if p.psnr_db is not None]
    return [
        {"setting": p.setting, "codec": c.name, "title": c.title, "bpp": bpp,
         "percent": 100 * (p.bpp / bpp - 1), "source": c.source}
        for p in ours
        for c in references
        if (bpp := curves.bpp_at(c, "psnr_db", p.psnr_db or 0.0)) is not None
    ]  # fmt: skip


def _curve(curve: curves.Curve) -> dict[str, Any]:
    return {"name": curve.name, "points": [asdict(p) for p in curve.points]}


def _rounded(value: Any) -> Any:
    """Six significant digits, and null for what JSON cannot say."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value
