"""The reading side of the model store: manifest.json -> verified tensors.

A store is a folder of models; `store.json` says which one is the default. A model is a folder:
`manifest.json` lists every file with its size and sha256, and records the figures of each rate and
the training. Weights are safetensors, which cannot hold code. A model may have several ladders of
rates, one for each of codec.container.TUNES; the base itself makes one rate of the first ladder.

An adapter is superseded when its rate is trained again: it stays, for the streams that it made,
until `rankpress train prune` deletes it.

ONNX graphs are in `graphs/`. They are protocol buffers, which hold no code, but a model may come
from anywhere: a graph is refused if its hash is not the one in the manifest, if it is larger than
MAX_GRAPH_BYTES, or if it could make ONNX Runtime read another file. A tensor whose data are in a
file names it under the key "location", so no graph may contain this word. How much memory a graph
needs is not checked.

A model may hold a preview network, which makes small pictures of latents of all its rates.

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
from service.codec.sizes import Sizes, read_sizes
from service.errors import BadParameter, StoreError
from service.store.model import (
    ENTROPY,
    GRAPHS,
    TRANSFORMS,
    Golden,
    StoredModel,
    StoredRate,
    StoredUpdate,
    Tensors,
    check_adapter,
    identity,
    unpack_adapter,
    with_updates,
)
from service.store.shapes import check_previews, check_transforms

SCHEMA = 1
STORE_FILE = "store.json"
"""File in the store that names the default model: {"schema": 1, "default": NAME}."""

PREVIEWS_FILE = "previews.safetensors"
"""File of a model with the weights of its preview network; a model may do without."""

RATE_KEYS = ("rate", "tune", "lmbda", "kodak_bpp", "kodak_psnr_db", "kodak_ms_ssim")
"""Keys of a rate in a manifest whose values are fields of StoredRate, too."""

MAX_GRAPH_BYTES = 2**16
"""Largest ONNX graph that is read; those of the shipped model have at most 9 KB."""


def default_path() -> Path:
    """The built-in store: inside the package when installed, next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "model_store"
    return inside if inside.is_dir() else package.parent / "model_store"


def load_store(path: Path | None = None, first: str | None = None) -> tuple[StoredModel, ...]:
    """Read and verify every model of a store: the default one, then the others by name.

    The default one compresses where a request names no model.

    Args:
        path: folder of the store, None for the built-in one.
        first: name of the default model; None takes the one in store.json, or without that file
            the first by name.

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
    """Name of the default model by store.json, None without that file.

    Raises:
        StoreError: store.json is damaged.
    """
    path = root / STORE_FILE
    if not path.exists():
        return None
    entry = read_json(path)
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
    for needed in ("base.safetensors", "golden.safetensors", *map(graph_file, GRAPHS)):
        if needed not in files:
            raise StoreError(f"{folder / 'manifest.json'} does not list {needed}")
    base = _tensors(files["base.safetensors"], folder / "base.safetensors")
    golden = _tensors(files["golden.safetensors"], folder / "golden.safetensors")
    digest = hashlib.sha256(files["base.safetensors"])
    transforms = {n: t for n, t in base.items() if n.startswith(TRANSFORMS)}
    entropy = {n.removeprefix(ENTROPY): t for n, t in base.items() if n.startswith(ENTROPY)}
    sizes = read_sizes(manifest["family"], manifest["sizes"])
    check_transforms(transforms, sizes)
    model = StoredModel(
        name=folder.name,
        sizes=sizes,
        sha256=digest.hexdigest(),
        identity=identity([digest.digest()]),
        transforms=transforms,
        entropy=entropy,
        rates=(),
        training=manifest["training"],
        golden=_golden(golden, folder),
        file_bytes=sum(len(data) for data in files.values()),
        graphs={name: _graph(files[graph_file(name)], name, folder) for name in GRAPHS},
        previews=_previews(files, sizes, folder),
    )
    superseded = tuple(_rate(entry, files, model) for entry in manifest["superseded"])
    if any(rate.update is None for rate in superseded):
        raise StoreError(f"{folder}: a superseded rate needs a file")
    model = replace(model, rates=_rates(manifest["rates"], files, model), superseded=superseded)
    return with_updates(model, [_update(entry, files, model) for entry in manifest["updates"]])


def _previews(files: Mapping[str, bytes], sizes: Sizes, folder: Path) -> Tensors:
    """The checked weights of a model's preview network; empty if it has none."""
    if PREVIEWS_FILE not in files:
        return {}
    tensors = _tensors(files[PREVIEWS_FILE], folder / PREVIEWS_FILE)
    check_previews(tensors, sizes)
    return tensors


