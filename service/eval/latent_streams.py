"""Latent streams, compared with our lowest rates and with other formats at their smallest.

Every picture is fitted for every autoencoder, quality and effort. Its ceiling is what the
autoencoder shows of its own latents, to which no stream of it can come closer than rounding.
Measurements are kept as they are made, so an interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import fmean, geometric_mean, median
from time import perf_counter
from typing import Any, Final

import numpy as np

from service.adapt.latent_start import lmbda_of_quality
from service.autoencoders.interfaces import Autoencoder, encode_picture, latents_shape, paint
from service.codec.container import RATE_UNIT, read_stream
from service.codec.overfit import FittedLatents, decode_fitted, encode_latents, multiply_adds
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.eval import curves, metrics
from service.eval.evaluation import measure_file
from service.eval.machine import Machine
from service.eval.measurements import OURS, Measurement
from service.eval.peer_codecs import library_versions, peer_named
from service.eval.pictures import NamedPicture, decode_on_white, group_of
from service.picture import U8, Picture

PEERS: Final = (
    replace(peer_named("avif-s2-420"), qualities=(1, 10, 20, 35, 50)),
    replace(
        peer_named("avif-s2-420"), name="avif-half", qualities=(1, 10, 20, 30, 40, 50), divisor=2
    ),
    replace(peer_named("webp-m6"), qualities=(0, 5, 15, 35)),
)
"""AVIF and WebP at their smallest, and AVIF of a picture of half the size."""

CEILING: Final = "ceiling"
"""Setting of what an autoencoder shows of the latents themselves."""


def latent_name(autoencoder: str) -> str:
    """The name of the method with an autoencoder, among codecs."""
    return f"{OURS}-latent-{autoencoder}"


@dataclass(frozen=True)
class LatentMeasurement(Measurement):
    """A latent stream, or a ceiling, which has no bytes; encode_ms is the time of the fit.

    Attributes:
        identity: of the autoencoder, first 16 hex digits. effort: 0 to 4.
        network_bytes: of the networks, with the head of the stream's section.
        multiply_adds: for each pixel, without the autoencoder.
    """

    identity: str
    effort: int
    network_bytes: int
    multiply_adds: float

    @property
    def fit(self) -> tuple[str, str, str, int]:
        """Measurements of an equal one are of the same fit."""
        return self.sha256, self.identity, self.setting, self.effort

    @property
    def quality(self) -> float:
        """Quality of the stream."""
        return float(self.setting.removeprefix("quality "))


@dataclass(frozen=True)
class LatentPlan:
    """What to fit: every autoencoder at every quality and effort."""

    autoencoders: tuple[str, ...]
    qualities: tuple[float, ...]
    efforts: tuple[int, ...]


def measure_latents(
    pictures: Sequence[NamedPicture],
    engine: Engine,
    plan: LatentPlan,
    known: Sequence[LatentMeasurement],
    on_result: Callable[[LatentMeasurement], None],
) -> tuple[LatentMeasurement, ...]:
    """Fit and measure every picture, and measure the ceilings.

    Args:
        known: measurements of earlier runs; those of the same fit are not made again.
        on_result: is called with each measurement as soon as it is known.
    """
    known_fits = {row.fit: row for row in known}
    results = []
    for named, name in product(pictures, plan.autoencoders):
        autoencoder = engine.autoencoder(name)
        for quality, effort in [(None, 0), *product(plan.qualities, plan.efforts)]:
            key = named.sha256, _identity(autoencoder), _setting(quality), effort
            row = known_fits.get(key) or _measure(named, engine, autoencoder, quality, effort)
            results.append(row)
            on_result(row)
    return tuple(results)


def fit(engine: Engine, picture: Picture, name: str, quality: float, effort: int) -> bytes:
    """The stream of a picture, fitted to the end."""
    adaptation = engine.fit_latents(picture, quality, effort=effort, autoencoder=name)
    while not adaptation.done:
        adaptation.advance(60)
    return adaptation.best()


def _measure(
    named: NamedPicture,
    engine: Engine,
    autoencoder: Autoencoder,
    quality: float | None,
    effort: int,
) -> LatentMeasurement:
    """Fit and measure a picture at a quality, or measure the ceiling, whose quality is None."""
    picture, start = named.picture, perf_counter()
    data = b"" if quality is None else fit(engine, picture, autoencoder.name, quality, effort)
    seconds = perf_counter() - start
    fitted = _fitted(data, picture, autoencoder) if data else None

    def decode(data: bytes) -> U8:
        return decode_on_white(engine, data) if data else _shown(picture, autoencoder)

    codec = latent_name(autoencoder.name)
    file = measure_file(named, codec, _setting(quality), lambda _: data, decode, perceptual=True)
    row = asdict(file) | {"encode_ms": 1000 * seconds}
    return LatentMeasurement(
        **row,
        identity=_identity(autoencoder),
        effort=effort,
        network_bytes=_network_bytes(fitted, autoencoder) if fitted else 0,
        multiply_adds=_multiply_adds(fitted, autoencoder) if fitted else 0.0,
    )


def _setting(quality: float | None) -> str:
    return CEILING if quality is None else f"quality {quality:g}"


def _identity(autoencoder: Autoencoder) -> str:
    """First 16 hex digits of an autoencoder's identity."""
    return autoencoder.identity.hex()[:16]


def _shown(picture: Picture, autoencoder: Autoencoder) -> U8:
    """What an autoencoder shows of the latents of a picture, laid on white."""
    latents = encode_picture(autoencoder, picture)
    box = Box(0, 0, picture.height, picture.width)
    rgb = paint(autoencoder, latents, box, picture.grey)
    return Picture(rgb, picture.alpha).on_white().rgb


