"""A store's models loaded and put behind an engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from service.engine.engine import Engine
from service.errors import MissingExtra
from service.runtime.light import load_light
from service.runtime.loading import batch_for, load_models
from service.store.read import load_store


def open_engine(
    *,
    store: Path | None = None,
    device: str = "auto",
    check: bool = True,
    max_pixels: int = 10**8,
    threads: int = 0,
    cache_bytes: int = 2**30,
    max_batch: int = 0,
    warm: bool = False,
    adapters: Path | None = None,
    decode_only: bool = False,
    model: str | None = None,
) -> Engine:
    """Load a store and make every model of it resident.

    Args:
        store: folder of models; None takes the one that comes with Rankpress.
        device: "auto", "cpu" or "cuda".
        check: see Engine. max_pixels: see Engine.
        threads: CPU threads for the networks, 0 takes what the library takes.
        cache_bytes: see Engine.
        max_batch: see Engine; 0 takes what suits the device.
        warm: merge the rates of the ladder now, not when they are first asked for.
        adapters: see Engine.
        decode_only: with the light decoder, even where torch is installed.
        model: name of the one that compresses; None is the store's own choice.

    Raises:
        StoreError: the store is incomplete or damaged. BadParameter: no such device or model.
        MissingExtra: a GPU was asked for and torch is not installed.
    """
    stored = load_store(store, model)
    if decode_only or importlib.util.find_spec("torch") is None:
        if device not in ("auto", "cpu"):
            raise MissingExtra(
                f"device {device} needs torch: pip install 'rankpress[server]', and no decode-only"
            )
        models = load_light(stored, threads)
    else:
        models = load_models(stored, device, None, threads)
    engine = Engine(
        models,
        check=check,
        max_pixels=max_pixels,
        cache_bytes=cache_bytes,
        max_batch=max_batch or batch_for(models[0]),
        adapters=adapters,
    )
    if warm:
        engine.warm()
    return engine
