"""Latent streams: networks and grids come back exactly, anything else is refused."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from codec import independent_overfit as page
from service.adapt.latent_networks import LatentNetworksTorch, UsedGrids
from service.codec.coder import (
    LAPLACE_LEVELS,
    LAPLACE_SHIFTS,
    Encoder,
    LaplaceTables,
    laplace_masses,
)
from service.codec.overfit import (
    PARAMETER_STEPS,
    VALUE_MAX,
    FittedLatents,
    LatentNetworks,
    decode_fitted,
    decode_latents,
    encode_latents,
    level_shapes,
    plain_networks,
    synthesise,
)
from service.errors import BadStream, StoreError
from service.store.latent_networks import read_networks, write_networks

CHANNELS = 4
DEFAULTS = plain_networks(CHANNELS, (3, 2, 2), 4, 5)
Values = tuple[NDArray[np.int32] | None, ...]


def changed(exponent: int, seed: int = 0) -> LatentNetworks:
    """Networks that differ from the defaults by odd multiples of a step, and in every gain."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, default in DEFAULTS.tensors.items():
        odd = 2 * rng.integers(-3, 4, default.shape, dtype=np.int32) + 1
        tensors[name] = default + odd * np.int32(1 if name == "gain" else 4 << exponent)
    return LatentNetworks(DEFAULTS.levels, tensors)


def drawn(rows: int, columns: int, used: Sequence[int], spread: float = 2, seed: int = 0) -> Values:
    """Grids of integers about 0, with the largest values among them."""
    rng = np.random.default_rng(seed)
    values: list[NDArray[np.int32] | None] = []
    for level, shape in enumerate(level_shapes(DEFAULTS.levels, rows, columns)):
        for _ in range(DEFAULTS.levels[level]):
            grid = np.rint(rng.laplace(0, spread, shape)).clip(-VALUE_MAX, VALUE_MAX)
            values.append(grid.astype(np.int32) if len(values) in used else None)
    assert values[0] is not None
    values[0][0, 0], values[0][-1, -1] = VALUE_MAX, -VALUE_MAX
    return tuple(values)


def smooth(rows: int, columns: int) -> Values:
    """Grids of waves."""
    values: list[NDArray[np.int32] | None] = []
    for level, shape in enumerate(level_shapes(DEFAULTS.levels, rows, columns)):
        r, c = np.indices(shape) * 2**level
        for i in range(DEFAULTS.levels[level]):
            values.append(np.rint(6 * np.sin(r / (9 + i)) * np.cos(c / 11 + i)).astype(np.int32))
    return tuple(values)


def assert_same(fitted: FittedLatents, networks: LatentNetworks, values: Values) -> None:
    assert fitted.networks.levels == networks.levels
    for name, tensor in networks.tensors.items():
        np.testing.assert_array_equal(fitted.networks.tensors[name], tensor, err_msg=name)
    for ours, expected in zip(fitted.values, values, strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None and expected is not None:
            np.testing.assert_array_equal(ours, expected)


ALL = range(7)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (33, 20)])
@pytest.mark.parametrize("used", [ALL, [0], [0, 2, 4, 6], [0, 1, 5]], ids=str)
def test_grids_come_back(size: tuple[int, int], used: Sequence[int]) -> None:
    values = drawn(*size, used)
    payload = encode_latents(DEFAULTS, DEFAULTS, values)
    assert_same(decode_fitted(payload, *size, DEFAULTS), DEFAULTS, values)


@pytest.mark.parametrize("exponent", range(PARAMETER_STEPS))
def test_networks_come_back_at_every_step(exponent: int) -> None:
    networks, values = changed(exponent), drawn(5, 3, [0, 1, 3, 5])
    payload = encode_latents(networks, DEFAULTS, values)
    assert_same(decode_fitted(payload, 5, 3, DEFAULTS), networks, values)


def test_tensors_that_do_not_differ_take_a_byte_each() -> None:
    values = (np.zeros((1, 1), np.int32), *[None] * 6)
    assert len(encode_latents(DEFAULTS, DEFAULTS, values)) <= 1 + 1 + 16 + 4


