"""Signatures are those of Standard Webhooks, with its own library as the witness."""

from __future__ import annotations

import base64
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from service.errors import BadParameter
from service.webhooks.signing import Signer
from webhooks.receivers import OTHER_SECRET, SECRET

BODY = '{"type": "job.succeeded", "data": {"name": "é"}}'.encode()


def test_the_library_of_standard_webhooks_verifies_what_is_signed() -> None:
    headers = Signer.of_secrets(SECRET).headers("msg_1", int(time.time()), BODY)
    assert Webhook(SECRET).verify(BODY, headers)["type"] == "job.succeeded"
    for changed in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(time.time()) + 1)}):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(BODY, headers | changed)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(BODY + b" ", headers)


def test_a_receiver_with_either_of_two_secrets_accepts_while_one_is_replaced() -> None:
    headers = Signer.of_secrets(f"{SECRET}  {OTHER_SECRET}").headers("m", int(time.time()), BODY)
    for secret in (SECRET, OTHER_SECRET):
        Webhook(secret).verify(BODY, headers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "whsec_",
        SECRET.removeprefix("whsec_"),
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSé",
        f"{SECRET} {SECRET},",
    ],
)
def test_a_malformed_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(BadParameter) as refused:
        Signer.of_secrets(text)
    for secret in text.split():
        assert secret.removeprefix("whsec_")[:8] not in str(refused.value) or len(secret) < 8


def test_the_keys_are_in_no_text_of_a_signer() -> None:
    assert "keys" not in repr(Signer.of_secrets(SECRET))
