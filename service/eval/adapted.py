"""What adapting to each picture gains over the same codec without it, from real streams.

Every picture is compressed at a few rates plainly and adapted, with the update of the decoder and
with latents alone. The gain of a picture is the BD-rate of its adapted points against its plain
ones over the PSNR that both reach (PCHIP, for pictures that the backbone was not trained for
saturate), and the change of R + lmbda·D, for which nothing is interpolated. A group's is the mean
over its pictures, since curves of different domains do not average. Groups are what names have
before their last dash: `comic-3` is of `comic`. Rows are kept as they are made, so a run that was
cut off goes on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any, Final

from service.adapt.plan import plan_of
from service.codec import container
from service.engine.engine import Engine
from service.errors import BadParameter
from service.eval import metrics
from service.eval.curves import Curve, Point, bd_rate
from service.eval.machine import Machine
from service.eval.pictures import Named, decode_on_white
from service.eval.run import digest
from service.files import write_whole

BOTH: Final = "both"
LATENTS: Final = "latents"


@dataclass(frozen=True)
class Row:
    """One picture at one rate and effort.

    Attributes:
        image: name. sha256: of its pixels, first 16 hex digits. model: of the weights, likewise.
        kind: BOTH, or LATENTS where no update of the decoder was tried.
        bytes, psnr_db: adapted. plain_bytes, plain_psnr_db: not.
        update_bytes: of `bytes`, what an update or the name of a ready one takes.
        steps: that were taken. seconds: of all of it.
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
        """What the row is about."""
        return self.sha256, self.model, self.rate, self.effort, self.kind

    @property
    def group(self) -> str:
        """What the picture is of."""
        return self.image.rpartition("-")[0] or self.image.rstrip("0123456789")


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        rates: of tune PSNR. efforts: 0–4. kinds: BOTH, LATENTS.
    """

    rates: tuple[float, ...]
    efforts: tuple[int, ...]
    kinds: tuple[str, ...]

    def kinds_of(self, effort: int) -> tuple[str, ...]:
        """What is adapted: without steps there is but one way, a ready update."""
        return self.kinds if effort else self.kinds[:1]


def parse_efforts(text: str) -> tuple[int, ...]:
    """Read "2" or "1,2,4". Raises BadParameter."""
    try:
        efforts = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise BadParameter(f"efforts are {text!r}, expected 2, or 1,2,4") from None
    for effort in efforts:
        plan_of(effort)
    return efforts


def measure(
    pictures: Sequence[Named],
    engine: Engine,
    plan: Plan,
    known: Sequence[Row],
    done: Callable[[Row], None],
) -> tuple[Row, ...]:
    """Adapt to every picture; rows that are known for these pixels and weights are taken over.

    Returns:
        The rows of the plan, and those of other efforts and kinds that are known of the same
        pictures, weights and rates, by effort.
    """
    model = engine.models()[0].sha256[:16]
    taken = {row.key: row for row in known}
    rows = []
    whats = [(e, r, k) for e in plan.efforts for r in plan.rates for k in plan.kinds_of(e)]
    for named, (effort, rate, kind) in product(pictures, whats):
        row = taken.get((digest(named), model, rate, effort, kind))
        if row is None:
            row = _adapted(named, model, engine, (rate, effort, kind))
        rows.append(row)
        done(row)
    asked, pixels = {row.key for row in rows}, {row.sha256 for row in rows}
    of_these = (r for r in known if r.model == model and r.sha256 in pixels)
    rows += [r for r in of_these if r.rate in plan.rates and r.key not in asked]
    return tuple(sorted(rows, key=lambda row: row.effort))


def summarise(rows: Sequence[Row], engine: Engine, machine: Machine) -> dict[str, Any]:
    """Gains by group, effort and kind, and what they cost, as one JSON object."""
    model = engine.models()[0]
    lmbdas = {r.rate: r.lmbda for r in model.rates if r.tune == container.PSNR}
    table = []
    for effort, kind in dict.fromkeys((r.effort, r.kind) for r in rows):
        chosen = [r for r in rows if (r.effort, r.kind) == (effort, kind)]
        for group in dict.fromkeys(r.group for r in chosen):
            table.append(_gain([r for r in chosen if r.group == group], group, lmbdas))
    return {
        "what": "adaptation",
        "schema": 1,
        "model": {"name": model.name, "sha256": model.sha256},
        "machine": asdict(machine),
        "rates": sorted({r.rate for r in rows}),
        "gains": table,
    }


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [f.name for f in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(path, text.getvalue().encode())


def read_rows(path: Path) -> tuple[Row, ...]:
    """Read what `write_rows` wrote. Raises BadParameter: another kind of file."""
    kinds: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
    with path.open(newline="") as file:
        try:
            return tuple(
                Row(**{f.name: kinds[str(f.type)](row[f.name]) for f in fields(Row)})
                for row in csv.DictReader(file)
            )
        except (KeyError, ValueError, TypeError) as error:
            raise BadParameter(f"{path} does not hold rows of adaptations") from error


def _adapted(
    named: Named, model: str, engine: Engine, what: tuple[float, int, str]
) -> Row:
    rate, effort, kind = what
    plan = plan_of(effort)
    if kind == LATENTS:
        plan = replace(plan, decoder_steps=0)
    start = perf_counter()
    adaptation = engine.adapt(named.picture, rate, effort=plan)
    while not adaptation.done:
        adaptation.advance(60)
    seconds = perf_counter() - start
    data, told = adaptation.best(), adaptation.progress
    psnr_db = metrics.psnr_db(named.picture, decode_on_white(engine, data))
    height, width, _ = named.rgb.shape
    return Row(
        named.name,
        digest(named),
        model,
        width * height,
        rate,
        effort,
        kind,
        told.first_bytes,
        told.first_psnr_db,
        len(data),
        psnr_db,
        sum(n for name, n in container.describe(data).sections if name in ("update", "ready")),
        told.step,
        seconds,
    )


def _gain(
    rows: Sequence[Row], group: str, lmbdas: Mapping[float, float | None]
) -> dict[str, Any]:
    """Mean BD-rate of a group's pictures, and what was spent."""
    losses = [_loss_percent(r, lmbdas.get(r.rate)) for r in rows]
    change = [x for x in losses if x is not None]
    rates = [_bd_rate([r for r in rows if r.image == i]) for i in {r.image for r in rows}]
    known = [r for r in rates if r is not None]
    return {
        "group": group,
        "effort": rows[0].effort,
        "kind": rows[0].kind,
        "images": len(rates),
        "bd_rate_percent": fmean(known) if len(known) == len(rates) else None,
        "best": min(known, default=None),
        "worst": max(known, default=None),
        "loss_percent": fmean(change) if len(change) == len(rows) else None,
        "bytes_percent": 100 * (sum(r.bytes for r in rows) / sum(r.plain_bytes for r in rows) - 1),
        "gain_db": fmean(r.psnr_db - r.plain_psnr_db for r in rows),
        "update_share": sum(r.update_bytes for r in rows) / sum(r.bytes for r in rows),
        "with_update": sum(r.update_bytes > 0 for r in rows) / len(rows),
        "with_own": sum(r.update_bytes > container.READY_BYTES for r in rows) / len(rows),
        "seconds": median(r.seconds for r in rows),
        "ms_per_step": median(1000 * r.seconds / r.steps for r in rows) if rows[0].steps else None,
        "steps": median(r.steps for r in rows),
    }


def _loss_percent(row: Row, lmbda: float | None) -> float | None:
    """Change of R + lmbda·D; None between whole rates."""
    if lmbda is None:
        return None
    plain, adapted = (
        8 * size / row.pixels + lmbda * 255**2 / 10 ** (psnr_db / 10)
        for size, psnr_db in (
            (row.plain_bytes, row.plain_psnr_db), (row.bytes, row.psnr_db),
        )
    )  # fmt: skip
    return 100 * (adapted / plain - 1)


def _bd_rate(rows: Sequence[Row]) -> float | None:
    """Of one picture, by PSNR."""
    plain = Curve("plain", "", tuple(_point(r, r.plain_bytes, r.plain_psnr_db) for r in rows))
    adapted = Curve("adapted", "", tuple(_point(r, r.bytes, r.psnr_db) for r in rows))
    found = bd_rate(plain, adapted, "psnr_db", "pchip")
    return None if found is None else found.percent


def _point(row: Row, size: int, psnr_db: float) -> Point:
    return Point(f"rate {row.rate:g}", size, 8 * size / row.pixels, psnr_db, None, None)
