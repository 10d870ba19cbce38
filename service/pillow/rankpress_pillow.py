"""Rankpress streams as one more format of Pillow: `import rankpress_pillow` registers it.

    Image.open("photo.rkp")                 reads size, mode and info; pixels when they are needed
    image.save("photo.rkp", rate=4)         or target_bpp=, max_bytes=, target_psnr=; and tune=

With ImageFile.LOAD_TRUNCATED_IMAGES, a stream that is cut is read as far as it goes.

Opening needs only the base install; saving needs torch. The import itself registers the format, as
in other plug-ins of Pillow. The module is installed under its own name, outside the package.
"""

from __future__ import annotations

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageFile

from service.codec import container
from service.codec.tiles import SCALES
from service.errors import BadParameter, BadStream, RankpressError, UnsupportedStream
from service.images import exif
from service.images.colour_tags import profile_by_info
from service.images.samples import unless_opaque
from service.picture import WHOLE, Picture, View

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.engine.target import Target

FORMAT: Final = "RKP"
SUFFIX: Final = ".rkp"
MIME: Final = "application/vnd.rankpress"

_ANY_SIZE: Final = (container.MAX_SIDE + 1) ** 2
"""Limit of pixels that no stream exceeds: Pillow checks its own, Image.MAX_IMAGE_PIXELS."""

_GREY_MODES: Final = frozenset({"1", "L", "LA", "La"})
_COLOUR_MODES: Final = frozenset({"RGB", "RGBX", "RGBA", "RGBa", "P", "PA"})
"""Modes of Pillow that can be saved, besides the grey ones."""


