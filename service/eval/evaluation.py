"""Rate and quality of the codec and its peers over a folder of pictures, from whole files.

Every picture is compressed by every codec at every setting. Size and quality are those of the file
and of the pixels that are decoded from it, never estimates. Our encoder runs without its own check
here, because each stream is decoded anyway: all times are pixels to bytes and bytes to pixels.
"""

from __future__ import annotations

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
from service.eval.measurements import OUR_NAMES, OURS, Measurement, our_name
from service.eval.peer_codecs import PeerCodec, library_versions
from service.eval.pictures import NamedPicture, decode_on_white
from service.ms_ssim import ms_ssim
from service.picture import U8, Picture

DEFAULT_ANCHORS: Final = ("avif-s6-444", "avif-s6-420", "webp-m6", "jpeg-420")
"""Peers that BD-rates are measured against where VTM is not published, the best one first."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What to measure.

    Attributes:
        rates: of our codec. peers: other codecs, each at all of its qualities.
        perceptual: whether to measure SSIMULACRA 2 too, about a second for each file.
        tunes: of our codec.
    """

    rates: tuple[float, ...]
    peers: tuple[PeerCodec, ...]
    perceptual: bool = False
    tunes: tuple[str, ...] = (PSNR,)

    @property
    def files(self) -> int:
        """Number of files for each picture."""
        return len(self.rates) * len(self.tunes) + sum(len(p.qualities) for p in self.peers)


