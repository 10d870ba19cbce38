"""Streams that only the machine and the software that made them may decode.

A stream's coded bytes stand behind a message authentication code under a key that never leaves the
machine, over all that decides how they are decoded, the software included.
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
from typing import Final

import torch

from service.codec.container import Header
from service.errors import StoreError, UnsupportedStream

_MAC_BYTES: Final = 32
_FINGERPRINT_BYTES: Final = 8


def machine_key(path: Path) -> bytes:
    """The key that says which streams were made on this machine; made when it is first needed.

    Args:
        path: of its file, which only its owner may read.

    Raises:
        StoreError: the file cannot be made or read, or is no key.
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
    """Write a new key, whole before it has its name; nothing happens if another was quicker."""
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def fingerprint() -> bytes:
    """Hash of what else decides the entropy model's floats: library, processor, threads."""
    told = (torch.__version__, torch.__config__.show(), platform.machine(), platform.processor(),
            torch.get_num_threads())  # fmt: skip
    return hashlib.sha256(repr(told).encode()).digest()[:_FINGERPRINT_BYTES]


def sign(key: bytes, header: Header, identity: bytes, payload: bytes) -> bytes:
    """The payload behind its code and the software's fingerprint.

    Args:
        key: of this machine. header: of the stream. identity: of the weights it was coded with.
    """
    software = fingerprint()
    return _code(key, header, identity, software + payload) + software + payload


def verified(key: bytes, header: Header, identity: bytes, signed: bytes, name: str) -> bytes:
    """The payload of what `sign` signed here with this software.

    Args:
        name: of the model, for messages. Others as in `sign`.

    Raises:
        UnsupportedStream: signed elsewhere, changed since, or made by other software.
    """
    told, software, payload = (
        signed[:_MAC_BYTES],
        signed[_MAC_BYTES:][:_FINGERPRINT_BYTES],
        signed[_MAC_BYTES + _FINGERPRINT_BYTES :],
    )
    if not hmac.compare_digest(_code(key, header, identity, software + payload), told):
        raise UnsupportedStream(
            f"streams of {name} can only be decoded on the machine that made them, and "
            "this one was not made here or was changed"
        )
    if software != fingerprint():
        raise UnsupportedStream(
            f"streams of {name} can only be decoded by the software that made them; "
            f"here run now torch {torch.__version__} and {torch.get_num_threads()} threads"
        )
    return payload


def _code(key: bytes, header: Header, identity: bytes, rest: bytes) -> bytes:
    facts = struct.pack("<BBII", header.rate16, header.flags, header.width, header.height)
    return hmac.new(key, identity + facts + rest, hashlib.sha256).digest()


def pack(strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> bytes:
    """One picture's strings, each after its length, behind the latents' shape."""
    parts = [struct.pack("<HHB", shape[0], shape[1], len(strings))]
    for (string,) in strings:
        parts += [struct.pack("<I", len(string)), string]
    return b"".join(parts)


def unpack(payload: bytes) -> tuple[list[list[bytes]], tuple[int, int]]:
    """What `pack` packed; the payload is known to come from it."""
    height, width, count = struct.unpack_from("<HHB", payload)
    strings, at = [], struct.calcsize("<HHB")
    for _ in range(count):
        (length,) = struct.unpack_from("<I", payload, at)
        at += 4
        strings.append([payload[at : at + length]])
        at += length
    return strings, (height, width)
