"""The light decoder in figures: start, times, memory, size; and its pixels beside torch's.

Times and memory are those of fresh processes that do what the base install does (fresh_decode.py),
whether torch is in the environment or not. The size is that of the packages that the base install
brings, as they lie here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from service.codec import container
from service.eval.machine import this_machine
from service.eval.pictures import Named, generate, read_folder

SCHEMA: Final = 1
SIZES: Final = ((768, 512), (1920, 1080), (4000, 3000))
RATES: Final[Mapping[str, tuple[float, ...]]] = {
    container.PSNR: (1, 1.5, 2, 2.25, 3, 4, 4.5, 5, 6, 6.75, 7, 7.9375, 8),
    container.MS_SSIM: (1, 3.5, 6, 8),
}
"""Of the comparison with torch, by tune: a whole ladder and rates between, and some of another."""

STARTS: Final = 3


@dataclass(frozen=True)
class Wanted:
    """What to measure: see the command's options."""

    rate: float
    threads: int
    store: Path | None


def measure(wanted: Wanted, say: Callable[[str], None]) -> dict[str, Any]:
    """Times, memory and size of the light decoder, as JSON values.

    Args:
        wanted: what to measure. say: is told the next step.
    """
    from service.engine.opening import open_engine
    from service.settings import Settings

    before = this_machine("cpu")
    if before.busy:
        say(f"load is {before.load}: the timings below say little")
    full = open_engine(Settings(store=wanted.store, device="cpu", check=False))
    times = []
    with TemporaryDirectory() as folder:
        for number, size in enumerate(SIZES):
            say(f"decoding {size[0]}x{size[1]}")
            stream = Path(folder, f"{number}.rkp")
            stream.write_bytes(full.compress(generate(*size).picture, wanted.rate).data)
            times.append(_fresh(size, stream, wanted))
    return {
        "what": "decoder",
        "schema": SCHEMA,
        "rate": wanted.rate,
        "threads": wanted.threads,
        "pictures": "generated",
        "machine": asdict(before),
        "libraries": {n: distribution(n).version for n in ("onnxruntime", "numpy", "constriction")},
        "times": times,
        "installed_mb": {n: size / 1e6 for n, size in installed_bytes().items()},
        "load_at_end": this_machine("cpu").load,
    }


def compare(folder: Path, store: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """How near the light decoder's pixels are to torch's, over the pictures of a folder."""
    pictures = read_folder(folder)
    return {
        "what": "agreement",
        "schema": SCHEMA,
        "pictures": folder.name,
        "machine": asdict(this_machine("cpu")),
        "agreement": [asdict(a) for a in agreement(pictures, store, say)],
    }


@dataclass(frozen=True)
class Agreement:
    """8-bit samples against torch in float32, over some pictures at one rate.

    Attributes:
        largest: difference of any sample. share: of the samples that differ at all.
        server_largest, server_share: the same of torch as the server runs it on this machine.
    """

    tune: str
    rate: float
    pictures: int
    largest: int
    share: float
    server_largest: int
    server_share: float


def agreement(
    pictures: Sequence[Named], store: Path | None, say: Callable[[str], None]
) -> list[Agreement]:
    """Compare at every one of RATES that the store offers."""
    import torch

    from service.engine.engine import Engine
    from service.engine.opening import open_engine
    from service.runtime.loading import load_models
    from service.settings import Settings
    from service.store.read import load_store

    stored = load_store(store)
    exact = Engine(load_models(stored, "cpu", torch.float32), check=False)
    server = open_engine(Settings(store=store, device="cpu", check=False))
    light = open_engine(Settings(store=store, decode_only=True))
    found = []
    for tune, rate in [(t, r) for t in stored[0].tunes for r in RATES[t]]:
        if not stored[0].offers(round(16 * rate), tune):
            continue
        say(f"comparing at rate {rate:g}, tune {tune}")
        ours, servers = [], []
        for picture in pictures:
            data = server.compress(picture.picture, rate, tune).data
            rgb = exact.decompress(data).picture.rgb
            ours.append(_differences(light.decompress(data).picture.rgb, rgb))
            servers.append(_differences(server.decompress(data).picture.rgb, rgb))
        found.append(Agreement(tune, rate, len(pictures), *_worst(ours), *_worst(servers)))
    return found


def _differences(one: Any, other: Any) -> tuple[int, float]:
    """Largest difference of any sample, and the share of samples that differ."""
    off = np.abs(one.astype(np.int16) - other)
    return int(off.max()), float((off > 0).mean())


def _worst(found: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The largest difference, and the mean share."""
    return max(largest for largest, _ in found), float(np.mean([share for _, share in found]))


def installed_bytes(package: str = "rankpress") -> dict[str, int]:
    """Bytes on disk of a package and of all that it needs without extras, by name.

    What is not installed counts as nothing; neither do Python itself and pip.
    """
    sizes: dict[str, int] = {}
    waiting = [package]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in sizes:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        paths = [Path(str(f.locate())) for f in found.files or ()]
        sizes[name] = sum(p.stat().st_size for p in paths if p.is_file())
        for requirement in found.requires or ():
            text, _, marker = requirement.partition(";")
            needed = re.match(r"[A-Za-z0-9._-]+", text.strip())
            if needed is not None and "extra" not in marker:
                waiting.append(needed[0])
    return sizes


def _fresh(size: tuple[int, int], stream: Path, wanted: Wanted) -> dict[str, Any]:
    """Medians over some fresh processes."""
    arguments = [str(stream), str(wanted.store or ""), str(wanted.threads)]
    command = [sys.executable, "-m", "service.bench.fresh_decode", *arguments]
    runs = []
    for _ in range(STARTS):
        begun = time.time()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        told = json.loads(done.stdout.splitlines()[-1])
        told["first_s"] = told.pop("first_at") - begun
        runs.append(told)
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    return {"width": size[0], "height": size[1], "bytes": stream.stat().st_size, **middle}
