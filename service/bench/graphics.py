"""What the graphics layer (codec/graphics.py) gains and costs, against AVIF and lossless WebP.

Every picture is compressed with and without the layer at a few rates. Groups are of pictures whose
names agree before the last dash, and of pictures that the generator of training data draws.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from service.bench import timing
from service.codec.container import PSNR
from service.datasets.colours import Rng
from service.datasets.fields import dithered, patterns, pixel_art, plain_cells
from service.datasets.gradients import Drawing
from service.datasets.pages import chart, code, page
from service.engine.engine import Engine
from service.engine.types import Compressed, ModelInfo
from service.errors import BadParameter
from service.eval.peer_codecs import LOSSLESS_WEBP, PeerCurve, library_versions, peer_named
from service.eval.pictures import NamedPicture, group_of, read_folder
from service.picture import Picture, squared_error
from service.runtime.loading import load_models
from service.settings import Settings
from service.store.read import load_store

WHAT: Final = "graphics"

AVIF: Final = peer_named("avif-s6-444")

DRAWN: Final[Mapping[str, Callable[[Rng, int], Drawing]]] = {
    "plain colours, drawn": plain_cells,
    "text pages, drawn": page,
    "code listings, drawn": code,
    "charts, drawn": chart,
    "pixel art, drawn": pixel_art,
    "patterns, drawn": patterns,
    "dithered, drawn": dithered,
}
"""Groups that the generator of training data draws."""

SIDE: Final = 512
"""Pixels of a drawn picture's side."""
SEED: Final = 1
PER_GROUP: Final = 4
"""Drawn pictures of a group."""
TURNS: Final = 2
"""Times that each picture is compressed; the shorter time counts."""


@dataclass(frozen=True)
class StreamMeasurement:
    """A stream with or without the layer, and the AVIF file of its quality.

    Attributes:
        bytes: of the stream. psnr_db: of its picture; None where every pixel is exact.
        loss_bits: R + lmbda·D of the whole picture. seconds: of compressing.
        avif_bytes: of the smallest AVIF file of at least that PSNR.
        avif_reaches: whether AVIF reaches that PSNR; else `avif_bytes` are those of quality 100.
    """

    bytes: int
    psnr_db: float | None
    loss_bits: float
    seconds: float
    avif_bytes: int
    avif_reaches: bool


@dataclass(frozen=True)
class LayerMeasurement:
    """One picture at one rate with and without the layer.

    Attributes:
        image: name of the picture. sha256: of its pixels, first 16 hex digits.
        rate: 1–8, of tune PSNR. share: of the blocks that the layer holds, 0–1.
        webp_bytes: of a lossless WebP file. plain: without the layer. layered: with it.
    """

    image: str
    sha256: str
    rate: float
    share: float
    webp_bytes: int
    plain: StreamMeasurement
    layered: StreamMeasurement

    @property
    def loss_percent(self) -> float:
        """Change of R + lmbda·D by the layer."""
        return 100 * (self.layered.loss_bits / self.plain.loss_bits - 1)


@dataclass(frozen=True)
class LayerBench:
    """Engines with and without the layer over the same weights.

    Attributes:
        model: that compresses. plain, layered: the engines.
    """

    model: ModelInfo
    plain: Engine
    layered: Engine

    @classmethod
    def load(cls, settings: Settings) -> LayerBench:
        """Load the store's models once, for both engines."""
        models = load_models(load_store(settings.store), settings.device, None, settings.threads)
        plain = Engine(models)
        return cls(plain.models()[0], plain, Engine(models, graphics=True))

    def lmbda(self, rate: float) -> float:
        """Weight of the squared error at a rate of tune PSNR.

        Raises:
            BadParameter: the model has no such rate, or its adapter does not say.
        """
        for info in self.model.rates:
            if (info.rate, info.tune) == (rate, PSNR) and info.lmbda is not None:
                return info.lmbda
        raise BadParameter(f"model {self.model.name} does not say its lmbda at rate {rate:g}")


def bench_graphics(
    settings: Settings,
    pictures: Sequence[NamedPicture],
    rates: Sequence[float],
    known: Mapping[str, Any],
    progress: Callable[[str], None],
    keep: Callable[[Mapping[str, Any]], object],
) -> dict[str, Any]:
    """Return the measurements of all pictures as JSON values.

    Args:
        rates: whole rates of tune PSNR.
        known: results of an earlier run, or nothing: its pictures are not measured again where
            pixels, weights and rates are the same.
        progress: is called with a line of text for each picture.
        keep: is called with the results so far after each picture that was measured.

    Raises:
        BadParameter: `known` is no result of this benchmark, or the model has not these rates.
    """
    bench = LayerBench.load(settings)
    lmbdas = {rate: bench.lmbda(rate) for rate in rates}
    rows_by_picture = _known_rows(known, bench.model, lmbdas)
    result: dict[str, Any] = {
        **timing.conditions(WHAT, settings, progress),
        "model": {"name": bench.model.name, "sha256": bench.model.sha256},
        "libraries": library_versions(),
        "rates": list(lmbdas),
        "measurements": [],
    }
    _warm(bench, lmbdas)
    for number, named in enumerate(pictures, 1):
        rows = rows_by_picture.get(named.sha256, [])
        is_new = {row.rate for row in rows} != set(lmbdas)
        if is_new:
            rows = list(measure_picture(bench, named, lmbdas))
        # a picture in two folders is measured once and counts in both
        result["measurements"] += [asdict(replace(row, image=named.name)) for row in rows]
        changes = ", ".join(f"{row.loss_percent:+.1f} %" for row in rows)
        progress(f"{number} of {len(pictures)}, {named.name}: R + lmbda·D {changes}")
        if is_new:
            keep(result)
    return result


