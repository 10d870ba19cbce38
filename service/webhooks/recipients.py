"""Whom to tell of the end of a job: the URL of a request, and the one of the settings."""

from __future__ import annotations

from service.errors import BadParameter
from service.settings import Settings
from service.webhooks.addresses import check_url
from service.webhooks.signing import Signer


def signer_of(settings: Settings) -> Signer | None:
    """The signer of all webhooks, None without a secret. Raises BadParameter: it is malformed."""
    secret = settings.webhook_secret
    return None if secret is None else Signer.of_secrets(secret.get_secret_value())


def check_settings(settings: Settings) -> None:
    """Raise BadParameter if the webhooks of the settings could not be signed or sent."""
    signer = signer_of(settings)
    if not settings.webhook_url:
        return
    if signer is None:
        raise BadParameter("webhook_url needs webhook_secret (RANKPRESS_WEBHOOK_SECRET)")
    check_url(settings.webhook_url, allow_private=settings.webhook_private)


def recipients_of(settings: Settings, url: str | None) -> tuple[str, ...]:
    """The URLs to tell of the end of a job.

    Args:
        settings: that `check_settings` has passed. url: that a request names, None for none.

    Raises:
        BadParameter: the URL may not be used, or webhooks are not offered.
    """
    if url is not None:
        if settings.webhook_secret is None:
            raise BadParameter(
                "webhook: this server sends no webhooks (it has no RANKPRESS_WEBHOOK_SECRET)"
            )
        check_url(url, allow_private=settings.webhook_private)
    return tuple(dict.fromkeys(each for each in (url, settings.webhook_url) if each))
