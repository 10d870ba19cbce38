"""The codec that a command's settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.engine.types import Codec
    from service.settings import Settings


def open_codec(settings: Settings, *, warm: bool = False) -> Codec:
    """Load the models: those of the store, or the one of CompressAI that is set.

    Args:
        settings: of the command. warm: see `open_engine`; a CompressAI model is always ready.
    """
    if settings.zoo is None:
        from service.engine.opening import open_engine

        return open_engine(settings, warm=warm)
    from service.zoo.codec import open_zoo

    return open_zoo(
        settings.zoo,
        settings.zoo_adapters,
        settings.machine_key or settings.state_folder / "machine.key",
        settings.max_pixels,
        settings.threads,
    )
