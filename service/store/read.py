"""The reading side of the model store: manifest.json -> verified tensors.

A store is a folder of models; `store.json` says which one compresses. A model is a folder:
`manifest.json` lists every file with its size and sha256, and records the figures of each rate and
the training. Weights are safetensors, which cannot hold code. A model may have several ladders of
rates, one for each of codec.container.TUNES; the base itself makes one rate of the first ladder.

An adapter is superseded when its rate is trained again: it stays, for the streams that it made,
until `rankpress train prune` deletes it.

A model may hold ready updates of g_s (codec/model_stream.py), which streams name by the first four
bytes of their sha256. They update the base at all its rates and change no identity. They are never
deleted, because streams may name them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load as load_safetensors

from service.codec.container import PSNR, TUNES
from service.codec.lowrank import unpack
from service.codec.sizes import Sizes
from service.errors import BadParameter, StoreError
from service.store.model import (
    ENTROPY,
    TRANSFORMS,
    Golden,
    StoredModel,
    StoredRate,
    StoredUpdate,
    Tensors,
    check_adapter,
    identity,
    layer_shapes,
    with_updates,
)

SCHEMA = 1
STORE_FILE = "store.json"
"""File in the store that names the model that compresses: {"schema": 1, "default": NAME}."""


def default_path() -> Path:
    """The built-in store: inside the package when installed, next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "model_store"
    return inside if inside.is_dir() else package.parent / "model_store"


def load_store(path: Path | None = None, first: str | None = None) -> tuple[StoredModel, ...]:
    """Read and verify every model of a store: the one that compresses, then the others by name.

    Args:
        path: folder of the store, None for the built-in one.
        first: name of the model that compresses; None takes the one in store.json, or without that
            file the first by name. The other models only decode.

    Raises:
        StoreError: the store or its models are missing, or a file does not match its manifest.
        BadParameter: the store holds no model of the name `first`.
    """
    root = path or default_path()
    manifests = sorted(root.glob("*/manifest.json"))
    if not manifests:
        raise StoreError(f"no model in {root}: expected folders with a manifest.json")
    names = [m.parent.name for m in manifests]
    if first is not None and first not in names:
        raise BadParameter(f"model {first!r} is not in {root}, which holds {', '.join(names)}")
    chosen = first or default_model(root) or names[0]
    if chosen not in names:
        raise StoreError(f"{root / STORE_FILE} says {chosen!r}, {root} holds {', '.join(names)}")
    return tuple(load_model(root / n) for n in sorted(names, key=lambda n: (n != chosen, n)))


def default_model(root: Path) -> str | None:
    """Name of the model that compresses by store.json, None without that file.

    Raises:
        StoreError: store.json is damaged.
    """
    path = root / STORE_FILE
    if not path.exists():
        return None
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(entry, dict) or set(entry) != {"schema", "default"}:
        raise StoreError(f"{path} must be an object with the keys schema and default")
    if entry["schema"] != SCHEMA or not isinstance(entry["default"], str):
        raise StoreError(f"{path} has schema {entry['schema']!r}, default {entry['default']!r}")
    return entry["default"]


def load_model(folder: Path) -> StoredModel:
    """Read and verify one model.

    Raises:
        StoreError: a file is missing, damaged or does not match the manifest.
    """
    manifest = _read_manifest(folder / "manifest.json")
    files = {name: _verified(folder, name, entry) for name, entry in manifest["files"].items()}
    for needed in ("base.safetensors", "golden.safetensors"):
        if needed not in files:
            raise StoreError(f"{folder / 'manifest.json'} does not list {needed}")
    base = _tensors(files["base.safetensors"], folder / "base.safetensors")
    golden = _tensors(files["golden.safetensors"], folder / "golden.safetensors")
    digest = hashlib.sha256(files["base.safetensors"])
    transforms = {n: t for n, t in base.items() if n.startswith(TRANSFORMS)}
    entropy = {n.removeprefix(ENTROPY): t for n, t in base.items() if n.startswith(ENTROPY)}
    model = StoredModel(
        name=folder.name,
        sizes=Sizes.from_dict(manifest["sizes"]),
        sha256=digest.hexdigest(),
        identity=identity([digest.digest()]),
        transforms=transforms,
        entropy=entropy,
        rates=(),
        training=manifest["training"],
        golden=_golden(golden, folder),
        file_bytes=sum(len(data) for data in files.values()),
    )
    superseded = tuple(_rate(entry, files, model) for entry in manifest["superseded"])
    if any(rate.update is None for rate in superseded):
        raise StoreError(f"{folder}: a superseded rate needs a file")
    model = replace(model, rates=_rates(manifest["rates"], files, model), superseded=superseded)
    return with_updates(model, _updates(manifest["updates"], files, model))


