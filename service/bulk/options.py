"""What a run is asked for: the options that decide what it writes, and the record of them.

The record, `run.json` in the destination, is written before anything else. A run with other options
is refused there: its results would mix with those of the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from service.blobs import Objects, digest_of
from service.bulk.shards import RUN_FOLDER
from service.codec.container import PSNR
from service.engine.requests import check_tune, rate_key
from service.engine.target import LOSSLESS, Target, rate_or_target, rate_text
from service.errors import BadParameter, DamagedObject
from service.images.conversion import Metadata
from service.images.write import Format
from service.settings import Settings
from service.store.read import load_store

RECORD_KEY: Final = f"{RUN_FOLDER}/run.json"
"""Key of the record of a run's options."""

RECORD_VERSION: Final = 1
"""Version of the layout of a run's objects; another one is refused."""


@dataclass(frozen=True)
class BulkCompression:
    """How the pictures of a run are compressed.

    Attributes:
        rate, target_bpp, max_bytes, target_psnr: at most one, see engine.target.rate_or_target.
        tune, metadata, frame: as for one picture.
        keep_smaller: whether the original file is copied where the stream has as many bytes or
            more: at the quality that was asked for, the stream then saves nothing.
        effort: 0–4 adapts each stream to its picture (adapt/plan.py); None does not.
        max_seconds: of one adaptation; the results then depend on the speed of the machine.
        graphics: whether streams may have a graphics layer.
        model: name of the model and hash of its weights, so that none is mixed with another.
    """

    rate: str | None = None
    target_bpp: float | None = None
    max_bytes: int | None = None
    target_psnr: float | None = None
    tune: str = PSNR
    metadata: Metadata = "icc"
    frame: int | None = None
    keep_smaller: bool = False
    effort: int | None = None
    max_seconds: float | None = None
    graphics: bool = True
    model: str = ""

    def requested(self) -> float | Target:
        """Return the rate or the target.

        Raises:
            BadParameter: there is more than one, or effort is asked for with anything but a rate
                of tune PSNR.
        """
        requested = rate_or_target(
            self.rate,
            self.target_bpp,
            self.max_bytes,
            self.target_psnr,
            spelling=lambda name: "--" + name.replace("_", "-"),
        )
        if self.effort is None:
            if self.max_seconds is not None:
                raise BadParameter("--max-seconds limits an adaptation, expected --effort with it")
        elif isinstance(requested, Target) or not 1 <= requested <= 8 or self.tune != PSNR:
            raise BadParameter("--effort adapts at a rate from 1 to 8 of tune psnr, found another")
        return requested


@dataclass(frozen=True)
class BulkDecompression:
    """How the streams of a run are decompressed: the format of the pictures, and its quality."""

    format: Format = "png"
    quality: int | None = None


Options = BulkCompression | BulkDecompression
Action = Literal["compress", "decompress"]


def compression_by(settings: Settings, values: Mapping[str, Any]) -> BulkCompression:
    """Return options with the identity of the model that the settings choose.

    Args:
        values: of fields of BulkCompression; None takes the default.

    Raises:
        BadParameter: the model has no such rate or tune, or as `BulkCompression.requested`.
        StoreError: the model cannot be read.
    """
    stored = load_store(settings.store, settings.model)[0]
    rates = [(r.tune, r.rate, r.digest.hex()) for r in stored.rates]
    weights = digest_of(repr((stored.sha256, rates)).encode())
    model = f"{stored.name} {weights[:16]}"
    asked = BulkCompression(**_given(values), graphics=settings.graphics, model=model)
    requested = asked.requested()
    if isinstance(requested, Target):
        check_tune(asked.tune, stored)
    elif requested != LOSSLESS:
        rate_key(requested, asked.tune, stored)
    return asked


def decompression(values: Mapping[str, Any]) -> BulkDecompression:
    """Return options of these values. Raises BadParameter: a quality for PNG."""
    asked = BulkDecompression(**_given(values))
    if asked.quality is not None and asked.format == "png":
        raise BadParameter("PNG is lossless: --quality is for webp, jpeg and avif")
    return asked


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def record_of(source: str, shard_rows: int, options: Options) -> dict[str, object]:
    """Return the record of a run as plain JSON values."""
    action: Action = "compress" if isinstance(options, BulkCompression) else "decompress"
    record: dict[str, object] = {
        "version": RECORD_VERSION,
        "action": action,
        "source": source,
        "shard_rows": shard_rows,
        **asdict(options),
    }
    if isinstance(options, BulkCompression):
        requested = options.requested()
        record["rate"] = None if isinstance(requested, Target) else rate_text(requested)
    return record


def claim(dest: Objects, record: Mapping[str, object]) -> bool:
    """Write the record of a run where there is none; return whether there was none.

    Raises:
        BadParameter: the destination has the record of a run with other options.
        DamagedObject: what is there is no record. ObjectsUnavailable: the store fails.
    """
    if dest.create(RECORD_KEY, json.dumps(record, indent=1).encode()):
        return True
    try:
        there = json.loads(dest.get(RECORD_KEY))
        differences = [
            f"{name} is {there.get(name)!r} there and {record.get(name)!r} here"
            for name in sorted({*there, *record})
            if there.get(name) != record.get(name)
        ]
    except (ValueError, AttributeError, TypeError) as error:
        raise DamagedObject(f"{RECORD_KEY} is no record of a run: {error}") from error
    if differences:
        raise BadParameter(
            f"the destination holds a run with other options: {'; '.join(differences)}. Expected "
            "the same options, or another destination"
        )
    return False
