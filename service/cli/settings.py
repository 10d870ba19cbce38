"""Settings of a command: what was given to it, else the environment, else the defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import BadParameter

if TYPE_CHECKING:
    from service.settings import Settings


def settings_of(**given: object) -> Settings:
    """The settings, with those that were given; None stands for not given.

    Raises:
        BadParameter: a value is wrong; the message names it.
    """
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadParameter("; ".join(wrong)) from error