def graph_file(name: str) -> str:
    """Path of an ONNX graph in a model's folder."""
    return f"graphs/{name}.onnx"


def read_adapter(model: StoredModel, data: bytes, rate: int, tune: str = PSNR) -> StoredRate:
    """Read an adapter's file as a whole rate (1–8) of a ladder, checked by `check_adapter`.

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
    return StoredRate(rate, None, None, None, update, digest, data, tune=tune)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises StoreError where it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as JSON: {error}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    kinds = {"schema": int, "family": str, "sizes": dict, "files": dict, "rates": list,
             "superseded": list, "updates": list, "training": dict}  # fmt: skip
    if not isinstance(manifest, dict) or manifest.keys() != kinds.keys():
        raise StoreError(f"{path} must be an object with the keys {sorted(kinds)}")
    for key, kind in kinds.items():
        if not isinstance(manifest[key], kind):
            raise StoreError(f"{path}: {key} must be a {kind.__name__}")
    if manifest["schema"] != SCHEMA:
        raise StoreError(f"{path} has schema {manifest['schema']}, expected {SCHEMA}")
    return manifest


def _verified(folder: Path, name: str, entry: object) -> bytes:
    """Read a file and check it against its entry in the manifest."""
    plain = re.fullmatch(r"(?:[a-z0-9_-]+/)?[a-z0-9_.-]+\.(?:safetensors|rku|onnx)", name)
    if plain is None or ".." in name:
        raise StoreError(
            f"{folder}: {name!r} is not a plain name of a safetensors, rku or onnx file"
        )
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


def _graph(data: bytes, name: str, folder: Path) -> bytes:
    """A graph that is small and reads no other file."""
    if len(data) > MAX_GRAPH_BYTES:
        raise StoreError(
            f"{folder}: graph {name} has {len(data)} bytes, expected at most {MAX_GRAPH_BYTES}"
        )
    if b"location" in data:
        raise StoreError(f"{folder}: graph {name} may name other files")
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
    keys = {*RATE_KEYS, "file", "training"}
    if not isinstance(entry, dict) or entry.keys() != keys:
        raise StoreError(f"{model.name}: a rate must have the keys {sorted(keys)}, found {entry!r}")
    file, training = entry["file"], entry["training"]
    if not isinstance(training, dict) or file not in [None, *files]:
        raise StoreError(
            f"{model.name}: a rate needs a training record and a listed file: {entry!r}"
        )
    if entry["tune"] not in TUNES:
        raise StoreError(f"{model.name}: tune {entry['tune']!r} of a rate, expected one of {TUNES}")
    for key in RATE_KEYS:
        measured = key.startswith("kodak")
        kinds = (int, float, type(None)) if measured else (int, float)
        if key != "tune" and type(entry[key]) not in kinds:
            raise StoreError(f"{model.name}: {key} of a rate is {entry[key]!r}, expected a number")
    if entry["rate"] not in range(1, 9):
        raise StoreError(f"{model.name}: rate {entry['rate']}, expected a whole number from 1 to 8")
    rate = StoredRate(**{key: entry[key] for key in RATE_KEYS}, training=training)
    if file is None:
        return rate
    data = files[file]
    update = unpack_adapter(model, _tensors(data, Path(file)))
    digest = hashlib.sha256(data).digest()
    return replace(rate, update=update, digest=digest, data=data)


def _update(entry: object, files: Mapping[str, bytes], model: StoredModel) -> StoredUpdate:
    """A ready update of a manifest."""
    if not isinstance(entry, dict) or set(entry) != {"name", "file", "base", "training"}:
        raise StoreError(
            f"{model.name}: a ready update must have the keys name, file, base and training"
        )
    name, file, training = entry["name"], entry["file"], entry["training"]
    if not isinstance(name, str) or file not in [*files] or not isinstance(training, dict):
        raise StoreError(f"{model.name}: a ready update needs a listed file, {entry!r}")
    if entry["base"] != model.sha256:
        raise StoreError(f"{model.name}: ready update {name} is for base {entry['base']!r}")
    return StoredUpdate(name, files[file], training)


def _golden(tensors: Tensors, folder: Path) -> Golden:
    """The golden stream, checked for dtypes and dimensions."""
    expected = {"stream": (np.uint8, 1), "y_hat": (np.int16, 3), "rgb": (np.uint8, 3)}
    for name, (dtype, ndim) in expected.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tensor.ndim != ndim:
            raise StoreError(f"{folder}: golden tensor {name} is missing or of the wrong kind")
    return Golden(tensors["stream"].tobytes(), tensors["y_hat"], tensors["rgb"])
