"""The light decoder: start, times, memory and installed size, and how its pixels agree with torch.

Times and memory are those of fresh processes that do what the base install does (fresh_decode.py),
whether torch is installed or not. The size is that of the installed packages that the base install
needs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

from service.bench import timing
from service.bench.memory import run_fresh
from service.codec import container
from service.engine.engine import Engine
from service.engine.opening import open_engine
from service.eval.machine import this_machine
from service.eval.pictures import generate, read_folder
from service.picture import U8
from service.runtime.loading import load_models
from service.settings import Settings
from service.store.read import load_store

SIZES: Final = ((768, 512), (1920, 1080), (4000, 3000))
RATES: Final[Mapping[str, tuple[float, ...]]] = {
    container.PSNR: (1, 1.5, 2, 2.25, 3, 4, 4.5, 5, 6, 6.75, 7, 7.9375, 8),
    container.MS_SSIM: (1, 3.5, 6, 8),
}
"""Rates of the comparison with torch, by tune: whole rates and rates between them."""

STARTS: Final = 3
"""Fresh processes for each size."""


def bench_decoder(
    settings: Settings, rate: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return times, memory and size of the light decoder on the CPU, as JSON values."""

    def run() -> dict[str, Any]:
        full = open_engine(Settings(store=settings.store, device="cpu", check=False))
        times = []
        with TemporaryDirectory() as folder:
            stream = Path(folder, "stream.rkp")
            for width, height in SIZES:
                progress(f"decoding {width}x{height}")
                data = full.compress(generate(width, height), rate).data
                stream.write_bytes(data)
                size = {"width": width, "height": height, "bytes": len(data)}
                times.append({**size, **_decode_in_fresh_processes(stream, settings)})
        return {
            "rate": rate,
            "pictures": "generated",
            "libraries": {n: version(n) for n in ("onnxruntime", "numpy", "constriction")},
            "times": times,
            "installed_mb": {n: size / 1e6 for n, size in installed_bytes().items()},
        }

    return timing.measure("decoder", settings, progress, run)


def compare_pixels(
    folder: Path, store: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Compare the light decoder's pixels with torch's over a folder, at the RATES of the store.

    The reference is torch in float32. For each rate, `largest` is the largest difference of an
    8-bit sample and `share` the mean share of samples that differ; `server_largest` and
    `server_share` are the same for torch as a server runs it on this machine.

    Raises:
        BadParameter: the folder holds no picture.
    """
    pictures = read_folder(folder)
    stored = load_store(store)
    exact = Engine(load_models(stored, "cpu", torch.float32), check=False)
    server = open_engine(Settings(store=store, device="cpu", check=False))
    light = open_engine(Settings(store=store, decode_only=True))
    rows: list[dict[str, Any]] = []
    for tune, rate in [(t, r) for t in stored[0].tunes for r in RATES[t]]:
        if not stored[0].offers(round(16 * rate), tune):
            continue
        progress(f"comparing at rate {rate:g}, tune {tune}")
        row: dict[str, Any] = {"tune": tune, "rate": rate, "pictures": len(pictures)}
        streams = [server.compress(p.picture, rate, tune).data for p in pictures]
        references = [exact.decompress(data).picture.rgb for data in streams]
        for prefix, engine in (("", light), ("server_", server)):
            differences = [
                _differences(engine.decompress(data).picture.rgb, reference)
                for data, reference in zip(streams, references, strict=True)
            ]
            row[f"{prefix}largest"] = max(largest for largest, _ in differences)
            row[f"{prefix}share"] = fmean(share for _, share in differences)
        rows.append(row)
    return {
        "what": "agreement",
        "schema": timing.SCHEMA,
        "pictures": folder.name,
        "machine": asdict(this_machine("cpu")),
        "agreement": rows,
    }


def _differences(one: U8, other: U8) -> tuple[int, float]:
    """Return the largest difference of a sample, and the share of samples that differ."""
    difference = np.abs(one.astype(np.int16) - other)
    return int(difference.max()), float((difference > 0).mean())


def installed_bytes(package: str = "rankpress") -> dict[str, int]:
    """Return the bytes on disk of a package and of everything it requires without extras, by name.

    Packages that are not installed are left out, as are Python itself and pip.
    """
    sizes: dict[str, int] = {}
    waiting = [package]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in sizes:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        paths = [Path(str(f.locate())) for f in installed.files or ()]
        sizes[name] = sum(p.stat().st_size for p in paths if p.is_file())
        for requirement in installed.requires or ():
            text, _, marker = requirement.partition(";")
            needed = re.match(r"[A-Za-z0-9._-]+", text.strip())
            if needed is not None and "extra" not in marker:
                waiting.append(needed[0])
    return sizes


def _decode_in_fresh_processes(stream: Path, settings: Settings) -> dict[str, float]:
    """Return medians over STARTS fresh processes that decode a stream."""
    arguments = stream, settings.store or "", settings.threads
    runs = []
    for _ in range(STARTS):
        begin = time.time()
        result = run_fresh("service.bench.fresh_decode", *arguments)
        result["first_s"] = result.pop("first_at") - begin
        runs.append(result)
    return {name: median(run[name] for run in runs) for name in runs[0]}
