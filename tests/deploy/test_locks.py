"""The lock files of the images are of the packages that pyproject.toml asks for, with hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
EXTRAS = {
    "decode": ("decode", "telemetry"),
    "cpu": ("server", "telemetry"),
    "gpu": ("server", "telemetry"),
}
"""The extras that each image installs."""


def locked(name: str) -> dict[str, Version]:
    """Versions by package that a lock file has for the images; all must have hashes."""
    python = re.search(r"^FROM python:(\d+\.\d+)\.\d+", DOCKERFILE, re.MULTILINE)
    assert python
    image = default_environment() | {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "python_version": python[1],
        "python_full_version": f"{python[1]}.0",
    }
    text = (ROOT / "docker" / "locks" / f"{name}.txt").read_text().replace("\\\n", "")
    versions = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        package, *hashes = line.split(" --hash=")
        assert hashes, package
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", each.strip()) for each in hashes), package
        pinned = Requirement(package)
        if pinned.marker is None or pinned.marker.evaluate(image):
            (pin,) = pinned.specifier
            assert pin.operator == "==" and canonicalize_name(pinned.name) not in versions
            versions[canonicalize_name(pinned.name)] = Version(pin.version)
    return versions


def asked_for(*extras: str) -> list[Requirement]:
    """What the package needs with these extras, extras within them taken apart."""
    texts = list(PROJECT["project"]["dependencies"])
    left = list(extras)
    while left:
        for text in PROJECT["project"]["optional-dependencies"][left.pop()]:
            found = Requirement(text)
            if found.name == PROJECT["project"]["name"]:
                left.extend(found.extras)
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


def check(requirements: list[Requirement], versions: dict[str, Version]) -> None:
    for requirement in requirements:
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not locked: sh docker/lock.sh"
        assert version in requirement.specifier, f"{requirement} is locked at {version}"


@pytest.mark.parametrize("image", EXTRAS, ids="image-{}".format)  # "gpu" alone is a mark
def test_an_image_has_what_its_extras_ask_for(image: str) -> None:
    assert f"*.whl)[{','.join(EXTRAS[image])}]" in DOCKERFILE
    check(asked_for(*EXTRAS[image]), locked(image))


def test_the_wheel_is_built_by_locked_packages() -> None:
    check([Requirement(text) for text in PROJECT["build-system"]["requires"]], locked("build"))


def test_images_agree_where_they_share_a_package() -> None:
    cpu, gpu, decode = locked("cpu"), locked("gpu"), locked("decode")
    assert decode.items() <= cpu.items()
    assert cpu["torch"].local == "cpu" and gpu["torch"].local is None
    assert cpu["torch"].release == gpu["torch"].release
    assert "torch" not in decode
    assert {name: cpu[name] for name in cpu.keys() - {"torch"}}.items() <= gpu.items()


def test_the_dockerfile_installs_by_hash_or_without_an_index() -> None:
    lines = DOCKERFILE.replace("\\\n", "").splitlines()
    installs = [line for line in lines if "pip" in line and line.startswith("RUN")]
    made = [line for line in installs if " install " in line or " wheel " in line]
    assert len(made) == 8, made
    for line in made:
        assert ("--require-hashes" in line) != ("--no-index" in line), line
        (lock,) = re.findall(r"locks/(\w+)\.txt", line) or [None]
        assert lock is None or (ROOT / "docker" / "locks" / f"{lock}.txt").is_file()
    used = set(re.findall(r"locks/(\w+)\.txt", DOCKERFILE))
    assert used == {path.stem for path in (ROOT / "docker" / "locks").iterdir()}
