"""Folders of pictures, read one by one; files that are left out or fail are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from service.errors import BadImage
from service.files import IMAGE_SUFFIXES, files_in
from service.images.read import read_image
from service.picture import Picture


def read_folder(
    folder: Path,
    on_skip: Callable[[Path], None] | None = None,
    *,
    max_pixels: int = 10**8,
) -> Iterator[tuple[Path, Picture]]:
    """Read the pictures of a folder and of the folders in it, in order, without metadata.

    Args:
        folder: to read.
        on_skip: if given, every file is tried, and this is called with each that is no picture.
            If None, only files with the suffix of a picture are tried, and all must be pictures.
        max_pixels: largest width x height of a picture.

    Raises:
        BadParameter: `folder` is no folder. BadImage: a file is no picture; the message names it.
        OSError: a folder or file cannot be read.
    """
    for path in files_in(folder):
        if on_skip is None and path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        try:
            picture = read_image(path.read_bytes(), max_pixels=max_pixels, metadata="none")
        except BadImage as error:
            if on_skip is None:
                raise BadImage(f"{path}: {error}") from error
            on_skip(path)
        else:
            yield path, picture
