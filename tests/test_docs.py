"""README.md and the pages of service/docs: links lead somewhere, and what they name exists."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from api.client import running
from api.fake_codec import FakeCodec
from PIL import Image
from served import serving
from small_model import photo_like

from service.bench.readme import DOCS, README, ROOT, pages
from service.bench.site import build
from service.cli.main import app
from service.files import SITE
from service.http.problems import KINDS
from service.server.app import create_app
from service.settings import Settings
from service.web.pages import add_guide

PAGES = pages()
NAMED_TO_OTHERS = {"RANKPRESS_BIND", "RANKPRESS_FULL", "RANKPRESS_RAY", "RANKPRESS_SERVER"}
"""Variables of docker-compose.yml, the tests and --server, which are no settings of the service."""

OPTIONS_OF_OTHERS = {"--upgrade"}
"""Options that the pages name of programs of others."""

EXAMPLES = {"model_store/mine"}
"""Paths that a reader makes."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMES = {"rankpress", ".venv/bin/rankpress"}
"""What the command is called in the pages."""

ENDS = {"&&", "|", "&", "#", ">"}
"""Words of a shell that end a command."""

SPAN = re.compile(r"`([^`]+)`")


def each_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for name, body in FENCE.findall(text) if name == language]


def prose(text: str) -> str:
    """A page without its fenced blocks and its generated tables."""
    return FENCE.sub("", re.sub(r"<!-- table:.*?<!-- /table -->", "", text, flags=re.DOTALL))


