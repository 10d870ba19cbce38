"""The law of the fuzz target, driven by hypothesis for a bounded number of examples."""

from __future__ import annotations

import numpy as np
import pytest
from hostile import MAX_PIXELS, check_any_bytes, check_cut_bytes, sealed
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import photo_like

from service.codec.container import (
    LOSSLESS,
    LOSSLESS16,
    NO_MODEL,
    PSNR,
    Header,
    Section,
)
from service.codec.graphics import make_layer
from service.engine.engine import Engine
from service.picture import Picture
from service.runtime.pipeline import LoadedModel, encode


@pytest.fixture(scope="module")
def target(decode_only: LoadedModel) -> Engine:
    return Engine((decode_only,), max_pixels=MAX_PIXELS)


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def body_of(header: Header, sections: list[tuple[int, bytes]]) -> bytes:
    """A stream up to its checksum, with nothing checked."""
    out = b"RKP\x01" + header.model + bytes([header.rate16, header.flags])
    out += varint(header.width) + varint(header.height)
    return out + b"".join(varint(k) + varint(len(p)) + p for k, p in sections)


sides = st.integers(1, 40) | st.integers(1, 2**18)
word = st.binary(min_size=4, max_size=4)
payloads = st.binary(max_size=40) | st.lists(word, max_size=60).map(b"".join)
sections = st.lists(st.tuples(st.sampled_from([*map(int, Section), 6, 7]), payloads), max_size=3)


@settings(max_examples=500)
@given(data=st.binary(max_size=300))
def test_random_bytes(target: Engine, data: bytes) -> None:
    for tried in (data, sealed(data), b"RKP\x01" + data, sealed(b"RKP\x01" + data)):
        check_any_bytes(target, tried)
        check_cut_bytes(target, tried)


@settings(max_examples=1000)
@given(width=sides, height=sides, flags=st.integers(0, 1), latents=payloads, others=sections)
def test_well_formed_streams_of_random_content(
    target: Engine,
    loaded: LoadedModel,
    width: int,
    height: int,
    flags: int,
    latents: bytes,
    others: list[tuple[int, bytes]],
) -> None:
    header = Header(loaded.stored.identity[:4], 64, flags, width, height)
    body = body_of(header, [(int(Section.LATENTS), latents), *others])
    check_any_bytes(target, sealed(body))
    check_cut_bytes(target, body)


@pytest.fixture(scope="module")
def sound(engine: Engine) -> bytes:
    """A stream with most sections, up to its checksum."""
    rgb = photo_like(20, 40)
    return engine.compress(Picture(rgb, alpha=rgb[..., 0], icc=b"profile"), 4).data[:-4]


@pytest.fixture(scope="module")
def layered(engine: Engine, loaded: LoadedModel) -> list[bytes]:
    """Streams up to their checksums, with a layer over a part, over all, and with alpha."""
    rgb = photo_like(20, 40)
    picture = Picture(rgb, icc=b"profile")
    part = make_layer(picture, np.array([[True, False, False], [False, True, True]]))
    return [
        encode(loaded, picture, 64, PSNR, part)[0][:-4],
        engine.compress(picture, LOSSLESS).data[:-4],
        engine.compress(Picture(rgb, alpha=rgb[..., 0]), LOSSLESS).data[:-4],
    ]


@settings(max_examples=500)
@given(data=st.data())
def test_streams_with_parts_cut_repeated_and_replaced(
    target: Engine, sound: bytes, layered: list[bytes], data: st.DataObject
) -> None:
    body = data.draw(st.sampled_from([sound, *layered]))
    for _ in range(data.draw(st.integers(1, 3))):
        low = data.draw(st.integers(0, len(body)))
        high = data.draw(st.integers(low, min(len(body), low + 30)))
        middle = data.draw(st.binary(max_size=8) | st.just(2 * body[low:high]))
        body = body[:low] + middle + body[high:]
    check_any_bytes(target, body)
    check_cut_bytes(target, body)
    check_any_bytes(target, sealed(body))


def test_streams_with_layers_are_sound_before_they_are_damaged(
    target: Engine, layered: list[bytes]
) -> None:
    assert all(check_any_bytes(target, sealed(body)) for body in layered)


@settings(max_examples=500)
@given(
    width=sides, height=sides, flags=st.integers(0, 1), layer=st.sampled_from([b"\1", b"\3"]),
    coded=st.binary(max_size=60), others=sections,
)  # fmt: skip
def test_well_formed_lossless_streams_of_random_content(
    target: Engine,
    width: int,
    height: int,
    flags: int,
    layer: bytes,
    coded: bytes,
    others: list[tuple[int, bytes]],
) -> None:
    header = Header(NO_MODEL, LOSSLESS16, flags, width, height)
    payload = (int(Section.GRAPHICS), layer + coded)
    check_any_bytes(target, sealed(body_of(header, [payload, *others])))


def test_a_picture_without_any_coded_bytes_is_still_of_the_declared_size(
    target: Engine, loaded: LoadedModel
) -> None:
    """An empty coder yields the same symbol for ever: legal, and bounded by the pixel limit."""
    header = Header(loaded.stored.identity[:4], 64, 0, 100, 60)
    assert check_any_bytes(target, sealed(body_of(header, [(int(Section.LATENTS), b"")])))
