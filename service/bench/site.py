"""`python -m service.bench.site` builds the pages of service/docs as a site, with Zensical.

The site goes to service/docs/site, where a server finds it and shows it at `/guide`. Zensical knows
the files of its own folder only, so figures that pages link to elsewhere in the repository are
copied into the site and the links changed. A warning of Zensical fails the build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from service.files import SITE

DOCS: Final = SITE.parent
OUTSIDE: Final = re.compile(r"\]\((\.\./[^)\s#]+)\)")
"""A link of a page to a file outside service/docs."""

FIGURES: Final = "figures"
"""Folder of the site for such files."""


def build(site: Path = SITE) -> None:
    """Build the site into a folder, which is replaced.

    Raises:
        CalledProcessError: Zensical is not installed, or warns of something.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "docs"
        shutil.copytree(DOCS, work, ignore=shutil.ignore_patterns("site", ".cache"))
        (work / FIGURES).mkdir()
        for page in work.glob("*.md"):
            page.write_text(OUTSIDE.sub(lambda link: _copy(link[1], work), page.read_text()))
        command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "mkdocs.yml"]
        subprocess.run(command, cwd=work, env=os.environ | {"NO_COLOR": "1"}, check=True)
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(work / "site", site)


def _copy(target: str, work: Path) -> str:
    """Copy the file that a page links to into the site; returns the link to the copy."""
    source = DOCS / target
    shutil.copyfile(source, work / FIGURES / source.name)
    return f"]({FIGURES}/{source.name})"


if __name__ == "__main__":
    build()