def test_a_payload_has_the_bytes_that_it_always_had() -> None:
    payload = encode_latents(changed(1), DEFAULTS, drawn(9, 7, [0, 1, 3, 4, 6]))
    assert hashlib.sha256(payload).hexdigest() == PINNED


PINNED = "24af93c592f693d13dccc3fb2dae5ba6e785fea330e435636156ce70fa405aa7"


def test_tables_are_laplace_distributions() -> None:
    """Within rounding: the integral over each integer's bin, whose mean is at a shift."""
    k = np.arange(-511, 512)
    for level in range(LAPLACE_LEVELS):
        scale = 2.0 ** (level / 4 - 4)
        for shift in range(LAPLACE_SHIFTS):
            mass = laplace_masses(1 + LAPLACE_SHIFTS * level + shift)
            assert mass.sum() == 2**24 and mass.min() >= 1

            def below(x: NDArray[np.float64], scale: float = scale) -> NDArray[np.float64]:
                half = 0.5 * np.exp(-np.abs(x) / scale)
                return np.where(x < 0, half, 1 - half)

            expected = below(k + 0.5 - shift / 8) - below(k - 0.5 - shift / 8)
            spare = 2.0**24 * math.exp(-511 / scale)  # what lies beyond all symbols
            assert np.abs(mass - 2.0**24 * expected).max() <= 1025 + spare


def test_the_page_decodes_the_same() -> None:
    networks, values = changed(2), drawn(9, 7, [0, 1, 3, 4, 6])
    payload = encode_latents(networks, DEFAULTS, values)
    defaults = {name: tensor.astype(np.int64) for name, tensor in DEFAULTS.tensors.items()}
    tensors, grids = page.decode(payload, 9, 7, list(DEFAULTS.levels), defaults)
    listed = tuple(np.array(grids[i], np.int32) if i in grids else None for i in range(7))
    assert_same(FittedLatents(networks, listed), networks, values)
    for name, tensor in networks.tensors.items():
        np.testing.assert_array_equal(tensors[name], tensor)
    ours = decode_latents(payload, 9, 7, CHANNELS, DEFAULTS)
    theirs = page.synthesise(tensors, grids, list(DEFAULTS.levels), 9, 7)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_any_damage_is_refused_or_decodes() -> None:
    """Every cut, and every byte changed to some others; finite latents, no other error."""
    payload = encode_latents(changed(0), DEFAULTS, drawn(2, 3, [0, 2, 3, 6]))
    hostile = [payload[:n] for n in range(len(payload))]
    hostile += [
        payload[:i] + bytes([payload[i] ^ flip]) + payload[i + 1 :]
        for i in range(len(payload))
        for flip in (1, 2, 16, 127, 128, 255)
    ]
    hostile += [payload + b"\1", payload + b"\0", b"\x80" + b"\xff" * 200]
    refused = 0
    for data in hostile:
        try:
            latents = decode_latents(data, 2, 3, CHANNELS, DEFAULTS)
        except BadStream:
            refused += 1
        else:
            assert latents.shape == (2, 3, CHANNELS) and np.isfinite(latents).all()
    assert refused > len(payload)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\x00\x00", "0 grids are used"),
        (b"\x08\x00", "8 grids are used"),
        (b"\x01\x30", "level of gaps is 48"),
        (b"\x80\x00", "padded"),
        (b"", "needs"),
    ],
)
def test_heads_are_refused_with_too_many_grids_or_none(head: bytes, said: str) -> None:
    payload = encode_latents(DEFAULTS, DEFAULTS, drawn(2, 3, [0]))
    with pytest.raises(BadStream, match=said):
        decode_fitted(head + payload[2:] if head else b"", 2, 3, DEFAULTS)


@pytest.mark.parametrize("gaps", [[7], [-1], [2, 3]], ids=str)
def test_gaps_are_refused_that_lead_back_or_beyond_the_last_grid(gaps: list[int]) -> None:
    encoder = Encoder(LaplaceTables())
    encoder.push(np.array(gaps, np.int32), np.full(len(gaps), 1 + 5 * 20, np.uint8))
    payload = bytes([len(gaps) + 1, 20, 128, *bytes(16)]) + encoder.finish()
    with pytest.raises(BadStream, match="gaps between used grids"):
        decode_fitted(payload, 2, 3, DEFAULTS)


