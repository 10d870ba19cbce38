"""The writing side of the model store: models, rates and ready updates -> files.

An adapter's file is named by its hash and written before the manifest that lists it, and the new
manifest replaces the old one in one step. So whenever a writer is interrupted, the store is in its
old state or in the new one. Only `prune` deletes what streams may name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from service.codec.coder import Tables
from service.codec.container import PSNR, TUNES
from service.codec.lowrank import Update, pack
from service.errors import BadParameter
from service.files import write_whole
from service.store.model import (
    StoredModel,
    StoredRate,
    StoredUpdate,
    Tensors,
    check_adapter,
    layer_shapes,
    with_updates,
)
from service.store.read import (
    PREVIEWS_FILE,
    RATE_KEYS,
    SCHEMA,
    STORE_FILE,
    graph_file,
    load_model,
)
from service.store.shapes import check_previews


def write_model(folder: Path, model: StoredModel, base: bytes) -> None:
    """Write a model with its own rate alone; the bytes of base.safetensors are its weights."""
    golden = save_safetensors(
        {
            "stream": np.frombuffer(model.golden.stream, np.uint8),
            "y_hat": model.golden.y_hat,
            "rgb": np.ascontiguousarray(model.golden.rgb),
        }
    )
    files = {"base.safetensors": base, "golden.safetensors": golden}
    files |= {graph_file(name): data for name, data in model.graphs.items()}
    for name, data in files.items():
        write_whole(folder / name, data)
    (rate,) = model.rates
    manifest = {
        "schema": SCHEMA,
        "family": model.sizes.family,
        "sizes": asdict(model.sizes),
        "files": {name: _entry(data) for name, data in files.items()},
        "rates": [_rate_entry(rate, None)],
        "superseded": [],
        "updates": [],
        "training": dict(model.training),
    }
    _replace(folder, manifest)


def candidate(model: StoredModel, update: Update, described: StoredRate) -> StoredModel:
    """The model with a quantised update as the rate that is described, to measure it.

    Raises:
        BadParameter: the rate is the base's own.
        StoreError: the update does not fit the base.
    """
    data = _adapter_file(model, update, described)
    digest = hashlib.sha256(data).digest()
    rate = replace(described, update=update, digest=digest, data=data)
    others = (r for r in model.rates if (r.rate, r.tune) != (rate.rate, rate.tune))
    return replace(model, rates=(*others, rate))


def publish_rate(folder: Path, update: Update, measured: StoredRate) -> StoredModel:
    """Store what `candidate` returns with its figures; returns the stored model.

    The adapter that made the rate before is superseded: it still decodes its streams.

    Raises:
        BadParameter: the rate is the base's own; the store is unchanged.
        StoreError: the update does not fit the base; the store is unchanged.
    """
    stored = load_model(folder)
    data = _adapter_file(stored, update, measured)
    kind = "" if measured.tune == PSNR else f"{measured.tune}-"
    name = f"rates/{kind}{measured.rate:g}-{hashlib.sha256(data).hexdigest()[:12]}.safetensors"
    write_whole(folder / name, data)
    manifest = _manifest(folder)
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
    """Delete the superseded adapters of a model, and return the names of their files.

    Streams that they made can no longer be decoded.
    """
    load_model(folder)
    manifest = _manifest(folder)
    names = tuple(entry["file"] for entry in manifest["superseded"])
    for name in names:
        del manifest["files"][name]
    manifest["superseded"] = []
    _replace(folder, manifest)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return names


def publish_updates(folder: Path, updates: Sequence[StoredUpdate]) -> StoredModel:
    """Add ready updates that a model does not have yet; returns the stored model.

    Existing updates stay, because streams may name them.

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
    manifest = _manifest(folder)
    entries = manifest["updates"]
    for update in fresh:
        name = f"updates/{update.digest.hex()[:12]}.rku"
        write_whole(folder / name, update.data)
        manifest["files"][name] = _entry(update.data)
        base, training = stored.sha256, dict(update.training)
        entries.append({"name": update.name, "file": name, "base": base, "training": training})
    _replace(folder, manifest)
    return load_model(folder)


def publish_previews(folder: Path, tensors: Tensors, training: Mapping[str, object]) -> StoredModel:
    """Give a model a preview network in place of the one that it has; returns the stored model.

    Args:
        tensors: float16, see nets/previews.py. training: record of its training.

    Raises:
        StoreError: they do not fit the model; the store is unchanged.
    """
    check_previews(tensors, load_model(folder).sizes)
    manifest, data = _manifest(folder), save_safetensors(tensors)
    write_whole(folder / PREVIEWS_FILE, data)
    manifest["files"][PREVIEWS_FILE] = _entry(data)
    manifest["training"]["previews"] = dict(training)
    _replace(folder, manifest)
    return load_model(folder)


def record_figures(folder: Path, measured: Sequence[StoredRate]) -> None:
    """Replace the figures of these rates in the manifest; nothing else changes."""
    manifest = _manifest(folder)
    by_place = {(r.rate, r.tune): r for r in measured}
    for entry in manifest["rates"]:
        rate = by_place.get((entry["rate"], entry["tune"]))
        if rate is not None:
            entry.update(_rate_entry(rate, entry["file"]), training=entry["training"])
    _replace(folder, manifest)


def set_default(folder: Path) -> None:
    """Make a model the one that its store compresses with where a request names none.

    Raises:
        StoreError: the model cannot be read.
    """
    load_model(folder)
    entry = {"schema": SCHEMA, "default": folder.name}
    write_whole(folder.parent / STORE_FILE, (json.dumps(entry, indent=2) + "\n").encode())


def _adapter_file(model: StoredModel, update: Update, rate: StoredRate) -> bytes:
    """The adapter's file of an update, checked to fit the model and not to be of its own rate."""
    if (rate.rate, rate.tune) in ((r.rate, r.tune) for r in model.rates if r.update is None):
        raise BadParameter(f"rate {rate.rate:g} is the base's own and takes no adapter")
    packed = pack(update, layer_shapes(model.transforms, model.entropy))
    check_adapter(model, packed)
    return save_safetensors(packed)


def _entry(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _rate_entry(rate: StoredRate, file: str | None) -> dict[str, object]:
    numbers = {key: getattr(rate, key) for key in RATE_KEYS}
    return {**numbers, "file": file, "training": dict(rate.training)}


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a model that was loaded before, and so is sound."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return manifest


def _replace(folder: Path, manifest: dict[str, object]) -> None:
    write_whole(folder / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