def measure_picture(
    bench: LayerBench, named: NamedPicture, lmbdas: Mapping[float, float]
) -> Iterator[LayerMeasurement]:
    """Yield the measurement of a picture at each rate; `lmbdas` are those of the rates."""
    picture = named.picture
    (effort,) = LOSSLESS_WEBP.qualities
    webp_bytes = len(LOSSLESS_WEBP.compress(picture, effort))
    # one thread, so that the other cores stay free for whatever else is measured
    peer = replace(AVIF, options={**AVIF.options, "max_threads": 1})
    avif = PeerCurve(peer, picture)
    for rate, lmbda in lmbdas.items():
        runs = [
            (_timed(bench.plain, picture, rate), _timed(bench.layered, picture, rate))
            for _ in range(TURNS)
        ]
        plain_s, layered_s = (min(run[way][1] for run in runs) for way in (0, 1))
        (plain, _), (layered, _) = runs[0]
        yield LayerMeasurement(
            image=named.name,
            sha256=named.sha256,
            rate=rate,
            share=layered.graphics_share,
            webp_bytes=webp_bytes,
            plain=_measure_stream(bench.plain, picture, plain, plain_s, lmbda, avif),
            layered=_measure_stream(bench.layered, picture, layered, layered_s, lmbda, avif),
        )


def draw_pictures(side: int = SIDE) -> Iterator[NamedPicture]:
    """Draw the pictures of the groups DRAWN; the same on every machine with the same Pillow.

    Args:
        side: of the pictures in pixels, at least datasets.procedural.LEAST_SIDE.
    """
    for place, (group, draw) in enumerate(DRAWN.items()):
        for number in range(PER_GROUP):
            rng = Rng(np.random.PCG64((SEED, place, number)))
            yield NamedPicture(f"{group}-{number}", Picture(np.array(draw(rng, side))))


def read_pictures(folders: Sequence[Path]) -> Iterator[NamedPicture]:
    """Read the pictures of some folders, see `read_folder`."""
    for folder in folders:
        yield from read_folder(folder)


def first_of_groups(
    pictures: Sequence[NamedPicture], limit: int | None
) -> tuple[NamedPicture, ...]:
    """Return at most `limit` pictures of each group, see `group_of`; all for None."""
    counts: Counter[str] = Counter()
    chosen = []
    for named in pictures:
        counts[group_of(named.name)] += 1
        if limit is None or counts[group_of(named.name)] <= limit:
            chosen.append(named)
    return tuple(chosen)


def read_record(path: Path) -> dict[str, Any]:
    """Read the results of an earlier run; nothing where there is no file.

    Raises:
        BadParameter: the file does not hold results of this benchmark.
    """
    if not path.is_file():
        return {}
    try:
        result = json.loads(path.read_text())
        read_measurements(result)
    except (ValueError, BadParameter) as error:
        raise BadParameter(f"{path} is no record of `rankpress bench graphics`") from error
    return dict(result)


def read_measurements(result: Mapping[str, Any]) -> list[LayerMeasurement]:
    """Read the measurements of a result that went through JSON.

    Raises:
        BadParameter: it is no result of this benchmark.
    """
    try:
        return TypeAdapter(list[LayerMeasurement]).validate_python(result["measurements"])
    except (KeyError, TypeError, ValidationError) as error:
        raise BadParameter("the results are not those of `rankpress bench graphics`") from error


def _known_rows(
    known: Mapping[str, Any], model: ModelInfo, rates: Mapping[float, float]
) -> dict[str, list[LayerMeasurement]]:
    """Return the measurements that need no repetition, by the pictures' pixels."""
    rows: dict[str, list[LayerMeasurement]] = {}
    if not known:
        return rows
    measurements = read_measurements(known)
    if known.get("model", {}).get("sha256") != model.sha256:
        return rows
    for row in measurements:
        kept = rows.setdefault(row.sha256, [])
        if row.rate in rates and row.rate not in {r.rate for r in kept}:
            kept.append(row)
    return rows


def _warm(bench: LayerBench, rates: Mapping[float, float]) -> None:
    """Merge the weights of every rate before anything is timed."""
    picture = Picture(np.zeros((64, 64, 3), np.uint8))
    for rate in rates:
        for engine in (bench.plain, bench.layered):
            engine.compress(picture, rate)


def _timed(engine: Engine, picture: Picture, rate: float) -> tuple[Compressed, float]:
    """Return a stream and the seconds that it took."""
    begin = perf_counter()
    compressed = engine.compress(picture, rate)
    return compressed, perf_counter() - begin


def _measure_stream(
    engine: Engine,
    picture: Picture,
    compressed: Compressed,
    seconds: float,
    lmbda: float,
    avif: PeerCurve,
) -> StreamMeasurement:
    decoded = engine.decompress(compressed.data).picture
    squared = squared_error(picture.rgb, decoded.rgb, picture.alpha)
    psnr_db = picture.psnr_db(squared)
    avif_bytes, avif_reaches = avif.at_least(psnr_db)
    return StreamMeasurement(
        bytes=len(compressed.data),
        psnr_db=psnr_db if squared else None,
        loss_bits=8 * len(compressed.data) + lmbda / 3 * squared,
        seconds=seconds,
        avif_bytes=avif_bytes,
        avif_reaches=avif_reaches,
    )