def parse_rates(text: str, name: str = "rates") -> tuple[float, ...]:
    """Read rates, or what `name` says, from a text such as "4", "1-8" or "2,4,6.5".

    Raises:
        BadParameter: the text is neither numbers nor a range of whole numbers.
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
        raise BadParameter(f"{name} are {text!r}, expected 4, or 1-8, or 2,4,6.5")
    return rates


def parse_tunes(text: str) -> tuple[str, ...]:
    """Read tunes from a text such as "psnr" or "psnr,ms-ssim".

    Raises:
        BadParameter: there is no tune of a name.
    """
    tunes = tuple(dict.fromkeys(text.split(",")))
    unknown = [t for t in tunes if t not in TUNES]
    if unknown:
        raise BadParameter(f"tune is {unknown[0]!r}, expected one of {', '.join(TUNES)}")
    return tunes


def evaluate(
    pictures: Sequence[NamedPicture],
    codec: Codec,
    plan: EvaluationPlan,
    known: Sequence[Measurement],
    on_result: Callable[[Measurement], None],
) -> tuple[Measurement, ...]:
    """Measure every picture with every codec at every setting.

    Args:
        codec: ours.
        known: measurements of earlier runs; those of the same pixels, peer and setting are reused.
        on_result: is called with each measurement as soon as it is known.

    Raises:
        RateUnavailable: the store does not hold one of the rates; nothing was measured.
    """
    for tune, rate in product(plan.tunes, plan.rates):
        codec.compress(pictures[0].picture, rate, tune)  # fails early, and warms up
    known_by_key = {m.key: m for m in known if m.codec not in OUR_NAMES}
    results = []
    for named in pictures:
        for codec_name, setting, compress, decode in _codecs(codec, plan, named.picture):
            result = known_by_key.get((named.sha256, codec_name, setting))
            if result is None or (plan.perceptual and result.ssimulacra2 is None):
                result = measure_file(named, codec_name, setting, compress, decode, plan.perceptual)
            results.append(result)
            on_result(result)
    return tuple(results)


def summarise(
    rows: Sequence[Measurement], codec: Codec, machine: Machine, anchor: str | None
) -> dict[str, Any]:
    """Return all results as one JSON object.

    Args:
        codec: ours, which names the model.
        anchor: of BD-rates: a codec that was measured, or a published curve over Kodak.

    Raises:
        BadParameter: there is no curve of the anchor's name.
    """
    images = tuple(dict.fromkeys(r.image for r in rows))
    measured = curves.average(rows)
    references = curves.published() if curves.is_kodak(images) else ()
    base = _anchor(measured, references, anchor)
    against = {"anchor": base.name, "anchor_source": base.source} if base else {}
    by_name = {c.name: c for c in measured}
    tunes = [by_name[name] for name in OUR_NAMES[1:] if name in by_name]
    model = codec.models()[0]
    return {
        "what": "eval",
        "schema": 1,
        "images": len(images),
        "kodak": curves.is_kodak(images),
        "model": {"name": model.name, "sha256": model.sha256, "parameters": model.parameters},
        "machine": asdict(machine),
        "libraries": library_versions(),
        "curves": [{"name": c.name, "points": [asdict(p) for p in c.points]} for c in measured],
        "at_equal": {m: [asdict(e) for e in curves.at_equal(rows, m)] for m in curves.METRICS},
        "published_at_our_psnr": _published(measured, references),
        "bd_rate": against | _bd_rates(base, (*measured, *references)) if base else None,
        "tunes": _bd_rates(by_name.get(OURS), tunes),
    }


def to_json(result: Mapping[str, Any]) -> str:
    """Return results as the text of a file: indented JSON, six digits, a newline at the end."""
    return json.dumps(_rounded(result), indent=1, allow_nan=False) + "\n"


def _codecs(
    codec: Codec, plan: EvaluationPlan, picture: Picture
) -> Iterator[tuple[str, str, Callable[[Picture], bytes], Callable[[bytes], U8]]]:
    """Yield codec, setting, compress and decompress of every file to make of the picture."""
    size = picture.width, picture.height
    for tune, rate in product(plan.tunes, plan.rates):

        def compress(picture: Picture, rate: float = rate, tune: str = tune) -> bytes:
            return codec.compress(picture, rate, tune).data

        yield our_name(tune), f"rate {rate:g}", compress, partial(decode_on_white, codec)
    for peer in plan.peers:
        for quality in peer.qualities:
            compress_peer = partial(peer.compress, quality=quality)
            yield peer.name, f"q{quality}", compress_peer, partial(peer.decode, size=size)


def measure_file(
    named: NamedPicture,
    codec: str,
    setting: str,
    compress: Callable[[Picture], bytes],
    decode: Callable[[bytes], U8],
    perceptual: bool,
) -> Measurement:
    """Compress a picture, decode the file, and measure both."""
    start = perf_counter()
    data = compress(named.picture)
    encoded = perf_counter()
    rgb = decode(data)
    decoded = perf_counter()
    original = named.picture.on_white().rgb
    height, width, _ = original.shape
    return Measurement(
        image=named.name,
        sha256=named.sha256,
        width=width,
        height=height,
        codec=codec,
        setting=setting,
        bytes=len(data),
        bpp=8 * len(data) / (width * height),
        psnr_db=metrics.psnr_db(named.picture, rgb),
        ms_ssim=ms_ssim(original, rgb),
        ssimulacra2=metrics.ssimulacra2(original, rgb) if perceptual else None,
        encode_ms=1000 * (encoded - start),
        decode_ms=1000 * (decoded - encoded),
    )


def _anchor(
    measured: Sequence[curves.Curve], references: Sequence[curves.Curve], requested: str | None
) -> curves.Curve | None:
    """Return the requested curve; else VTM over Kodak, else the first of DEFAULT_ANCHORS."""
    by_name = {c.name: c for c in (*references, *measured)}
    if requested is not None and requested not in by_name:
        raise BadParameter(f"anchor is {requested!r}, expected one of {', '.join(by_name)}")
    peers = [c.name for c in measured if c.name not in OUR_NAMES]
    names = (requested,) if requested else ("vtm", *DEFAULT_ANCHORS, *peers)
    return next((by_name[n] for n in names if n in by_name), None)


def _bd_rates(
    anchor: curves.Curve | None, tests: Sequence[curves.Curve]
) -> dict[str, list[dict[str, Any]]]:
    """Return the BD-rates of curves against an anchor, by metric; none without an anchor."""
    rates = {m: [anchor and curves.bd_rate(anchor, c, m) for c in tests] for m in curves.METRICS}
    return {metric: [asdict(r) for r in known if r] for metric, known in rates.items()}


def _published(
    measured: Sequence[curves.Curve], references: Sequence[curves.Curve]
) -> list[dict[str, Any]]:
    """Return bits per pixel of published mean curves at the mean PSNR of each of our settings."""
    ours = [p for c in measured if c.name == OURS for p in c.points if p.psnr_db is not None]
    return [
        {
            "setting": p.setting,
            "codec": c.name,
            "title": c.title,
            "bpp": bpp,
            "percent": 100 * (p.bpp / bpp - 1),
            "source": c.source,
        }
        for p in ours
        for c in references
        if (bpp := curves.bpp_at(c, p.psnr_db or 0.0)) is not None
    ]


def _rounded(value: Any) -> Any:
    """Return JSON values with six significant digits; infinite numbers become None."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value
