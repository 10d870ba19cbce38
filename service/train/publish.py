"""Models and rates -> files of the store: the writing side of store.py.

An adapter's file is named by its hash and written before the manifest that names it, and the
manifest replaces its predecessor in one step: whenever a writer is cut off, what lies there is the
old store or the new one. What is superseded is deleted last.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

from service.codec.lowrank import Update, pack
from service.errors import BadParameter
from service.store import (
    SCHEMA,
    StoredModel,
    StoredRate,
    check_adapter,
    layer_shapes,
    load_model,
)


def write_model(folder: Path, model: StoredModel, base: bytes) -> None:
    """Write a model at its own rate: weights, golden stream, manifest.

    Args:
        folder: of the model in the store; made where it is missing.
        model: what to describe. base: bytes of base.safetensors.
    """
    golden = save_safetensors(
        {
            "stream": np.frombuffer(model.golden.stream, np.uint8),
            "y_hat": model.golden.y_hat,
            "rgb": np.ascontiguousarray(model.golden.rgb),
        }
    )
    files = {"base.safetensors": base, "golden.safetensors": golden}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (rate,) = model.rates
    manifest = {
        "schema": SCHEMA,
        "sizes": asdict(model.sizes),
        "files": {name: _entry(data) for name, data in files.items()},
        "rates": [_rate_entry(rate, None)],
        "training": dict(model.training),
    }
    _replace(folder, manifest)


def publish_rate(folder: Path, update: Update, measured: StoredRate) -> StoredModel:
    """Add a rate's update to a model, or replace it; returns the model as it is now stored.

    Args:
        folder: of the model. update: quantised. measured: its rate, lmbda, figures and record.

    Raises:
        BadParameter: the rate is the base's own.
        StoreError: the update does not fit the base; the store is left as it was.
    """
    stored = load_model(folder)
    if any(r.rate == measured.rate and r.update is None for r in stored.rates):
        raise BadParameter(f"rate {measured.rate:g} is the base's own and takes no adapter")
    packed = pack(update, layer_shapes(stored.transforms, stored.entropy))
    check_adapter(stored, packed)
    data = save_safetensors(packed)
    name = f"rates/{measured.rate:g}-{hashlib.sha256(data).hexdigest()[:12]}.safetensors"
    (folder / "rates").mkdir(exist_ok=True)
    _write_whole(folder / name, data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    superseded = {r["file"] for r in manifest["rates"] if r["rate"] == measured.rate} - {name}
    others = [r for r in manifest["rates"] if r["rate"] != measured.rate]
    manifest["rates"] = sorted([*others, _rate_entry(measured, name)], key=lambda r: r["rate"])
    kept = {n: e for n, e in manifest["files"].items() if n not in superseded}
    manifest["files"] = kept | {name: _entry(data)}
    _replace(folder, manifest)
    for old in superseded:
        (folder / old).unlink(missing_ok=True)
    return load_model(folder)


def _entry(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _rate_entry(rate: StoredRate, file: str | None) -> dict[str, object]:
    return {
        "rate": rate.rate,
        "lmbda": rate.lmbda,
        "kodak_bpp": rate.kodak_bpp,
        "kodak_psnr_db": rate.kodak_psnr_db,
        "file": file,
        "training": dict(rate.training),
    }


def _replace(folder: Path, manifest: dict[str, object]) -> None:
    _write_whole(folder / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it, so that it is never seen half written."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