def read_adapter(model: StoredModel, data: bytes, rate: int, tune: str = PSNR) -> StoredRate:
    """Read an adapter's file as a whole rate of a ladder, checked by `check_adapter`.

    Args:
        model: the base.
        data: the file.
        rate: whole rate, 1–8.
        tune: ladder of the rate.

    Raises:
        StoreError: the adapter does not fit the base.
        BadParameter: the rate or tune is out of range.
    """
    if not 1 <= rate <= 8 or tune not in TUNES:
        raise BadParameter(
            f"rate and tune are {rate} and {tune[:100]!r}, "
            f"expected a whole number from 1 to 8 and one of {', '.join(TUNES)}"
        )
    update = check_adapter(model, _tensors(data, Path("adapter")))
    digest = hashlib.sha256(data).digest()
    return StoredRate(rate, None, None, None, update, digest, len(data), tune=tune)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as JSON: {error}") from error
    kinds = {"schema": int, "sizes": dict, "files": dict, "rates": list, "superseded": list,
             "updates": list, "training": dict}  # fmt: skip
    if not isinstance(manifest, dict) or manifest.keys() != kinds.keys():
        raise StoreError(f"{path} must be an object with the keys {sorted(kinds)}")
    if manifest["schema"] != SCHEMA:
        raise StoreError(f"{path} has schema {manifest['schema']!r}, expected {SCHEMA}")
    for key, kind in kinds.items():
        if not isinstance(manifest[key], kind):
            raise StoreError(f"{path}: {key} must be a {kind.__name__}")
    return manifest


def _verified(folder: Path, name: str, entry: object) -> bytes:
    """Read a file and check it against its entry in the manifest."""
    plain = re.fullmatch(r"(?:[a-z0-9_-]+/)?[a-z0-9_.-]+\.(?:safetensors|rku)", name)
    if plain is None or ".." in name:
        raise StoreError(f"{folder}: {name!r} is not a plain name of a safetensors or rku file")
    if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
        raise StoreError(f"{folder}: the entry of {name} must have bytes and sha256")
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise StoreError(f"{folder / name} is in the manifest but cannot be read") from error
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != entry["bytes"] or digest != entry["sha256"]:
        raise StoreError(
            f"{folder / name} has {len(data)} bytes, sha256 {digest}; "
            f"the manifest says {entry['bytes']} bytes, {entry['sha256']}"
        )
    return data


def _tensors(data: bytes, path: Path) -> Tensors:
    try:
        return load_safetensors(data)
    except (safetensors.SafetensorError, KeyError) as error:
        raise StoreError(f"{path} cannot be read as safetensors: {error}") from error


def _rates(
    entries: list[object], files: Mapping[str, bytes], model: StoredModel
) -> tuple[StoredRate, ...]:
    """The rates of a manifest that make new streams."""
    rates = tuple(_rate(entry, files, model) for entry in entries)
    if len({(r.rate, r.tune) for r in rates}) < len(rates):
        raise StoreError(f"{model.name}: the manifest lists a rate twice")
    if [r.tune for r in rates if r.update is None] != [PSNR]:
        raise StoreError(
            f"{model.name}: exactly one rate, of tune {PSNR}, must be the base's and have no file"
        )
    return rates


def _rate(entry: object, files: Mapping[str, bytes], model: StoredModel) -> StoredRate:
    """A rate of a manifest, with its adapter if it has one, checked against the base."""
    measured = {"kodak_bpp", "kodak_psnr_db", "kodak_ms_ssim"}
    keys = {"rate", "tune", "lmbda", *measured, "file", "training"}
    if not isinstance(entry, dict) or entry.keys() != keys:
        raise StoreError(f"{model.name}: a rate must have the keys {sorted(keys)}, found {entry!r}")
    file, training = entry["file"], entry["training"]
    if not isinstance(training, dict) or not (file is None or file in files):
        raise StoreError(
            f"{model.name}: a rate needs a training record and a listed file: {entry!r}"
        )
    if entry["tune"] not in TUNES:
        raise StoreError(
            f"{model.name}: tune of a rate is {entry['tune']!r}, expected one of {TUNES}"
        )
    numbers = {k: v for k, v in entry.items() if k not in ("file", "training", "tune")}
    for key, value in numbers.items():
        if type(value) not in (int, float) and not (key in measured and value is None):
            raise StoreError(f"{model.name}: {key} of a rate is {value!r}, expected a number")
    if not 1 <= entry["rate"] <= 8 or entry["rate"] % 1:
        raise StoreError(f"{model.name}: rate {entry['rate']}, expected a whole number from 1 to 8")
    rate = StoredRate(**numbers, training=training, tune=entry["tune"])
    if file is None:
        return rate
    data = files[file]
    shapes = layer_shapes(model.transforms, model.entropy)
    update = unpack(_tensors(data, Path(file)), shapes, model.sizes)
    digest = hashlib.sha256(data).digest()
    return replace(rate, update=update, digest=digest, file_bytes=len(data))


def _updates(
    entries: list[object], files: Mapping[str, bytes], model: StoredModel
) -> tuple[StoredUpdate, ...]:
    """The ready updates of a manifest."""
    out = []
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != {"name", "file", "base", "training"}:
            raise StoreError(
                f"{model.name}: a ready update must have the keys name, file, base and training"
            )
        name, file, training = entry["name"], entry["file"], entry["training"]
        if not isinstance(name, str) or file not in files or not isinstance(training, dict):
            raise StoreError(f"{model.name}: a ready update needs a listed file, {entry!r}")
        if entry["base"] != model.sha256:
            raise StoreError(f"{model.name}: ready update {name} is for base {entry['base']!r}")
        out.append(StoredUpdate(name, files[file], training))
    return tuple(out)


def _golden(tensors: Tensors, folder: Path) -> Golden:
    """The golden stream, checked for dtypes and dimensions."""
    expected = {"stream": (np.uint8, 1), "y_hat": (np.int16, 3), "rgb": (np.uint8, 3)}
    for name, (dtype, ndim) in expected.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tensor.ndim != ndim:
            raise StoreError(f"{folder}: golden tensor {name} is missing or of the wrong kind")
    return Golden(tensors["stream"].tobytes(), tensors["y_hat"], tensors["rgb"])