def spans(text: str) -> list[str]:
    """What stands in single backticks, on one line or over two."""
    return [" ".join(span.split()) for span in SPAN.findall(prose(text))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Zensical name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """The words after `rankpress` in every command of shell blocks and backticks."""
    lines = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    for source in (*lines.splitlines(), *spans(text)):
        words = source.split()
        for at, word in enumerate(words):
            if word in NAMES or words[at - 1 : at + 1] == ["-m", "service"]:
                yield list(takewhile(lambda w: w not in ENDS, words[at + 1 :]))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words after its name."""
    found: Any = typer.main.get_command(app)
    words = list(words)
    while words and words[0] in getattr(found, "commands", ()):
        found = found.commands[words.pop(0)]
    return found, words


def options_of(command: Any) -> set[str]:
    opts = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")}
    return opts | {"--help"}


def all_commands(command: Any) -> Iterator[Any]:
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from all_commands(child)


def leaves(navigation: Any) -> Iterator[str]:
    """The pages of a navigation, whose parts are lists, or dictionaries from title to part."""
    if isinstance(navigation, str):
        yield navigation
    elif isinstance(navigation, dict):
        yield from leaves(list(navigation.values()))
    else:
        for part in navigation:
            yield from leaves(part)


def test_the_readme_and_the_first_page_are_short() -> None:
    assert len(README.read_text().splitlines()) <= 150
    assert len((DOCS / "getting-started.md").read_text().splitlines()) <= 40


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((DOCS / "mkdocs.yml").read_text())["nav"]
    written = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert sorted(leaves(navigation)) == sorted(written)


@each_page()
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.is_file(), target
        assert not anchor or anchor in anchors(place), target


def test_the_readme_links_to_every_page() -> None:
    targets = {target.partition("#")[0] for target in LINK.findall(README.read_text())}
    written = {str(p.relative_to(ROOT)) for p in PAGES} - {"README.md", "service/docs/index.md"}
    assert written <= targets


@each_page()
def test_every_command_and_its_options_exist(page: Path) -> None:
    for words in commands(page.read_text()):
        command, rest = command_of(words)
        line = f"rankpress {' '.join(words)}"
        given = {word.partition("=")[0] for word in rest if re.match("--?[a-z]", word)}
        assert given <= options_of(command), line
        if hasattr(command, "commands"):
            assert set(rest) <= given | {"COMMAND"}, f"there is no such command: {line}"


@each_page()
def test_every_option_in_prose_exists(page: Path) -> None:
    root = typer.main.get_command(app)
    known = OPTIONS_OF_OTHERS.union(*(options_of(c) for c in all_commands(root)))
    named = {w for span in spans(page.read_text()) if span.startswith("--") for w in span.split()}
    assert {word for word in named if word.startswith("--")} <= known


@each_page()
def test_every_variable_is_a_setting(page: Path) -> None:
    known = {f"RANKPRESS_{name.upper()}" for name in Settings.model_fields} | NAMED_TO_OTHERS
    assert set(re.findall(r"RANKPRESS_[A-Z_]+", page.read_text())) <= known


@each_page()
def test_every_path_in_prose_exists(page: Path) -> None:
    places = re.compile(r"(service|docker|tests|model_store)/[\w./*-]+")
    for span in spans(page.read_text()):
        for word in span.split():
            if places.fullmatch(word) and word not in EXAMPLES:
                assert (ROOT / word).exists(), word


def test_the_readme_s_tree_has_every_folder_of_the_service() -> None:
    (tree,) = (block for block in blocks(README.read_text(), "") if "service/" in block)
    named = re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)
    there = {p.name for p in (ROOT / "service").iterdir() if p.is_dir()} - {"__pycache__"}
    assert sorted(named) == sorted(there)


def test_the_reference_has_every_path_and_parameter(tmp_path: Path) -> None:
    settings = Settings(
        objects_url=str(tmp_path / "objects"),
        objects_write=True,
        admin_token="a" * 16,
        state=tmp_path,
    )
    page = (DOCS / "http.md").read_text()
    for path, methods in create_app(FakeCodec(), settings).openapi()["paths"].items():
        for method, operation in methods.items():
            assert path in page, path
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query":
                    assert f"`{parameter['name']}`" in page, (method, path, parameter["name"])


def test_the_reference_has_every_kind_of_problem() -> None:
    page = (DOCS / "http.md").read_text()
    for kind in KINDS:
        assert f"| {kind.status} | `{kind.slug}` | {kind.title} |" in page


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_getting_started_works_as_it_says(tmp_path: Path) -> None:
    """Every command of the page runs, against a server that was started as it says."""
    Image.fromarray(photo_like(96, 128)).save(tmp_path / "photo.jpg")
    lines = "\n".join(blocks((DOCS / "getting-started.md").read_text(), "sh")).splitlines()
    run = [line for line in lines if not line.startswith(("pip install", "rankpress serve"))]
    assert len(run) == len(lines) - 2
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    with serving(tmp_path, "--threads", "1", RANKPRESS_WARM="false") as url:
        for line in run:
            script = f'rankpress() {{ {shlex.quote(sys.executable)} -m service "$@"; }}\n{line}\n'
            script = script.replace("localhost:8000", url.removeprefix("http://"))
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=tmp_path,
                env=variables,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert result.returncode == 0, f"{line}\n{result.stderr}"
    written = {"photo.rkp", "small.rkp", "photo.png", "corner.webp", "again.rkp", "again.png"}
    assert all((tmp_path / name).stat().st_size for name in written)
    assert (tmp_path / "photo.rkp").read_bytes()[:3] == b"RKP"


def test_the_site_builds_without_a_warning_and_is_served(tmp_path: Path) -> None:
    """With its figures; a server that was installed without the site has nothing at /guide."""
    pytest.importorskip("zensical")
    build(tmp_path / "site")

    async def law() -> None:
        async with running(FakeCodec()) as client:
            assert SITE.exists() or (await client.get("/guide/")).status_code == 404
            add_guide(client.app, tmp_path / "site")
            page = await client.get("/guide/benchmarks/")
            assert page.headers["content-type"].startswith("text/html")
            (figure,) = re.findall(r'<img[^>]* src="([^"]*rd-psnr-db.png)"', page.text)
            image = await client.get(f"/guide/benchmarks/{figure}")
            assert image.headers["content-type"] == "image/png"
            first = await client.get("/guide", follow_redirects=True)
            assert "Getting started" in first.text

    asyncio.run(law())