class RankpressImageFile(ImageFile.ImageFile):
    """An open stream. It is checked when it is opened, and decoded when it is loaded."""

    format = FORMAT
    format_description = "Rankpress neural image"

    def _open(self) -> None:
        """Read the header and the metadata of the stream.

        Raises:
            SyntaxError: it is damaged or none; Image.open raises UnidentifiedImageError instead.
            OSError: the stream is of a newer format.
        """
        assert self.fp is not None
        data = self.fp.read()
        try:
            stream = container.read_stream(data, partial=ImageFile.LOAD_TRUNCATED_IMAGES)
        except UnsupportedStream as error:
            raise OSError(str(error)) from error
        except BadStream as error:
            raise SyntaxError(str(error)) from error
        header = stream.header
        grey, opaque = bool(header.flags & container.Flags.GREY), not stream.has_alpha
        self._stream: bytes | None = data
        self._size = header.width, header.height
        self._mode = ("L" if grey else "RGB") + ("" if opaque else "A")
        self.info["rate"] = "lossless" if stream.is_lossless else header.rate
        self.info["tune"] = header.tune
        self.info["model"] = header.model.hex()
        if stream.icc is not None:
            self.info["icc_profile"] = stream.icc
        if (block := _sound_exif(stream.exif)) is not None:
            self.info["exif"] = exif.PREFIX + block
        self._view = WHOLE
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, self._mode)]

    def draft(
        self,
        mode: str | None,  # noqa: ARG002
        size: tuple[int, int] | None,
    ) -> tuple[str, tuple[int, int, float, float]] | None:
        """Decode at 1/2, 1/4 or 1/8 of the size, as long as that is at least `size`.

        Image.thumbnail calls this, as for JPEG. The mode stays; a second call changes nothing.
        """
        if self._stream is None or size is None or self._view != WHOLE:
            return None
        fits = min(self.width // max(1, size[0]), self.height // max(1, size[1]))
        scale = max((s for s in SCALES if s <= fits), default=1)
        self._size = -(-self.width // scale), -(-self.height // scale)
        self._view = View(size=self._size)
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, self._mode)]
        return self.mode, (0, 0, *self._size)

    def load(self) -> Any:
        """Decode the stream, once. Raises OSError if its latents are damaged or weights missing."""
        if self.tile and self._stream is not None:
            try:
                decoder = engine_of(os.getpid(), decode_only=True)
                view = replace(self._view, partial=ImageFile.LOAD_TRUNCATED_IMAGES)
                picture = decoder.decompress(self._stream, view).picture
            except RankpressError as error:
                raise OSError(str(error)) from error
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self._exclusive_fp = True
            self.fp = io.BytesIO(picture.samples().tobytes())
            self._stream = None
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Do nothing: the decoded samples begin at the start of `fp`."""


def _save(image: Image.Image, file: IO[bytes], _filename: str | bytes) -> None:
    """Compress an image with the options of Image.save.

    They are rate (1 to 8, or "lossless") or one of target_bpp, max_bytes and target_psnr; tune, one
    of container.TUNES; icc_profile, by default that of the image, or one made from PNG's gamma and
    chromaticities or from Exif's Adobe RGB (Pillow does not read code points), and None leaves it
    out; exif, which is kept only if it is given, and left out with a warning where it is damaged.

    Raises:
        ValueError: an option is out of range, or more than one of rate and targets was given.
        OSError: the mode cannot be saved, or torch is not installed.
    """
    from service.engine.target import rate_or_target

    options: dict[str, Any] = image.encoderinfo
    picture = _picture(image, options)
    try:
        names = ("rate", "target_bpp", "max_bytes", "target_psnr")
        requested = rate_or_target(*(options.get(name) for name in names))
        tune = str(options.get("tune") or container.PSNR)
        data = _saver(os.getpid()).submit(_compress, picture, requested, tune).result()
    except BadParameter as error:
        raise ValueError(str(error)) from error
    except RankpressError as error:
        raise OSError(str(error)) from error
    file.write(data)


def _compress(picture: Picture, requested: float | Target, tune: str) -> bytes:
    with _SAVING:
        engine = engine_of(os.getpid(), decode_only=False)
        return engine.compress(picture, requested, tune).data


def _picture(image: Image.Image, options: dict[str, Any]) -> Picture:
    """Return an image of Pillow as a picture that the codec takes."""
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise OSError(f"cannot write mode {image.mode} as {FORMAT}")
    if min(image.size) < 1:
        raise ValueError(f"cannot write an empty image as {FORMAT}")
    grey, transparent = image.mode in _GREY_MODES, image.has_transparency_data
    mode = ("L" if grey else "RGB") + ("A" if transparent else "")
    samples = np.asarray(image if image.mode == mode else image.convert(mode))
    samples = samples.reshape(image.height, image.width, len(mode))
    alpha = unless_opaque(samples[..., -1]) if transparent else None
    rgb = np.repeat(samples[..., :1], 3, axis=2) if grey else samples[..., :3]
    own_profile = image.info.get("icc_profile") or profile_by_info(image, grey=grey)
    icc = options.get("icc_profile", own_profile)
    return Picture(
        np.ascontiguousarray(rgb),
        None if alpha is None else np.ascontiguousarray(alpha),
        grey,
        icc or None,
        _exif(options.get("exif")),
    )


def _exif(given: Image.Exif | bytes | None) -> bytes | None:
    """Return the Exif block to keep, without prefix; the orientation of pixels and block stays."""
    block = given.tobytes() if isinstance(given, Image.Exif) else given
    return _sound_exif(block and block.removeprefix(exif.PREFIX))


def _sound_exif(block: bytes | None) -> bytes | None:
    """Return the same Exif block; None, with a warning, where it is damaged."""
    if not block or exif.is_sound(block):
        return block or None
    warnings.warn(exif.DAMAGED_EXIF, stacklevel=2)
    return None


@cache
def _saver(_process: int) -> ThreadPoolExecutor:
    """Return the executor of the one thread of a process that compresses.

    Torch starts helper threads for each thread that uses it. Those of the calling thread may be
    lost: it may have called os.fork after it used torch. The thread never ends, because MKL is not
    safe to use while one of its threads ends.
    """
    return ThreadPoolExecutor(1, "rankpress")


@cache
def engine_of(_process: int, *, decode_only: bool) -> Engine:
    """Return the engine of a process, opened at its first use; see transforms/fork_safety.py."""
    from service.engine.opening import open_engine
    from service.settings import Settings

    settings = Settings()
    changes = {
        "max_pixels": _ANY_SIZE,
        "decode_only": decode_only,
        "adapters": None,
        "device": "cpu" if decode_only else settings.device,
    }
    return open_engine(settings.model_copy(update=changes))


# No fork while the thread compresses: the child would wait for locks that the thread holds.
_SAVING = Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_SAVING.acquire, after_in_parent=_SAVING.release, after_in_child=_SAVING.release
    )


Image.register_open(FORMAT, RankpressImageFile, lambda prefix: prefix.startswith(container.MAGIC))
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, MIME)
