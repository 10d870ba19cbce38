"""The writing side of the model store: models, rates and ready updates -> files.

An adapter's file is named by its hash and written before the manifest that lists it, and the new
manifest replaces the old one in one step. So whenever a writer is interrupted, the store is in its
old state or in the new one. Only `prune` deletes what streams may name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

from service.codec.coder import Tables
from service.codec.container import PSNR, TUNES
from service.codec.lowrank import Update, pack
from service.files import write_whole
from service.store.model import (
    StoredModel,
    StoredRate,
    StoredUpdate,
    check_adapter,
    layer_shapes,
    with_rate,
    with_updates,
)
from service.store.read import SCHEMA, STORE_FILE, load_model


def write_model(folder: Path, model: StoredModel, base: bytes) -> None:
    """Write a model with its own rate alone: weights, golden stream, manifest.

    Args:
        folder: folder of the model in the store; created if it is missing.
        model: the model, for the manifest and the golden stream.
        base: bytes of base.safetensors.
    """
    golden = save_safetensors(
        {
            "stream": np.frombuffer(model.golden.stream, np.uint8),
            "y_hat": model.golden.y_hat,
            "rgb": np.ascontiguousarray(model.golden.rgb),
        }
    )
    files = {"base.safetensors": base, "golden.safetensors": golden}
    for name, data in files.items():
        write_whole(folder / name, data)
    (rate,) = model.rates
    manifest = {
        "schema": SCHEMA,
        "sizes": asdict(model.sizes),
        "files": {name: _entry(data) for name, data in files.items()},
        "rates": [_rate_entry(rate, None)],
        "superseded": [],
        "updates": [],
        "training": dict(model.training),
    }
    _replace(folder, manifest)


def candidate(model: StoredModel, update: Update, described: StoredRate) -> StoredModel:
    """The model as `publish_rate` would store it, to measure it before it is stored.

    Args:
        model: the stored model.
        update: quantised update of the base.
        described: rate, tune, lmbda and training record of the update.

    Raises:
        BadParameter: the rate is the base's own.
        StoreError: the update does not fit the base.
    """
    data = _adapter_file(model, update)
    digest = hashlib.sha256(data).digest()
    return with_rate(model, replace(described, update=update, digest=digest, file_bytes=len(data)))


def publish_rate(folder: Path, update: Update, measured: StoredRate) -> StoredModel:
    """Store an update as a rate of a model; returns the stored model.

    The adapter that made the rate before is superseded: it still decodes its streams.

    Args:
        folder: folder of the model.
        update: quantised update of the base.
        measured: rate, tune, lmbda, figures and training record of the update.

    Raises:
        BadParameter: the rate is the base's own.
        StoreError: the update does not fit the base; the store is unchanged.
    """
    stored = load_model(folder)
    data = _adapter_file(stored, update)
    with_rate(stored, measured)  # refuses the base's own rate
    kind = "" if measured.tune == PSNR else f"{measured.tune}-"
    name = f"rates/{kind}{measured.rate:g}-{hashlib.sha256(data).hexdigest()[:12]}.safetensors"
    (folder / "rates").mkdir(exist_ok=True)
    write_whole(folder / name, data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    where = (measured.rate, measured.tune)
    before = [r for r in manifest["rates"] if (r["rate"], r["tune"]) == where]
    rates = [r for r in manifest["rates"] if r not in before] + [_rate_entry(measured, name)]
    manifest["rates"] = sorted(rates, key=lambda r: (TUNES.index(r["tune"]), r["rate"]))
    earlier = [*manifest["superseded"], *before]
    manifest["superseded"] = [r for r in earlier if r["file"] != name]
    manifest["files"][name] = _entry(data)
    _replace(folder, manifest)
    return load_model(folder)


def prune(folder: Path) -> tuple[str, ...]:
    """Delete the superseded adapters of a model; streams that they made can no longer be decoded.

    Returns:
        The names of the deleted files.
    """
    load_model(folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    names = tuple(entry["file"] for entry in manifest["superseded"])
    for name in names:
        del manifest["files"][name]
    manifest["superseded"] = []
    _replace(folder, manifest)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return names


def publish_updates(folder: Path, updates: Sequence[StoredUpdate]) -> StoredModel:
    """Add ready updates to a model; returns the stored model.

    Existing updates stay, because streams may name them.

    Args:
        folder: folder of the model.
        updates: the updates; those that the model has already are skipped.

    Raises:
        StoreError: an update does not fit the base, or has the reference of another; the store is
            unchanged.
    """
    stored = load_model(folder)
    known = {u.digest for u in stored.updates}
    fresh = [u for u in updates if u.digest not in known]
    model = with_updates(stored, fresh)
    tables = Tables(stored.entropy["tables"])
    for update in fresh:
        model.ready_update(update.reference, tables)
    (folder / "updates").mkdir(exist_ok=True)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    entries = manifest["updates"]
    for update in fresh:
        name = f"updates/{update.digest.hex()[:12]}.rku"
        write_whole(folder / name, update.data)
        manifest["files"][name] = _entry(update.data)
        base, training = stored.sha256, dict(update.training)
        entries.append({"name": update.name, "file": name, "base": base, "training": training})
    _replace(folder, manifest)
    return load_model(folder)


def record_figures(folder: Path, measured: Sequence[StoredRate]) -> None:
    """Replace the figures of rates in the manifest; nothing else changes.

    Args:
        folder: folder of the model.
        measured: rates of the model with new figures.
    """
    manifest = json.loads((folder / "manifest.json").read_bytes())
    by_place = {(r.rate, r.tune): r for r in measured}
    for entry in manifest["rates"]:
        rate = by_place.get((entry["rate"], entry["tune"]))
        if rate is not None:
            entry.update(_rate_entry(rate, entry["file"]), training=entry["training"])
    _replace(folder, manifest)


def set_default(folder: Path) -> None:
    """Make a model the one that its store compresses with; the other models still decode.

    Args:
        folder: folder of the model in the store.

    Raises:
        StoreError: the model cannot be read.
    """
    load_model(folder)
    entry = {"schema": SCHEMA, "default": folder.name}
    write_whole(folder.parent / STORE_FILE, (json.dumps(entry, indent=2) + "\n").encode())


def _adapter_file(model: StoredModel, update: Update) -> bytes:
    """The adapter's file of an update.

    Raises:
        StoreError: the update does not fit the model.
    """
    packed = pack(update, layer_shapes(model.transforms, model.entropy))
    check_adapter(model, packed)
    return save_safetensors(packed)


def _entry(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _rate_entry(rate: StoredRate, file: str | None) -> dict[str, object]:
    return {
        "rate": rate.rate,
        "tune": rate.tune,
        "lmbda": rate.lmbda,
        "kodak_bpp": rate.kodak_bpp,
        "kodak_psnr_db": rate.kodak_psnr_db,
        "kodak_ms_ssim": rate.kodak_ms_ssim,
        "file": file,
        "training": dict(rate.training),
    }


def _replace(folder: Path, manifest: dict[str, object]) -> None:
    write_whole(folder / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
