"""Signatures of webhooks as Standard Webhooks 1.0 describes them: HMAC-SHA256, version `v1`.

A receiver checks the signature over id, timestamp and body with the secret that both know. While a
secret is replaced, every message is signed with the old one and the new one, and either is enough.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final, Self

from service.errors import BadParameter

PREFIX: Final = "whsec_"
MIN_KEY_BYTES: Final = 24
MAX_KEY_BYTES: Final = 64
"""Bytes that the key of a secret has, by the specification."""


@dataclass(frozen=True)
class Signer:
    """Signs messages with one or several keys, which are never shown."""

    keys: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def of_secrets(cls, text: str) -> Self:
        """The signer with secrets such as `whsec_MfKQ9r8G…`, several separated by spaces.

        Raises:
            BadParameter: one of them is not a secret. The message does not contain it.
        """
        secrets = text.split()
        if not secrets:
            raise BadParameter("webhook_secret is empty, expected whsec_ and a key in base64")
        keys = (_key_of(secret, number) for number, secret in enumerate(secrets, 1))
        return cls(tuple(keys))

    def headers(self, message_id: str, unix_s: int, body: bytes) -> dict[str, str]:
        """The headers that prove to a receiver who sent a message, and when."""
        content = f"{message_id}.{unix_s}.".encode() + body
        macs = (hmac.digest(key, content, hashlib.sha256) for key in self.keys)
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(unix_s),
            "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
        }


def _key_of(secret: str, number: int) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX).encode(), validate=True)
    except (binascii.Error, UnicodeError):
        key = b""
    if not secret.startswith(PREFIX) or not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise BadParameter(
            f"secret {number} of webhook_secret is malformed, expected {PREFIX} and "
            f"{MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes in base64"
        )
    return key
