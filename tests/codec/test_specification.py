"""The format page is enough to decode from: a decoder written from it agrees with the product."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from codec import independent_decoder as page
from service.codec import container, overfit
from service.codec.coder import LAPLACE_LEVELS, LAPLACE_SHIFTS, Encoder, Tables
from service.codec.container import Header, Stream
from service.codec.model_stream import read_update
from service.codec.tiles import piece_count, tiles
from service.errors import BadStream, UnsupportedStream

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model_store" / "light"
GOLDEN = ROOT / "tests" / "golden"
MODELS = {"v1": MODEL, "swin": ROOT / "model_store" / "swin"}
NAMES = sorted(str(p.relative_to(GOLDEN).with_suffix("")) for p in GOLDEN.glob("*/*.rkp"))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_decodes_golden_streams(name: str) -> None:
    """Latents and alpha exactly, pixels to one step, in other integers and by another coder."""
    model = MODELS[name.partition("/")[0]]
    y_hat, rgb, alpha = page.decode((GOLDEN / f"{name}.rkp").read_bytes(), model)
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    latents = None if y_hat is None else hashlib.sha256(y_hat.astype("<i2").tobytes()).hexdigest()
    assert latents == expected["y_hat"]
    actual = None if alpha is None else hashlib.sha256(alpha.tobytes()).hexdigest()
    assert actual == expected["alpha"]
    with Image.open(GOLDEN / f"{name}.png") as file:
        pixels = np.asarray(file.convert("RGB")).astype(int)
    assert rgb.shape == pixels.shape
    assert np.abs(rgb - pixels).max() <= 1


@pytest.mark.parametrize("path", sorted(MODEL.glob("updates/*.rku")), ids=lambda p: p.stem)
def test_the_page_reads_ready_updates(path: Path) -> None:
    base = page.load_base(MODEL)
    shapes = {n[:-7]: t.shape for n, t in base.items() if n.startswith("g_s.") and "weight" in n}
    ours = read_update(path.read_bytes(), shapes, Tables(base["tables"])).layers
    theirs = page.read_update(path.read_bytes(), base)
    assert theirs.keys() == ours.keys()
    for name, delta in theirs.items():
        expected = ours[name]
        assert np.array_equal(delta.bias << (delta.bias_exponent + 28), expected.bias_delta())
        assert (delta.weight is None) == (len(expected.e) == 0)
        assert delta.weight is None or np.array_equal(delta.weight, expected.product())


def test_the_encoder_of_the_page_writes_our_bytes() -> None:
    tables = page.load_base(MODEL)["tables"]
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 500):
        levels = rng.integers(0, 64, count).astype(np.uint8)
        spread = rng.normal(0, 0.11 * 1200 ** (levels / 63))
        symbols = np.rint(spread).clip(-511, 511).astype(np.int32) * (levels > 0)
        encoder = Encoder(Tables(tables))
        encoder.push(symbols, levels)
        data = encoder.finish()
        order = np.argsort(levels, kind="stable")
        assert data == pushed([(symbols[i], levels[i]) for i in order if levels[i]], tables)
        ans = page.Ans(data, tables)
        assert ans.group(levels.tolist()) == symbols.tolist()
        ans.finish()


def pushed(symbols: list[tuple[int, int]], tables: NDArray[np.int32]) -> bytes:
    """The page's encoder: symbols with their levels, in the order in which they are decoded."""
    words, state = [], 0
    for symbol, level in reversed(symbols):
        row = [*tables[level][:0:-1].tolist(), *tables[level].tolist()]
        p, c = row[symbol + 511], sum(row[: symbol + 511])
        if state >> 40 >= p:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // p << 24) + c + state % p
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0")


def test_the_page_lists_sections_flags_and_limits_of_the_code() -> None:
    text = (ROOT / "service" / "docs" / "format.md").read_text()
    for section in container.Section:
        assert f"| {section.value} | {section.name.lower()} |" in text
    for bit, flag in enumerate(container.Flags):
        assert f"| {bit} | {flag.value} |" in text
    limits = (container.MAX_SIDE, container.MAX_METADATA_BYTES, container.MAX_PACKED_BYTES)
    assert all(f"{limit:,}" in text for limit in limits)


