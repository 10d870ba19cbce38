"""The settings of a command, and the codec that they select."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import BadParameter

if TYPE_CHECKING:
    from service.engine.types import Codec
    from service.settings import Settings


def settings_of(**options: object) -> Settings:
    """Return settings with the given options; None stands for an option that was not given.

    Settings that are not given come from the environment, else from the defaults.

    Raises:
        BadParameter: a value is wrong; the message names the setting.
    """
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings.model_validate({k: v for k, v in options.items() if v is not None})
    except ValidationError as error:
        messages = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadParameter("; ".join(messages)) from error


def open_codec(settings: Settings, *, warm: bool = False) -> Codec:
    """Load the models of the store, or the CompressAI model that the settings name.

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
