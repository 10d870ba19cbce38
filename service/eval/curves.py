"""Rate-distortion curves: averages over pictures, BD-rate, and bytes at equal quality.

Averages are those of the literature: the mean of bits per pixel and the mean of the metric over
the pictures, setting by setting. BD-rate comes from the `bjontegaard` package (Akima interpolation
of log rate over quality) and always names its anchor. A single point has no BD-rate; our bytes are
then compared with those of the peers' curves at our quality, picture by picture.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Final

import numpy as np

from service.codec.container import MS_SSIM
from service.eval.measurements import OURS, Measurement, our_name
from service.eval.metrics import ms_ssim_db

METRICS: Final = ("psnr_db", "ms_ssim", "ssimulacra2")
KODAK: Final = frozenset(f"kodim{i:02d}" for i in range(1, 25))


@dataclass(frozen=True)
class CurvePoint:
    """Means over the pictures at one setting; `bytes` is the sum, times are medians."""

    setting: str
    bytes: int
    bpp: float
    psnr_db: float | None
    ms_ssim: float | None
    ssimulacra2: float | None
    encode_ms: float | None = None
    decode_ms: float | None = None

    def value(self, metric: str) -> float | None:
        """Return the metric on the scale that curves are interpolated on: MS-SSIM in dB."""
        return _scaled(metric, getattr(self, metric))


@dataclass(frozen=True)
class Curve:
    """A codec's points, smallest files first.

    Attributes:
        name: of the codec. title: in figures and tables. points: of the curve.
        source: the publication that it comes from; None if it was measured here.
    """

    name: str
    title: str
    points: tuple[CurvePoint, ...]
    source: str | None = None

    def has(self, metric: str) -> bool:
        """Whether the metric is known at every point."""
        return all(p.value(metric) is not None for p in self.points)


@dataclass(frozen=True)
class BdRate:
    """Mean difference in bytes to an anchor at equal quality, over the qualities both reach.

    Attributes:
        percent: negative means smaller files than the anchor's.
        overlap: share of the joint range of quality that both curves cover.
    """

    codec: str
    anchor: str
    percent: float
    overlap: float


@dataclass(frozen=True)
class AtEqual:
    """Our bytes against a peer's at our quality, picture by picture.

    Attributes:
        codec: our name, with the tune. setting: of our codec. peer: name of the other codec.
        percent: geometric mean over the pictures of our bytes / the peer's bytes, minus 1.
        best, worst: the least and the most of a picture, in percent.
        compared: number of pictures where the peer's curve reaches our quality.
        images: number of all pictures.
    """

    codec: str
    setting: str
    peer: str
    percent: float
    best: float
    worst: float
    compared: int
    images: int


def average(rows: Iterable[Measurement]) -> tuple[Curve, ...]:
    """Return a curve for each codec, in the order in which the codecs first appear."""
    groups: dict[str, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row.codec][row.setting].append(row)
    curves = []
    for codec, settings in groups.items():
        points = sorted((_point(s, r) for s, r in settings.items()), key=lambda p: p.bpp)
        curves.append(Curve(codec, codec, tuple(points)))
    return tuple(curves)


def published() -> tuple[Curve, ...]:
    """Return curves over Kodak that their authors or later measurements published."""
    table = json.loads((Path(__file__).parent / "published.json").read_text())
    curves = []
    for name, entry in table.items():
        qualities = entry.get("ms_ssim") or [None] * len(entry["bpp"])
        points = tuple(
            CurvePoint("", 0, bpp, psnr, ms_ssim, None)
            for bpp, psnr, ms_ssim in zip(entry["bpp"], entry["psnr_db"], qualities, strict=True)
        )
        curves.append(Curve(name, entry["title"], points, entry["source"]))
    return tuple(curves)


def is_kodak(images: Iterable[str]) -> bool:
    """Return whether the pictures are the 24 of Kodak, which published curves are about."""
    return frozenset(images) == KODAK


def bd_rate(anchor: Curve, test: Curve, metric: str, method: str = "akima") -> BdRate | None:
    """Return the BD-rate of a curve; None if the curves do not overlap or are single points.

    Args:
        metric: one of METRICS.
        method: of interpolation: "akima", or "pchip", which does not overshoot where a curve of a
            few points saturates.
    """
    import bjontegaard

    a, t = _rising(anchor, metric), _rising(test, metric)
    if min(len(a), len(t)) < 2:
        return None
    low, high = max(a[0][0], t[0][0]), min(a[-1][0], t[-1][0])
    if low >= high:
        return None
    joint = max(a[-1][0], t[-1][0]) - min(a[0][0], t[0][0])
    arguments = [[bpp for _, bpp in a], [q for q, _ in a], [bpp for _, bpp in t], [q for q, _ in t]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the overlap is reported instead
        percent = bjontegaard.bd_rate(*arguments, method=method, require_matching_points=False)
    return BdRate(test.name, anchor.name, float(percent), (high - low) / joint)


def bpp_at(curve: Curve, psnr_db: float) -> float | None:
    """Return the bits per pixel where a curve reaches a PSNR; None outside it."""
    return _rate_at(_rising(curve, "psnr_db"), psnr_db)


def at_equal(rows: Sequence[Measurement], metric: str) -> tuple[AtEqual, ...]:
    """Return our bytes against the peer's at our quality, for each of our settings and each peer.

    Our bytes are those of the tune for the metric if that was measured, else of tune PSNR; our
    other tune counts as a peer.
    """
    tuned = our_name(MS_SSIM)
    name = tuned if metric == "ms_ssim" and tuned in {r.codec for r in rows} else OURS
    ours = [r for r in rows if r.codec == name]
    results = []
    for setting in dict.fromkeys(r.setting for r in ours):
        for peer in dict.fromkeys(r.codec for r in rows if r.codec != name):
            all_ratios = [ratio(r, rows, peer, metric) for r in ours if r.setting == setting]
            ratios = [known for known in all_ratios if known is not None]
            if ratios:
                mean, best, worst = (
                    100 * (one - 1) for one in (geometric_mean(ratios), min(ratios), max(ratios))
                )
                counts = len(ratios), len(all_ratios)
                results.append(AtEqual(name, setting, peer, mean, best, worst, *counts))
    return tuple(results)


def ratio(ours: Measurement, rows: Sequence[Measurement], peer: str, metric: str) -> float | None:
    """Return our bytes over the peer's at our quality, for one picture; None where it has none."""
    value = _scaled(metric, ours.value(metric))
    theirs = [r for r in rows if r.codec == peer and r.sha256 == ours.sha256]
    pairs = [(q, r.bytes) for r in theirs if (q := _scaled(metric, r.value(metric))) is not None]
    at = None if value is None else _rate_at(_envelope(pairs), value)
    return None if at is None else ours.bytes / at


