"""What adapting to each picture gains over the same codec without it, from real streams.

Every picture is compressed at a few rates, once plainly and once adapted, with an update of the
decoder and with latents alone. The gain of a picture is the BD-rate of its adapted points against
its plain ones over the PSNR that both reach, and the change of R + lmbda·D, which needs no
interpolation. (PCHIP is used for the BD-rate, because curves of pictures unlike the training data
saturate.) The gain of a group is the mean over its pictures, since curves of different domains
cannot be averaged. A picture's group is its name before the last dash: `comic-3` is of `comic`.
Results are kept as they are made, so an interrupted run continues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from statistics import fmean, median
from time import perf_counter
from typing import Any, Final

from service.adapt.plan import plan_of
from service.codec import container
from service.engine.engine import Engine
from service.errors import BadParameter
from service.eval import metrics
from service.eval.curves import Curve, CurvePoint, bd_rate, mean_of_all
from service.eval.machine import Machine
from service.eval.pictures import NamedPicture, decode_on_white, group_of

BOTH: Final = "both"
LATENTS: Final = "latents"


@dataclass(frozen=True)
class AdaptationMeasurement:
    """One picture at one rate and effort, plain and adapted.

    Attributes:
        image: name of the picture. sha256: of its pixels, first 16 hex digits.
        model: SHA-256 of the weights, first 16 hex digits. pixels: of the picture.
        rate: 1 to 8. effort: 0 to 4.
        kind: BOTH, or LATENTS where no update of the decoder was tried.
        plain_bytes, plain_psnr_db: of the stream without adaptation.
        bytes, psnr_db: of the adapted stream.
        update_bytes: bytes of an update, or of the name of a ready one, in the adapted stream.
        steps: of the optimisation. seconds: of the whole adaptation.
    """

    image: str
    sha256: str
    model: str
    pixels: int
    rate: float
    effort: int
    kind: str
    plain_bytes: int
    plain_psnr_db: float
    bytes: int
    psnr_db: float
    update_bytes: int
    steps: int
    seconds: float

    @property
    def key(self) -> tuple[object, ...]:
        """Pixels, weights and settings: measurements with equal keys are of the same adaptation."""
        return self.sha256, self.model, self.rate, self.effort, self.kind

    @property
    def group(self) -> str:
        """The domain that the picture's name says."""
        return group_of(self.image)


@dataclass(frozen=True)
class AdaptationEvaluation:
    """What to measure: rates of tune PSNR, efforts from 0 to 4, and kinds: BOTH, LATENTS."""

    rates: tuple[float, ...]
    efforts: tuple[int, ...]
    kinds: tuple[str, ...]

    def settings(self) -> list[tuple[float, int, str]]:
        """Return rate, effort and kind of every adaptation of a picture."""
        return [
            (rate, effort, kind)
            for effort, rate in product(self.efforts, self.rates)
            # Without steps there is but one kind of adaptation: a ready update.
            for kind in (self.kinds if effort else self.kinds[:1])
        ]


def parse_efforts(text: str) -> tuple[int, ...]:
    """Read efforts from a text such as "2" or "1,2,4".

    Raises:
        BadParameter: an effort is not a number from 0 to 4.
    """
    try:
        efforts = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise BadParameter(f"efforts are {text!r}, expected 2, or 1,2,4") from None
    for effort in efforts:
        plan_of(effort)
    return efforts


def measure_adaptation(
    pictures: Sequence[NamedPicture],
    engine: Engine,
    plan: AdaptationEvaluation,
    known: Sequence[AdaptationMeasurement],
    on_result: Callable[[AdaptationMeasurement], None],
) -> tuple[AdaptationMeasurement, ...]:
    """Adapt to every picture.

    Args:
        known: measurements of earlier runs; those of the same keys are not made again.
        on_result: is called with each measurement as soon as it is known.

    Returns:
        The measurements of the plan, and the known ones of the same pictures, weights and rates
        with other efforts and kinds, by effort.
    """
    model = engine.models()[0].sha256[:16]
    known_by_key = {m.key: m for m in known}
    results = []
    for named, (rate, effort, kind) in product(pictures, plan.settings()):
        result = known_by_key.get((named.sha256, model, rate, effort, kind))
        if result is None:
            result = _measure(named, model, engine, rate, effort, kind)
        results.append(result)
        on_result(result)
    keys, pixels = {m.key for m in results}, {m.sha256 for m in results}
    same_pictures = (m for m in known if m.model == model and m.sha256 in pixels)
    results += [m for m in same_pictures if m.rate in plan.rates and m.key not in keys]
    return tuple(sorted(results, key=lambda m: m.effort))


