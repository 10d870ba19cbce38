"""The models of a store loaded and put behind an engine, as the settings say."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from service.autoencoders.registry import open_autoencoders
from service.engine.engine import Engine
from service.errors import MissingExtra
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import batch_for, load_models
from service.store.read import load_store

if TYPE_CHECKING:
    from service.settings import Settings


def open_engine(settings: Settings, *, warm: bool = False) -> Engine:
    """Load a store and make every model of it resident.

    With `warm`, weights of the whole rates are merged now, not when they are first asked for.

    Raises:
        StoreError: the store is incomplete or damaged. BadParameter: no such device or model.
        MissingExtra: a GPU was asked for and torch is not installed.
    """
    stored = load_store(settings.store, settings.model)
    decode_only = settings.decode_only or importlib.util.find_spec("torch") is None
    if decode_only:
        if settings.device == "cuda":
            raise MissingExtra(
                "device cuda needs torch: pip install 'rankpress[server]', and no decode_only"
            )
        models = load_decode_only(stored, settings.threads)
    else:
        models = load_models(stored, settings.device, None, settings.threads)
    engine = Engine(
        models,
        check=settings.check,
        measure=settings.measure,
        max_pixels=settings.max_pixels,
        cache_bytes=settings.cache_bytes,
        max_batch=settings.max_batch or batch_for(models[0]),
        adapters=settings.adapters,
        graphics=settings.graphics,
        autoencoders=open_autoencoders(
            settings.store, models, settings.device, decode_only, settings.autoencoders
        ),
    )
    if warm:
        engine.warm()
    return engine
