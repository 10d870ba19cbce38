"""Folders of pictures, read one by one: what is left out is told, and what fails is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from service.errors import BadImage
from service.files import IMAGE_SUFFIXES, files_in
from service.images.read import read_image
from service.picture import Picture


def read_folder(
    folder: Path,
    left_out: Callable[[Path], None] | None = None,
    *,
    max_pixels: int = 10**8,
) -> Iterator[tuple[Path, Picture]]:
    """Read the pictures of a folder and of the folders in it, in order, without metadata.

    Args:
        folder: to read.
        left_out: every file is tried, and this told of those that are no pictures; without it the
            files whose names end as a picture's do must all be pictures.
        max_pixels: of the largest picture.

    Raises:
        BadParameter: it is no folder. BadImage: a file is no picture; the message names it.
        OSError: a folder or file cannot be read.
    """
    for path in files_in(folder):
        if left_out is None and path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        try:
            picture = read_image(path.read_bytes(), max_pixels=max_pixels, metadata="none")
        except BadImage as error:
            if left_out is None:
                raise BadImage(f"{path}: {error}") from error
            left_out(path)
        else:
            yield path, picture
