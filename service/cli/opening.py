"""The codec that a command's settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.engine.types import Codec
    from service.settings import Settings


def open_codec(settings: Settings, **serving: Any) -> Codec:
    """Load the models: those of the store, or the one of CompressAI that is set.

    Args:
        settings: of the command. serving: what else `open_engine` takes.
    """
    if settings.zoo is None:
        return open_store(settings, **serving)
    from service.zoo.codec import open_zoo

    return open_zoo(
        settings.zoo,
        settings.zoo_adapters,
        settings.machine_key or settings.state_folder / "machine.key",
        settings.max_pixels,
        settings.threads,
    )


def open_store(settings: Settings, **serving: Any) -> Engine:
    """Load the models of the store."""
    from service.engine.opening import open_engine

    return open_engine(
        store=settings.store,
        device=settings.device,
        check=settings.check,
        max_pixels=settings.max_pixels,
        threads=settings.threads,
        cache_bytes=settings.cache_bytes,
        adapters=settings.adapters,
        decode_only=settings.decode_only,
        model=settings.model,
        **serving,
    )