def summarise_adaptation(
    measurements: Sequence[AdaptationMeasurement], engine: Engine, machine: Machine
) -> dict[str, Any]:
    """Return gains and costs by group, effort and kind, as one JSON object."""
    model = engine.models()[0]
    lmbdas = {r.rate: r.lmbda for r in model.rates if r.tune == container.PSNR}
    gains = []
    for effort, kind in dict.fromkeys((m.effort, m.kind) for m in measurements):
        same_setting = [m for m in measurements if (m.effort, m.kind) == (effort, kind)]
        for group in dict.fromkeys(m.group for m in same_setting):
            gains.append(_gain([m for m in same_setting if m.group == group], group, lmbdas))
    return {
        "what": "adaptation",
        "schema": 1,
        "model": {"name": model.name, "sha256": model.sha256},
        "machine": asdict(machine),
        "rates": sorted({m.rate for m in measurements}),
        "gains": gains,
    }


def _measure(
    named: NamedPicture, model: str, engine: Engine, rate: float, effort: int, kind: str
) -> AdaptationMeasurement:
    plan = plan_of(effort)
    if kind == LATENTS:
        plan = replace(plan, decoder_steps=0)
    start = perf_counter()
    adaptation = engine.adapt(named.picture, rate, effort=plan)
    while not adaptation.done:
        adaptation.advance(60)
    seconds = perf_counter() - start
    data, progress = adaptation.best(), adaptation.progress
    sections = container.describe(data).sections
    return AdaptationMeasurement(
        image=named.name,
        sha256=named.sha256,
        model=model,
        pixels=named.picture.width * named.picture.height,
        rate=rate,
        effort=effort,
        kind=kind,
        plain_bytes=progress.first_bytes,
        plain_psnr_db=progress.first_psnr_db,
        bytes=len(data),
        psnr_db=metrics.psnr_db(named.picture, decode_on_white(engine, data)),
        update_bytes=sum(size for name, size in sections if name in ("update", "ready")),
        steps=progress.step,
        seconds=seconds,
    )


def _gain(
    rows: Sequence[AdaptationMeasurement], group: str, lmbdas: Mapping[float, float | None]
) -> dict[str, Any]:
    """Return the mean gains of a group's pictures at one effort and kind, and their cost.

    Exact streams, whose PSNR is infinite, do not count in `gain_db`.
    """
    losses = [_loss_percent(r, lmbdas.get(r.rate)) for r in rows]
    rates = [_bd_rate([r for r in rows if r.image == i]) for i in {r.image for r in rows}]
    known_rates = [r for r in rates if r is not None]
    gains_db = [r.psnr_db - r.plain_psnr_db for r in rows if math.isfinite(r.psnr_db)]
    step_ms = [1000 * r.seconds / r.steps for r in rows if r.steps]
    return {
        "group": group,
        "effort": rows[0].effort,
        "kind": rows[0].kind,
        "images": len(rates),
        "bd_rate_percent": mean_of_all(rates),
        "best": min(known_rates, default=None),
        "worst": max(known_rates, default=None),
        "loss_percent": mean_of_all(losses),
        "bytes_percent": 100 * (sum(r.bytes for r in rows) / sum(r.plain_bytes for r in rows) - 1),
        "gain_db": fmean(gains_db) if gains_db else None,
        "update_share": sum(r.update_bytes for r in rows) / sum(r.bytes for r in rows),
        "with_update": sum(r.update_bytes > 0 for r in rows) / len(rows),
        "with_own": sum(r.update_bytes > container.READY_BYTES for r in rows) / len(rows),
        "seconds": median(r.seconds for r in rows),
        "ms_per_step": median(step_ms) if step_ms else None,
        "steps": median(r.steps for r in rows),
    }


def _loss_percent(row: AdaptationMeasurement, lmbda: float | None) -> float | None:
    """Return the change of R + lmbda·D in percent; None for rates between whole ones."""
    if lmbda is None:
        return None
    points = ((row.plain_bytes, row.plain_psnr_db), (row.bytes, row.psnr_db))
    plain, adapted = (
        metrics.loss(8 * size / row.pixels, psnr_db, lmbda) for size, psnr_db in points
    )
    return 100 * (adapted / plain - 1)


def _bd_rate(rows: Sequence[AdaptationMeasurement]) -> float | None:
    """Return the BD-rate in percent, by PSNR, of one picture's adapted points against its plain."""
    plain = Curve("plain", "", tuple(_point(r, r.plain_bytes, r.plain_psnr_db) for r in rows))
    adapted = Curve("adapted", "", tuple(_point(r, r.bytes, r.psnr_db) for r in rows))
    result = bd_rate(plain, adapted, "psnr_db", "pchip")
    return None if result is None else result.percent


def _point(row: AdaptationMeasurement, size: int, psnr_db: float) -> CurvePoint:
    return CurvePoint(f"rate {row.rate:g}", size, 8 * size / row.pixels, psnr_db, None, None)