def test_the_page_has_the_constants_and_tensors_of_latent_streams() -> None:
    text = (ROOT / "service" / "docs" / "format.md").read_text()
    section = text.partition("## Latent streams")[2].partition("## Updates of the synthesis")[0]
    assert all(f"`{name}`" in section for name in overfit.TENSORS)
    assert f"level 0…{LAPLACE_LEVELS - 1} and shift 0…{LAPLACE_SHIFTS - 1}" in section
    assert f"{len(overfit.TENSORS)} bytes: one for each tensor" in section
    assert f"e is at most {overfit.PARAMETER_STEPS - 1}" in section
    assert f"±{overfit.VALUE_MAX}" in section and f"F ≤ {overfit.MAX_GRIDS}" in section
    assert f"gains at most {overfit.GAIN_MAX}" in section
    offsets = ", ".join(f"({r}, {c})" for r, c in overfit.CONTEXT).replace("-", "−")
    assert offsets in " ".join(section.split())


def outcome(data: bytes) -> tuple[object, ...]:
    """What both readers make of bytes, in common terms; asserts that they agree."""
    try:
        ours = container.read_stream(data)
    except BadStream as error:
        with pytest.raises(page.Malformed) as caught:
            page.parse(data)
        assert isinstance(error, UnsupportedStream) == (caught.type is page.Unsupported)
        return (type(error),)
    theirs = page.parse(data)
    header = Header(theirs.model, theirs.rate16, theirs.flags, theirs.width, theirs.height)
    assert ours.header == header
    assert ours.tiles == theirs.tiles
    assert (ours.icc, ours.exif) == tuple(theirs.metadata.get(kind) for kind in (1, 3))
    assert (ours.alpha, ours.update, ours.ready) == tuple(theirs.sections.get(k) for k in (4, 6, 8))
    assert (ours.graphics is None) == (theirs.layer is None)
    if ours.graphics is not None and theirs.layer is not None:
        assert np.array_equal(ours.graphics.marked, theirs.layer.marked)
        assert ours.graphics.pieces == tuple(piece[-1] for piece in theirs.layer.pieces)
    return (ours.header,)


@pytest.mark.parametrize("name", NAMES)
def test_both_readers_see_the_same_in_golden_streams(name: str) -> None:
    (header,) = outcome((GOLDEN / f"{name}.rkp").read_bytes())
    assert isinstance(header, Header)


streams = st.builds(
    lambda model, rate16, flags, side, sizes, alpha, icc, exif, update, ready: Stream(
        (h := Header(model, rate16, flags, *side)),
        tuple((bytes(n),) * piece_count(t) for t, n in zip(tiles(h.latents), sizes, strict=False)),
        alpha, icc, exif, update, ready,
    ),
    st.binary(min_size=4, max_size=4),
    st.integers(16, 128),
    st.integers(0, 3),
    st.tuples(st.integers(1, 2048), st.integers(1, 2048)),
    st.lists(st.integers(0, 300), min_size=4, max_size=4),
    *[st.none() | st.binary(max_size=50)] * 4,
    st.none() | st.binary(min_size=4, max_size=4),
)  # fmt: skip


@given(streams)
@settings(max_examples=100, deadline=None)
def test_both_readers_see_the_same_in_generated_streams(stream: Stream) -> None:
    (header,) = outcome(container.write_stream(stream))
    assert header == stream.header


def sealed(body: bytes) -> bytes:
    return body + int(google_crc32c.value(body)).to_bytes(4, "little")


def test_both_readers_refuse_the_same_changes() -> None:
    """Every byte set to every third value, and every cut, behind a valid checksum."""
    header = Header(b"\x01\x80\xff\x00", 64, 0, 1030, 40)
    stream = Stream(header, ((b"abcd",), (b"efgh",)), b"\0al", b"profile", b"Exif", b"up", b"name")
    body = container.write_stream(stream)[:-4]
    changed = [
        body[:i] + bytes([v]) + body[i + 1 :] for i in range(len(body)) for v in range(0, 256, 3)
    ]
    kinds = {
        type(outcome(sealed(data))[0]) for data in [*changed, *(body[:n] for n in range(len(body)))]
    }
    assert kinds == {type, Header}
    refused = {outcome(sealed(data))[0] for data in changed} & {BadStream, UnsupportedStream}
    assert refused == {BadStream, UnsupportedStream}
    assert outcome(body)[0] is BadStream, "the checksum is gone"
