"""Rankpress streams as one more format of Pillow: `import rankpress_pillow` registers it.

    Image.open("photo.rkp")                 size, mode and info at once, pixels when they are needed
    image.save("photo.rkp", rate=4)         or target_bpp=, max_bytes=, target_psnr=; and tune=

Opening needs only the base install; saving needs torch. Importing is all there is to call, so this
module alone has an effect when it is imported. It is installed under its own name, outside the
package, because that is the name people write.
"""

from __future__ import annotations

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageFile

from service.codec import container
from service.errors import BadParameter, BadStream, RankpressError, UnsupportedStream
from service.images import exif
from service.images.colours import profile_by_info
from service.images.metadata import is_sound_exif
from service.picture import Picture

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.engine.target import Target

FORMAT: Final = "RKP"
SUFFIX: Final = ".rkp"
MIME: Final = "application/vnd.rankpress"

_ANY_SIZE: Final = (container.MAX_SIDE + 1) ** 2
"""Pillow's own limit, Image.MAX_IMAGE_PIXELS, is checked as for every format."""

_TO_SAVED: Final = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "La": "LA",
    "RGB": "RGB",
    "RGBX": "RGB",
    "RGBA": "RGBA",
    "RGBa": "RGBA",
    "P": "RGB",
    "PA": "RGBA",
}
"""Modes that are saved, and what they become; the rest is refused, as Pillow's formats do."""


class RankpressImageFile(ImageFile.ImageFile):
    """An open stream. Checked as a whole when it is opened, decoded when it is loaded."""

    format = FORMAT
    format_description = "Rankpress neural image"

    def _open(self) -> None:
        """Read what the stream says of itself.

        Raises:
            SyntaxError: damaged or no stream, which Image.open turns into UnidentifiedImageError.
            OSError: whole, but of a newer format.
        """
        assert self.fp is not None
        data = self.fp.read()
        try:
            stream = container.read_stream(data)
        except UnsupportedStream as error:
            raise OSError(str(error)) from error
        except BadStream as error:
            raise SyntaxError(str(error)) from error
        header = stream.header
        grey, opaque = bool(header.flags & container.Flags.GREY), stream.alpha is None
        self._stream: bytes | None = data
        self._size = header.width, header.height
        self._mode = ("L" if grey else "RGB") + ("" if opaque else "A")
        self.info["rate"] = header.rate
        self.info["tune"] = header.tune
        self.info["model"] = header.model.hex()
        if stream.icc is not None:
            self.info["icc_profile"] = stream.icc
        if (block := _sound(stream.exif)) is not None:
            self.info["exif"] = exif.PREFIX + block
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, self._mode)]

    def load(self) -> Any:
        """Decode, once.

        Raises:
            OSError: the coded latents are damaged, or made with weights that are not in the store.
        """
        if self.tile and self._stream is not None:
            try:
                picture = _decoder().decompress(self._stream).picture
            except RankpressError as error:
                raise OSError(str(error)) from error
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self._exclusive_fp = True
            self.fp = io.BytesIO(picture.samples().tobytes())
            self._stream = None
        return super().load()

    def load_seek(self, pos: int) -> None:
        """The decoded samples are in `fp` from the start."""


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """Compress.

    Options of Image.save: rate or one of target_bpp, max_bytes and target_psnr; tune, one of
    container.TUNES; icc_profile, kept unless None is given, made of PNG's gamma and chromaticities
    or Exif's Adobe RGB where there is none (Pillow tells no code points); exif, kept only if it is
    given, and left out with a warning where it is damaged.

    Raises:
        ValueError: an option is out of range, or more than one of rate and targets was given.
        OSError: a mode that is not saved, or torch is not installed.
    """
    del filename
    options: dict[str, Any] = image.encoderinfo
    picture = _picture(image, options)
    try:
        wanted = _rate_or_target(options)
        tune = str(options.get("tune") or container.PSNR)
        data = _saver(os.getpid()).submit(_compressed, picture, wanted, tune).result()
    except BadParameter as error:
        raise ValueError(str(error)) from error
    except RankpressError as error:
        raise OSError(str(error)) from error
    file.write(data)


