"""What several tests of training start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import photo_like

from service.images import write_image
from service.picture import Picture


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with one small picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "0.png").write_bytes(write_image(Picture(photo_like(70, 96)), "png"))
    return folder