def _rate_at(points: Sequence[tuple[float, float]], value: float) -> float | None:
    """Return the rate at a quality, by PCHIP of log rate over quality."""
    from scipy.interpolate import PchipInterpolator

    if len(points) < 2 or not points[0][0] <= value <= points[-1][0]:
        return None
    qualities, rates = zip(*points, strict=True)
    return float(np.exp(PchipInterpolator(qualities, np.log(rates))(value)))


def _rising(curve: Curve, metric: str) -> list[tuple[float, float]]:
    pairs = ((p.value(metric), p.bpp) for p in curve.points)
    return _envelope((q, bpp) for q, bpp in pairs if q is not None and math.isfinite(q))


def _envelope(pairs: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return (quality, rate), both strictly rising, without larger files of no better quality."""
    kept: list[tuple[float, float]] = []
    for quality, rate in sorted(pairs, key=lambda p: (p[1], -p[0])):
        if not kept or (quality > kept[-1][0] and rate > kept[-1][1]):
            kept.append((quality, rate))
    return kept


def _scaled(metric: str, value: float | None) -> float | None:
    """Return a value on the scale that curves are interpolated on: MS-SSIM in dB, others as is."""
    if value is None or metric != "ms_ssim":
        return value
    return ms_ssim_db(value) if value < 1 else None


def _point(setting: str, rows: Sequence[Measurement]) -> CurvePoint:
    psnr_db, ms_ssim, ssimulacra2 = (mean_of_all([r.value(m) for r in rows]) for m in METRICS)
    return CurvePoint(
        setting,
        sum(r.bytes for r in rows),
        fmean(r.bpp for r in rows),
        psnr_db,
        ms_ssim,
        ssimulacra2,
        median(r.encode_ms for r in rows),
        median(r.decode_ms for r in rows),
    )


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is not known."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
