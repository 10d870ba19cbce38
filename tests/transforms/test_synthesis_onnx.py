"""g_s through ONNX Runtime gives the pixels of torch and numpy, for every size and any weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_ladder import with_rates

from service.codec.tiles import PATCH, Box
from service.engine.engine import Engine
from service.errors import MissingExtra
from service.picture import Picture
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel
from service.store.read import load_store
from service.transforms.synthesis_numpy import NumpySynthesis
from service.transforms.synthesis_onnx import OnnxSynthesis


def latents(model: StoredModel, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random y_hat that reach outside 0–255 here and there."""
    rng = np.random.default_rng(seed)
    golden = model.golden.y_hat.reshape(-1, model.sizes.M)
    return golden[rng.integers(0, len(golden), (height, width))] + rng.integers(
        -64, 65, (height, width, model.sizes.M), dtype=np.int16
    )


def off(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(int) - other)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (3, 2), (9, 13)])
def test_pixels_are_those_of_numpy_and_torch_at_every_size(
    small_model: StoredModel, shape: tuple[int, int]
) -> None:
    y_hat = latents(small_model, *shape)
    found = OnnxSynthesis(small_model).synthesise(y_hat)
    assert found.dtype == np.uint8 and found.std() > 1
    for witness in (
        NumpySynthesis(small_model),
        load_models((small_model,), "cpu", torch.float32)[0].synthesis,
    ):
        assert off(found, witness.synthesise(y_hat)).max() <= 1


@pytest.mark.parametrize(
    "inner", [Box(4, 4, 7, 6), Box(0, 0, 1, 1), Box(0, 4, 11, 9), Box(6, 0, 11, 10)]
)
def test_a_part_of_a_window_has_the_pixels_that_it_has_in_the_whole(
    small_model: StoredModel, loaded: LoadedModel, inner: Box
) -> None:
    y_hat = latents(small_model, 11, 10)
    ways = (OnnxSynthesis(small_model), NumpySynthesis(small_model), loaded.synthesis)
    for synthesis in ways:
        whole = synthesis.synthesise(y_hat)
        difference = off(synthesis.synthesise(y_hat, inner), whole[inner.scaled(PATCH).slices])
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_the_shipped_backbone_has_the_same_pixels_too() -> None:
    model = load_store()[0]
    y_hat = latents(model, 7, 10)
    found = OnnxSynthesis(model, threads=1).synthesise(y_hat)
    assert (found == 0).any() and (found == 255).any(), "this test sees saturation"
    difference = off(found, NumpySynthesis(model).synthesise(y_hat))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_streams_of_every_rate_decode_to_torchs_pixels(
    small_model: StoredModel, photo: Picture
) -> None:
    ladder = with_rates(small_model, (3, 5, 6))
    full = Engine(load_models((ladder,), "cpu", torch.float32))
    light = Engine(load_decode_only((ladder,)))
    pictures = []
    for rate in (3, 3.5, 4, 4.0625, 5, 5.75, 6):
        data = full.compress(photo, rate).data
        pictures.append(light.decompress(data).picture.rgb)
        difference = off(pictures[-1], full.decompress(data).picture.rgb)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-2
    assert len({p.tobytes() for p in pictures}) == len(pictures)


def test_other_weights_of_g_s_need_a_new_session_and_nothing_else(
    small_model: StoredModel,
) -> None:
    """What a rate and an image's update do; the first session keeps its own weights."""
    y_hat = latents(small_model, 4, 4)
    first = OnnxSynthesis(small_model)
    before = first.synthesise(y_hat)
    changed = {
        n: (t.astype(np.float32) * 1.05 if n.startswith("g_s.2.") else t)
        for n, t in small_model.transforms.items()
        if n.startswith("g_s.")
    }
    other = replace(small_model, transforms=changed)
    after = OnnxSynthesis(other).synthesise(y_hat)
    assert off(after, NumpySynthesis(other).synthesise(y_hat)).max() <= 1
    assert off(after, before).max() > 3
    assert np.array_equal(first.synthesise(y_hat), before)


def test_threads_share_a_session(small_model: StoredModel) -> None:
    synthesis = OnnxSynthesis(small_model)
    inputs = [latents(small_model, 3 + i % 3, 5, i) for i in range(12)]
    alone = [synthesis.synthesise(y) for y in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(synthesis.synthesise, inputs))
    assert all(map(np.array_equal, alone, together))


def test_the_light_decoder_says_what_compressing_needs(
    small_model: StoredModel, photo: Picture
) -> None:
    with pytest.raises(MissingExtra, match=r"rankpress\[server\]"):
        Engine(load_decode_only((small_model,))).compress(photo, 4)