def _compressed(picture: Picture, wanted: float | Target, tune: str) -> bytes:
    with _SAVING:
        return _encoder().compress(picture, wanted, tune).data


def _rate_or_target(options: dict[str, Any]) -> float | Target:
    """A rate as a float, or the Target that was asked for. Raises BadParameter."""
    from service.engine.target import rate_or_target

    names = ("rate", "target_bpp", "max_bytes", "target_psnr")
    return rate_or_target(*(options.get(name) for name in names))


def _picture(image: Image.Image, options: dict[str, Any]) -> Picture:
    """What Pillow holds, as what the codec takes."""
    mode = _TO_SAVED.get(image.mode)
    if mode is None:
        raise OSError(f"cannot write mode {image.mode} as {FORMAT}")
    if min(image.size) < 1:
        raise ValueError("cannot write empty image as RKP")
    if image.mode in ("L", "P", "RGB") and "transparency" in image.info:
        mode = "LA" if image.mode == "L" else "RGBA"
    samples = np.asarray(image if image.mode == mode else image.convert(mode))
    samples = samples.reshape(image.height, image.width, len(mode))
    alpha = samples[..., -1] if mode in ("LA", "RGBA") else None
    if alpha is not None and (alpha == 255).all():
        alpha = None
    grey = mode in ("L", "LA")
    rgb = np.repeat(samples[..., :1], 3, axis=2) if grey else samples[..., :3]
    told = image.info.get("icc_profile") or profile_by_info(image, grey=grey)
    icc = options.get("icc_profile", told)
    return Picture(
        np.ascontiguousarray(rgb),
        None if alpha is None else np.ascontiguousarray(alpha),
        grey,
        icc or None,
        _exif(options.get("exif")),
    )


def _exif(given: Image.Exif | bytes | None) -> bytes | None:
    """The Exif block to keep, without prefix; its orientation stays, as the pixels do."""
    if not given:
        return None
    block = given.tobytes() if isinstance(given, Image.Exif) else bytes(given)
    return _sound(block.removeprefix(exif.PREFIX))


def _sound(block: bytes | None) -> bytes | None:
    """The same Exif block; None, with a warning, where it is damaged: other formats refuse it."""
    if not block:
        return None
    if is_sound_exif(block):
        return block
    warnings.warn("the Exif block is damaged and was left out", stacklevel=2)
    return None


@cache
def _saver(process: int) -> ThreadPoolExecutor:
    """The thread of a process that compresses.

    Torch starts threads for it. Those of the thread that saves may not exist: it may have called
    os.fork after it used torch. It lives on, because MKL's memory is not whole while threads end.
    """
    del process
    return ThreadPoolExecutor(1, "rankpress")


def _decoder() -> Engine:
    return _engine_of(os.getpid(), decode_only=True)


def _encoder() -> Engine:
    return _engine_of(os.getpid(), decode_only=False)


@cache
def _engine_of(process: int, *, decode_only: bool) -> Engine:
    """The engine of a process, opened when it is first needed there; see runtime/fork_safety.py."""
    del process
    from service.engine.opening import open_engine
    from service.settings import Settings

    changes: dict[str, object] = {
        "max_pixels": _ANY_SIZE,
        "decode_only": decode_only,
        "adapters": None,
    }
    if decode_only:
        changes["device"] = "cpu"
    return open_engine(Settings().model_copy(update=changes))


# No fork while that thread is at work: it may hold locks of libraries, which a child waits for.
_SAVING = Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_SAVING.acquire, after_in_parent=_SAVING.release, after_in_child=_SAVING.release
    )


def _is_ours(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


Image.register_open(FORMAT, RankpressImageFile, _is_ours)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, MIME)
