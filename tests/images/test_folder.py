"""Every reader of a folder of pictures reads the same files and reports what it leaves out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import file_of
from PIL import Image
from small_model import photo_like

from service.datasets.crops import Crops
from service.datasets.tile_file import cut_tiles, read_tiles
from service.errors import BadImage
from service.eval import pictures as measured
from service.images.read import read_folder
from service.train.evaluate import pictures_in


def colours(value: int) -> Image.Image:
    return Image.new("RGB", (96, 80), (value, value, value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a.png, more/b.PNG, a link to a folder with c.png, notes.txt and hidden names."""
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    (top / "more").mkdir(parents=True)
    elsewhere.mkdir()
    colours(10).save(top / "a.png")
    colours(20).save(top / "more" / "b.PNG", "PNG")
    colours(30).save(elsewhere / "c.png")
    (top / "linked").symlink_to(elsewhere)
    (top / "notes.txt").write_text("text")
    (top / ".hidden.png").write_text("text")
    return top


READERS: dict[str, Callable[[Path], list[int]]] = {
    "eval": lambda folder: [p.picture.rgb[0, 0, 0] for p in measured.read_folder(folder)],
    "evaluate": lambda folder: [p.rgb[0, 0, 0] for p in pictures_in(folder)],
    "strict": lambda folder: [p.rgb[0, 0, 0] for _, p in read_folder(folder)],
}


@pytest.mark.parametrize("reader", READERS)
def test_folders_below_and_links_are_read_and_a_damaged_picture_is_named(
    folder: Path, reader: str
) -> None:
    assert READERS[reader](folder) == [10, 30, 20]
    (folder / "more" / "x.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    with pytest.raises(BadImage, match=r"more/x\.jxl: JPEG XL files are not read"):
        READERS[reader](folder)


def test_names_of_measured_pictures_are_their_paths(folder: Path) -> None:
    assert [p.name for p in measured.read_folder(folder)] == ["a", "linked/c", "more/b"]


def test_training_counts_what_it_leaves_out(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(file_of(colours(1), "PNG")[:40])
    colours(40).resize((20, 20)).save(folder / "small.png")
    crops = Crops(folder, 64, 0)
    assert (len(crops), crops.left_out) == (3, 3), "bad.png, notes.txt and small.png"
    out = tmp_path / "tiles"
    made = cut_tiles([folder], out, 80, False, lambda _: None)
    assert (made.pictures, made.left_out) == (3, 3)
    assert np.unique(read_tiles(out)[1].numpy()).tolist() == [10, 20, 30]


@pytest.mark.parametrize("read", [
    measured.read_folder, lambda f: list(pictures_in(f)), lambda f: Crops(f, 64, 0),
    lambda f: cut_tiles([f], f / "tiles", 64, False, lambda _: None),
], ids=["eval", "evaluate", "crops", "cut"])  # fmt: skip
def test_a_folder_below_that_cannot_be_listed_stops_every_reader(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    Image.fromarray(photo_like(96, 96, 1)).save(tmp_path / "a.png")
    really = os.listdir

    def listdir(path: Path) -> list[str]:
        if path == tmp_path / "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return really(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(PermissionError, match="sub"):
        read(tmp_path)