def _fitted(data: bytes, picture: Picture, autoencoder: Autoencoder) -> FittedLatents:
    rows, columns = latents_shape(autoencoder, picture.width, picture.height)
    payload = read_stream(data).overfit
    assert payload is not None  # fit() makes latent streams only
    return decode_fitted(payload, rows, columns, autoencoder.networks)


def _network_bytes(fitted: FittedLatents, autoencoder: Autoencoder) -> int:
    """Bytes that the networks would take with a single value in the grids."""
    empty: list[np.ndarray | None] = [None] * len(fitted.values)
    empty[0] = np.zeros((1, 1), np.int32)
    return len(encode_latents(fitted.networks, autoencoder.networks, tuple(empty)))


def _multiply_adds(fitted: FittedLatents, autoencoder: Autoencoder) -> float:
    grids = [value for value in fitted.values if value is not None]
    latents = grids[0].size  # the first grid, at 1:1, is always used
    cells = sum(grid.size for grid in grids) / latents
    return multiply_adds(fitted.networks, len(grids), cells, autoencoder.cell)


def summarise_latents(
    groups: Mapping[str, Sequence[NamedPicture]],
    rows: Sequence[LatentMeasurement],
    others: Sequence[Measurement],
    engine: Engine,
    machine: Machine,
) -> dict[str, Any]:
    """All results as one JSON object.

    Args:
        groups: pictures by the name of their folder. rows: of them all.
        others: of our rates and of peers, of the same pictures.
    """
    model = engine.models()[0]
    fits = [row for row in rows if row.setting != CEILING]
    most = max(row.effort for row in fits)
    at_most = [row for row in fits if row.effort == most]
    return {
        "what": "latent-streams",
        "schema": 1,
        "model": {"name": model.name, "sha256": model.sha256},
        "autoencoders": {row.codec: row.identity for row in rows},
        "effort": most,
        "machine": asdict(machine),
        "libraries": library_versions(),
        "groups": [
            _group(name, {p.sha256 for p in pictures}, rows, [*at_most, *others])
            for name, pictures in groups.items()
        ],
        "domains": list(_domains(at_most, others)),
        "costs": list(_costs(fits)),
    }


def _group(
    name: str,
    hashes: set[str],
    rows: Sequence[LatentMeasurement],
    files: Sequence[Measurement],
) -> dict[str, Any]:
    """Points of every codec over the pictures of a folder, and the ceilings."""
    own = [row for row in files if row.sha256 in hashes]
    ceilings = [row for row in rows if row.sha256 in hashes and row.setting == CEILING]
    return {
        "group": name,
        "images": len(hashes),
        "curves": [
            {"name": curve.name, "points": [asdict(p) for p in curve.points]}
            for curve in curves.average(own)
        ],
        "ceilings": {curve.name: asdict(curve.points[0]) for curve in curves.average(ceilings)},
    }


def _domains(
    rows: Sequence[LatentMeasurement], others: Sequence[Measurement]
) -> Iterator[dict[str, Any]]:
    """Our bytes against each peer's at equal quality, over all qualities, by kind of picture."""
    files = [*rows, *others]
    for domain in dict.fromkeys(group_of(row.image) for row in rows):
        own = [row for row in files if group_of(row.image) == domain]
        for codec, metric in product(dict.fromkeys(row.codec for row in rows), curves.METRICS):
            for peer in PEERS:
                mine = [row for row in own if row.codec == codec]
                ratios = [curves.ratio(row, own, peer.name, metric) for row in mine]
                met = [ratio for ratio in ratios if ratio is not None]
                if met:
                    yield {
                        "domain": domain,
                        "codec": codec,
                        "metric": metric,
                        "peer": peer.name,
                        "percent": 100 * (geometric_mean(met) - 1),
                        "compared": len(met),
                        "images": len(ratios),
                    }


def _costs(fits: Sequence[LatentMeasurement]) -> Iterator[dict[str, Any]]:
    """Means over the pictures for each autoencoder, quality and effort."""
    loss_at_least: dict[tuple[str, str, str], float] = {}
    for row in sorted(fits, key=lambda row: row.effort):
        loss_at_least.setdefault((row.sha256, row.codec, row.setting), _loss(row))
    for codec, setting, effort in dict.fromkeys((r.codec, r.setting, r.effort) for r in fits):
        own = [r for r in fits if (r.codec, r.setting, r.effort) == (codec, setting, effort)]
        losses = [_loss(r) / loss_at_least[r.sha256, codec, setting] for r in own]
        yield {
            "codec": codec,
            "setting": setting,
            "effort": effort,
            "images": len(own),
            "bpp": fmean(r.bpp for r in own),
            "network_share": sum(r.network_bytes for r in own) / sum(r.bytes for r in own),
            "multiply_adds": fmean(r.multiply_adds for r in own),
            "most_multiply_adds": max(r.multiply_adds for r in own),
            "fit_s": median(r.encode_ms for r in own) / 1000,
            "decode_ms": median(r.decode_ms for r in own),
            "loss_percent": 100 * (geometric_mean(losses) - 1),
        }


def _loss(row: LatentMeasurement) -> float:
    lmbda = lmbda_of_quality(round(row.quality * RATE_UNIT))
    return metrics.loss(row.bpp, row.psnr_db, lmbda)


def quality_at(rows: Sequence[LatentMeasurement], bpp: float) -> float:
    """The quality, in sixteenths, at which a picture takes some bits per pixel, by interpolation.

    Args:
        rows: of one picture and autoencoder, two or more qualities.
    """
    points = sorted((row.bpp, row.quality) for row in rows)
    rates, qualities = np.log([p[0] for p in points]), [p[1] for p in points]
    return round(float(np.interp(np.log(bpp), rates, qualities)) * RATE_UNIT) / RATE_UNIT
