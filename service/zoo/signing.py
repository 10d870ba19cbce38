"""Signatures of streams that only the machine and the software that made them may decode.

A message authentication code precedes a stream's coded bytes. Its key never leaves the machine, and
it covers everything that affects decoding, the software included.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
import secrets
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import torch

from service.codec.container import Header
from service.errors import StoreError, UnsupportedStream

_MAC_BYTES: Final = 32
_FINGERPRINT_BYTES: Final = 8


def machine_key(path: Path) -> bytes:
    """Return the key that signs this machine's streams; it is created at the first call.

    Args:
        path: of its file, which only its owner may read.

    Raises:
        StoreError: the file cannot be created or read, or is not a key.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"the machine's key {path} cannot be kept ({error.strerror}): set "
            "RANKPRESS_MACHINE_KEY to another file"
        ) from error
    if len(key) != 32:
        raise StoreError(f"{path} has {len(key)} bytes, a machine's key has 32")
    return key


def _make_key(path: Path) -> None:
    """Write a new key under its name in one step, unless another process has written one."""
    with NamedTemporaryFile(dir=path.parent) as file:  # its owner alone may read it
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def fingerprint() -> bytes:
    """Hash the library, processor and threads, on which the entropy model's floats depend."""
    facts = (
        torch.__version__,
        torch.__config__.show(),
        platform.machine(),
        platform.processor(),
        torch.get_num_threads(),
    )
    return hashlib.sha256(repr(facts).encode()).digest()[:_FINGERPRINT_BYTES]


def sign(key: bytes, header: Header, identity: bytes, payload: bytes) -> bytes:
    """Return a payload after its authentication code and the software's fingerprint.

    Args:
        key: of this machine. header: of the stream.
        identity: of the weights that coded the payload. payload: coded bytes.
    """
    software = fingerprint()
    return _code(key, header, identity, software + payload) + software + payload


def verified(key: bytes, header: Header, identity: bytes, signed: bytes, name: str) -> bytes:
    """Check what `sign` returned, and return its payload.

    Args:
        key, header, identity: as of `sign`.
        signed: code, fingerprint and payload.
        name: of the model, for messages.

    Raises:
        UnsupportedStream: it was signed on another machine, changed, or made by other software.
    """
    code, rest = signed[:_MAC_BYTES], signed[_MAC_BYTES:]
    software, payload = rest[:_FINGERPRINT_BYTES], rest[_FINGERPRINT_BYTES:]
    if not hmac.compare_digest(_code(key, header, identity, rest), code):
        raise UnsupportedStream(
            f"streams of {name} can only be decoded on the machine that made them, and "
            "this one was made elsewhere or was changed"
        )
    if software != fingerprint():
        raise UnsupportedStream(
            f"streams of {name} can only be decoded by the software that made them; "
            f"this server runs torch {torch.__version__} with {torch.get_num_threads()} threads"
        )
    return payload


def _code(key: bytes, header: Header, identity: bytes, rest: bytes) -> bytes:
    facts = struct.pack("<BBII", header.rate16, header.flags, header.width, header.height)
    return hmac.new(key, identity + facts + rest, hashlib.sha256).digest()


def pack(strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> bytes:
    """Pack the latents' shape and one picture's strings, each with its length."""
    parts = [struct.pack("<HHB", shape[0], shape[1], len(strings))]
    for (string,) in strings:
        parts += [struct.pack("<I", len(string)), string]
    return b"".join(parts)


def unpack(payload: bytes) -> tuple[list[list[bytes]], tuple[int, int]]:
    """Unpack a payload, which is known to come from `pack`."""
    height, width, count = struct.unpack_from("<HHB", payload)
    strings, at = [], struct.calcsize("<HHB")
    for _ in range(count):
        (length,) = struct.unpack_from("<I", payload, at)
        at += 4
        strings.append([payload[at : at + length]])
        at += length
    return strings, (height, width)