def test_networks_files_come_back() -> None:
    networks = read_networks(write_networks(changed(0)), CHANNELS)
    assert networks.channels == CHANNELS and networks.grids == 7
    assert_same(FittedLatents(networks, ()), changed(0), ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": np.zeros(0, np.int32)},
        {"levels": np.array([3, 0, 4], np.int32)},
        {"levels": np.array([60, 5], np.int32)},
        {"levels": np.ones(9, np.int32)},
        {"levels": np.array([3, 2, 3], np.int32)},
        {"levels": np.array([3.5, 2, 2], np.float32)},
        {"ar.w1": np.zeros((4, 10), np.int32)},
        {"ar.b2": np.zeros(65, np.int32)},
        {"ar.b2": np.zeros((), np.int32)},
        {"syn.b1": np.zeros(0, np.int32)},
        {"syn.b2": np.zeros(5, np.int32)},
        {"syn.b2": np.zeros(4, np.float32)},
        {"syn.w2": np.full((4, 5), 2**15 + 1, np.int32)},
        {"syn.w2": np.full((4, 5), -(2**31), np.int32)},
        {"gain": np.full(7, 1000, np.int32)},
        {"other": np.zeros(1, np.int32)},
    ],
    ids=lambda wrong: f"{next(iter(wrong))} {next(iter(wrong.values())).shape}",
)
def test_wrong_networks_files_are_refused(wrong: dict[str, NDArray[np.generic]]) -> None:
    levels = {"levels": np.array(DEFAULTS.levels, np.int32)}
    with pytest.raises(StoreError):
        read_networks(save({**levels, **DEFAULTS.tensors, **wrong}), CHANNELS)


def test_networks_files_that_lack_a_tensor_or_are_no_safetensors_are_refused() -> None:
    tensors = {"levels": np.array(DEFAULTS.levels, np.int32), **DEFAULTS.tensors}
    for name in tensors:
        with pytest.raises(StoreError):
            read_networks(save({n: t for n, t in tensors.items() if n != name}), CHANNELS)
    for data in (b"", b"\0" * 50, b"\xff" * 50):
        with pytest.raises(StoreError, match="no safetensors"):
            read_networks(data, CHANNELS)


def as_tensors(values: Values, used: UsedGrids) -> list[torch.Tensor]:
    shapes = [v.shape for v in values if v is not None]
    grids = []
    for level, places in enumerate(used.levels):
        own = [v for i in places if (v := values[i]) is not None]
        shape = level_shapes(DEFAULTS.levels, *shapes[0])[level]
        stack = np.stack(own) if own else np.zeros((0, *shape))
        grids.append(torch.from_numpy(stack.astype(np.float32))[None])
    return grids


@pytest.mark.parametrize("used", [ALL, [0, 2, 3, 6], [0, 5]], ids=str)
def test_the_fit_sees_the_latents_of_the_decoder(used: Sequence[int]) -> None:
    networks, values = changed(1), drawn(9, 14, used)
    places = UsedGrids.of(DEFAULTS.levels, [i in used for i in ALL])
    with torch.no_grad():
        theirs = LatentNetworksTorch(networks).latents(as_tensors(values, places), places)
    ours = synthesise(FittedLatents(networks, values), 9, 14)
    assert np.abs(ours - theirs[0].numpy()).max() <= 1e-4 * max(1, np.abs(ours).max())


def test_the_fit_counts_the_bits_of_the_payload() -> None:
    values = smooth(40, 56)
    places = UsedGrids.of(DEFAULTS.levels, [True] * 7)
    with torch.no_grad():
        bits = float(LatentNetworksTorch(DEFAULTS).bits(as_tensors(values, places), places))
    payload = encode_latents(DEFAULTS, DEFAULTS, values)
    assert 8 * len(payload) == pytest.approx(bits + 8 * 18, rel=0.03)
