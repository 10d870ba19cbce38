"""Who may ask for a webhook, and what the settings must have for it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from api.client import PNG, running
from api.fake_codec import FakeCodec

from service.bench.readme import DOCS
from service.blobs import open_objects
from service.errors import BadParameter
from service.server.app import create_app
from service.settings import Settings
from service.webhooks.recipients import recipients_of
from service.webhooks.signing import Signer
from webhooks.receivers import OTHER_SECRET, SECRET

URL = "https://example.org/hook?token=1"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_request_names_a_url_where_the_server_has_a_secret(tmp_path: Path) -> None:
    async with running(
        FakeCodec(), jobs=True, state=tmp_path, webhook_secret=SECRET, webhook_url=URL
    ) as client:
        for url in (
            "http://127.0.0.1/",
            "http://localhost:1/",
            "ftp://example.org/",
            "",
            "x" * 2001,
        ):
            answer = await client.post("/adapt", params={"webhook": url}, content=PNG)
            assert answer.status_code == 422, url
            assert answer.json()["type"].endswith(":bad-parameter")
        answer = await client.post("/adapt", params={"webhook": f"{URL}2"}, content=PNG)
        assert answer.status_code == 202
    keys = [info.key for info in open_objects(tmp_path / "objects").list("followups")]
    assert len(keys) == 2 and all(answer.json()["id"] in key for key in keys)


@pytest.mark.anyio
async def test_a_server_without_a_secret_says_so(tmp_path: Path) -> None:
    async with running(FakeCodec(), jobs=True, state=tmp_path) as client:
        answer = await client.post("/adapt", params={"webhook": URL}, content=PNG)
        assert answer.status_code == 422
        assert "RANKPRESS_WEBHOOK_SECRET" in answer.json()["detail"]
        assert (await client.post("/adapt", content=PNG)).status_code == 202
    assert not list(open_objects(tmp_path / "objects").list("followups"))


def test_the_url_of_the_settings_is_told_of_every_job_and_once() -> None:
    settings = Settings(webhook_secret=SECRET, webhook_url=URL)
    assert recipients_of(settings, None) == recipients_of(settings, URL) == (URL,)
    assert recipients_of(settings, f"{URL}2") == (f"{URL}2", URL)
    assert recipients_of(Settings(), None) == ()


@pytest.mark.parametrize(
    "given",
    [
        {"webhook_secret": "secret-secret-secret"},
        {"webhook_url": URL},
        {"webhook_url": "http://10.0.0.1/", "webhook_secret": SECRET},
        {"webhook_url": "example.org", "webhook_secret": SECRET},
    ],
)
def test_a_server_does_not_start_with_webhooks_that_it_could_not_send(
    tmp_path: Path, given: dict[str, str]
) -> None:
    with pytest.raises(BadParameter) as refused:
        create_app(FakeCodec(), Settings(state=tmp_path, **given))
    assert "secret-secret" not in str(refused.value)


def test_a_worker_gets_the_secret_which_no_text_of_the_settings_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(webhook_secret=f"{SECRET} {OTHER_SECRET}", webhook_url=URL)
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert "whsec" not in f"{settings!r}{settings}{settings.model_dump_json()}"
    assert "example.org" not in repr(settings)


def test_the_check_of_the_documentation_accepts_what_is_signed_and_nothing_else() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "jobs.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    check = names["check"]
    assert callable(check)
    signer = Signer.of_secrets(f"{SECRET} {OTHER_SECRET}")
    now = int(time.time())
    for secret in (SECRET, OTHER_SECRET):
        check(secret, signer.headers("msg_1", now, b"{}"), b"{}")
    for body, sent in ((b"{} ", now), (b"{}", now - 301)):
        with pytest.raises(ValueError):
            check(SECRET, signer.headers("msg_1", sent, b"{}"), body)
