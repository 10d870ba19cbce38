"""Tiles hold the pictures' own pixels, whole; lossy files are halved first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import file_of
from PIL import Image
from small_model import photo_like

from service.datasets.tile_file import cut_picture, cut_tiles, is_current, is_lossy, read_tiles
from service.errors import BadParameter
from service.images.write import Format, write_image
from service.picture import Picture
from service.train.recipe import BackboneRecipe
from service.train.sampler import Sampler, Source


def folder_of(root: Path, **files: bytes) -> Path:
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("height, width", [(64, 64), (65, 64), (100, 200), (128, 191), (64, 300)])
def test_tiles_cover_a_picture_evenly_and_hold_its_pixels(height: int, width: int) -> None:
    numbers = np.arange(height * width).reshape(height, width)
    picture = np.stack([numbers & 255, numbers >> 8 & 255, numbers >> 16], -1).astype(np.uint8)
    tiles = cut_picture(picture, 64)
    assert len(tiles) == -(-height // 64) * -(-width // 64)
    seen = tiles.astype(int) @ [1, 256, 65536]
    assert np.array_equal(np.unique(seen), np.unique(numbers)), "every pixel is in a tile"
    assert (np.diff(seen, axis=2) == 1).all() and (np.diff(seen, axis=1) == width).all()


def test_a_picture_smaller_than_a_tile_gives_none() -> None:
    assert cut_picture(np.zeros((63, 500, 3), np.uint8), 64).shape == (0, 64, 64, 3)


def test_lossy_files_are_halved_and_others_are_not(tmp_path: Path) -> None:
    rgb = photo_like(128, 192)
    picture = Picture(rgb)
    kinds: tuple[Format, ...] = ("jpeg", "webp", "avif")
    images = {name: write_image(picture, name, quality=90) for name in kinds}
    images["png"] = write_image(picture, "png")
    assert {n: is_lossy(d) for n, d in images.items()} == {
        "png": False, "jpeg": True, "webp": True, "avif": True,
    }  # fmt: skip
    for extra in ({}, {"icc_profile": b"profile" * 99}):
        assert not is_lossy(file_of(Image.fromarray(rgb), "WEBP", lossless=True, **extra))
    folder = folder_of(tmp_path / "in", **{"a.png": images["png"], "b.jpg": images["jpeg"]})
    made = cut_tiles([folder], tmp_path / "t.safetensors", 64, True, print)
    _, tiles = read_tiles(tmp_path / "t.safetensors")
    assert (made.pictures, made.left_out, len(tiles)) == (2, 0, 6 + 2)
    assert np.array_equal(tiles[0].numpy(), rgb[:64, :64])
    halved = rgb.reshape(64, 2, 96, 2, 3).mean((1, 3))
    assert np.abs(tiles[6].numpy() - halved[:, :64]).mean() < 6, "coded with loss, then halved"
    cut_tiles([folder], tmp_path / "whole.safetensors", 64, False, print)
    assert len(read_tiles(tmp_path / "whole.safetensors")[1]) == 12


def test_what_is_no_picture_is_left_out_and_counted(tmp_path: Path) -> None:
    png = write_image(Picture(photo_like(64, 64)), "png")
    folder = folder_of(tmp_path / "in", **{"a.png": png, "notes.txt": b"no", "cut.png": png[:99]})
    small = write_image(Picture(photo_like(63, 64)), "png")
    (folder / "sub").mkdir()
    (folder / "sub" / "small.png").write_bytes(small)
    made = cut_tiles([folder], tmp_path / "t.safetensors", 64, True, print)
    assert (made.pictures, made.left_out) == (1, 3)
    assert is_current(made, [folder], 64, True) and not is_current(made, [folder], 64, False)
    (folder / "more.png").write_bytes(png)
    assert not is_current(made, [folder], 64, True)


def test_a_folder_without_pictures_leaves_no_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", **{"notes.txt": b"no"})
    with pytest.raises(BadParameter, match="no picture is at least 64x64"):
        cut_tiles([folder], tmp_path / "t.safetensors", 64, True, print)
    with pytest.raises(BadParameter, match="is not a folder"):
        cut_tiles([tmp_path / "nowhere"], tmp_path / "t.safetensors", 64, True, print)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    for wrong in (folder / "notes.txt", tmp_path / "nowhere"):
        with pytest.raises(BadParameter, match="not a file of tiles"):
            read_tiles(wrong)


def test_crops_are_parts_of_tiles_in_all_eight_orientations() -> None:
    """Each crop is found in its tile by brute force; over many draws every orientation occurs."""
    tiles = torch.from_numpy(np.stack([photo_like(72, 72, s) for s in range(3)]))
    places = {}
    for k, tile in enumerate(tiles.numpy()):
        for top in range(9):
            for left in range(9):
                part = tile[top : top + 64, left : left + 64]
                for transpose in (0, 1):
                    turned = part.swapaxes(0, 1) if transpose else part
                    for name, view in (("", turned), ("y", turned[::-1]), ("x", turned[:, ::-1]),
                                       ("yx", turned[::-1, ::-1])):  # fmt: skip
                        places[view.tobytes()] = (k, top, left, transpose, name)
    recipe = BackboneRecipe(groups=1, batch=200, crop=64, downscaled=0.0, grain=0.0)
    torch.manual_seed(0)
    sampler = Sampler([Source(tiles, 1.0, True)], recipe)
    crops = (sampler.draw() * 255).round().to(torch.uint8).numpy()
    found = [places[crop.tobytes()] for crop in crops]
    assert {f[0] for f in found} == {0, 1, 2}
    assert {f[1] for f in found} == {f[2] for f in found} == set(range(9))
    assert len({f[3:] for f in found}) == 8


def test_pictures_with_alpha_are_cut_as_they_look_on_white(tmp_path: Path) -> None:
    rgb = photo_like(64, 64)
    alpha = np.where(np.arange(64) < 32, 255, 0).astype(np.uint8) * np.ones((64, 1), np.uint8)
    png = file_of(Image.fromarray(np.dstack([rgb, alpha])), "PNG")
    folder = folder_of(tmp_path / "in", **{"a.png": png})
    cut_tiles([folder], tmp_path / "t.safetensors", 64, True, print)
    _, tiles = read_tiles(tmp_path / "t.safetensors")
    assert np.array_equal(tiles[0].numpy(), np.where(alpha[..., None] > 0, rgb, 255))
