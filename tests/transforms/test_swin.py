"""The Swin family, in torch and through ONNX Runtime, gives what the float networks give."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from conftest import Small
from small_model import SWIN, as_input, photo_like, small_stored_model

from service.codec.container import read_stream
from service.codec.tiles import PATCH, Box
from service.engine.engine import Engine
from service.errors import UnsupportedStream
from service.export.graphs import build_graphs
from service.nets.model import Backbone
from service.nets.prompts import AnalysisPrompts, SynthesisPrompts
from service.nets.twin import float_twin
from service.picture import Picture, Region, View
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.store.model import StoredModel
from service.store.read import MAX_GRAPH_BYTES
from service.store.shapes import prompt_shapes
from service.transforms.interfaces import BothTransforms
from service.transforms.swin_onnx import OnnxSwinTransforms
from service.transforms.swin_torch import TorchSwinTransforms

CPU = torch.device("cpu")
GRIDS = [(1, 1), (7, 3), (8, 16), (13, 22)]


def torchs(model: StoredModel) -> TorchSwinTransforms:
    return TorchSwinTransforms(model, CPU, torch.float32)


WAYS: dict[str, Callable[[StoredModel], BothTransforms]] = {
    "torch": torchs,
    "onnx": OnnxSwinTransforms,
}


@pytest.fixture(scope="module")
def swin() -> StoredModel:
    return small_stored_model(SWIN)[0]


def with_prompts(model: StoredModel, log_weight: float) -> StoredModel:
    """The model with random prompts, as at another rate than the base's own."""
    rng = np.random.default_rng(0)
    prompts = {
        name: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)
        for name, shape in prompt_shapes(SWIN).items()
    }
    weight = np.array(log_weight, np.float32)
    prompts |= {f"{net}.prompts.log_weight": weight for net in ("g_a", "g_s")}
    return replace(model, transforms=model.transforms | prompts)


def witness_of(model: StoredModel) -> Backbone:
    """The float networks of nets/, with prompts where the model has them."""
    own = {n: t for n, t in model.transforms.items() if ".prompts." not in n}
    net = float_twin(replace(model, transforms=own))
    if len(own) < len(model.transforms):
        net.g_a.prompts, net.g_s.prompts = AnalysisPrompts(SWIN), SynthesisPrompts(SWIN)
        state = {n: torch.from_numpy(t) for n, t in model.transforms.items() if ".prompts." in n}
        assert not net.load_state_dict(state, strict=False).unexpected_keys
    return net.requires_grad_(False)


@pytest.fixture(scope="module", params=[None, 0.5], ids=["base", "prompts"])
def model(request: pytest.FixtureRequest, swin: StoredModel) -> StoredModel:
    return swin if request.param is None else with_prompts(swin, request.param)


@pytest.mark.parametrize("way", WAYS)
def test_any_size_has_the_latents_and_pixels_of_the_float_networks(
    model: StoredModel, way: str
) -> None:
    transforms, witness = WAYS[way](model), witness_of(model)
    for height, width in GRIDS:
        pixels = photo_like(height * PATCH, width * PATCH, 3)
        expected = witness.g_a(as_input(pixels) - 0.5)[0].numpy()
        y = transforms.analyse(pixels)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        z = transforms.hyper_analyse(y[None])
        assert z.shape == (1, -(-height // 4), -(-width // 4), SWIN.Cz)
        y_hat = np.round(y * 64).astype(np.int16)
        x_hat = witness.g_s(torch.from_numpy(y_hat)[None].float() / 64)[0].numpy()
        shown = np.rint((x_hat + 0.5) * 255).clip(0, 255)
        off = np.abs(transforms.synthesise(y_hat) - shown)
        assert off.max() <= 1 and (off > 0).mean() < 1e-3


def test_prompts_change_latents_and_pixels(swin: StoredModel) -> None:
    one, other = torchs(swin), torchs(with_prompts(swin, 0.0))
    pixels = photo_like(144, 208, 3)
    y, prompted = one.analyse(pixels), other.analyse(pixels)
    assert np.abs(y - prompted).max() > 1e-2 * np.abs(y).max()
    y_hat = np.round(y * 64).astype(np.int16)
    assert (one.synthesise(y_hat) != other.synthesise(y_hat)).mean() > 1e-2


@pytest.mark.parametrize("way", WAYS)
def test_prompts_of_weight_zero_change_no_bit(swin: StoredModel, way: str) -> None:
    one, other = WAYS[way](swin), WAYS[way](with_prompts(swin, -np.inf))
    pixels = photo_like(112, 80, 3)
    y = one.analyse(pixels)
    assert np.array_equal(other.analyse(pixels), y)
    y_hat = np.round(y * 64).astype(np.int16)
    assert np.array_equal(other.synthesise(y_hat), one.synthesise(y_hat))


def test_in_bfloat16_pixels_are_nearly_those_of_float32(model: StoredModel) -> None:
    exact, quick = torchs(model), TorchSwinTransforms(model, CPU, torch.bfloat16)
    pixels = photo_like(144, 208, 3)
    y = exact.analyse(pixels)
    assert np.abs(quick.analyse(pixels) - y).max() < 0.05 * np.abs(y).max()
    y_hat = np.round(y * 64).astype(np.int16)
    off = np.abs(quick.synthesise(y_hat).astype(int) - exact.synthesise(y_hat))
    assert off.mean() < 0.5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(47, 26), (41, 33)], ids=str)
def test_a_window_has_the_latents_and_pixels_that_it_has_in_the_whole(
    model: StoredModel, way: str, size: tuple[int, int]
) -> None:
    """The halo is wide enough, in the middle and at the picture's edges."""
    transforms, whole = WAYS[way](model), Box(0, 0, *size)
    pixels = photo_like(size[0] * PATCH, size[1] * PATCH, 3)
    y = transforms.analyse(pixels)
    y_hat = np.round(y * 64).astype(np.int16)
    shown = transforms.synthesise(y_hat)
    for inner in (Box(24, 0, 32, 9), Box(21, 18, 22, 19), Box(size[0] - 3, 2, *size)):
        window = SWIN.read_by(inner, whole)
        assert window != whole and inner.cut(whole) == inner
        part = transforms.analyse(pixels[window.scaled(PATCH).slices].copy())
        expected = y[inner.slices]
        found = part[inner.relative(window).slices]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(y).max())
        rgb = transforms.synthesise(y_hat[window.slices], inner.relative(window))
        off = np.abs(rgb.astype(int) - shown[inner.scaled(PATCH).slices])
        assert off.max() <= 1 and (off > 0).mean() < 1e-2


@pytest.mark.parametrize("size", [(1, 1), (112, 48), (1040, 1032)], ids=str)
def test_a_picture_goes_through_the_codec_and_a_region_has_its_pixels(
    swin: StoredModel, size: tuple[int, int]
) -> None:
    """The last has four tiles and odd sides in latents."""
    engine = Engine(load_models((swin,), "cpu", torch.float32), graphics=False)
    light = Engine(load_decode_only((swin,)))
    engine.self_test()
    picture = Picture(photo_like(*size, 2))
    data = engine.compress(picture, 4).data
    assert read_stream(data).header.model == swin.identity[:4]
    whole = light.decompress(data).picture.rgb
    assert whole.shape == picture.rgb.shape
    if size[0] > 100:
        region = Region(size[1] // 2, size[0] - 45, size[1] // 2 - 7, 30)
        top, left = region.y, region.x
        expected = whole[top : top + region.height, left : left + region.width]
        for decoder in (engine, light):
            part = decoder.decompress(data, View(region)).picture.rgb
            off = np.abs(part.astype(int) - expected)
            assert off.max() <= 1 and (off > 0).mean() < 1e-2


def test_graphs_are_valid_small_and_the_same_at_every_rate(swin: StoredModel) -> None:
    graphs = build_graphs(with_prompts(swin, 0.0))
    for name in ("g_a", "g_s"):
        assert len(swin.graphs[name]) < MAX_GRAPH_BYTES and b"location" not in swin.graphs[name]
        assert onnx.load_from_string(graphs[name]) == onnx.load_from_string(swin.graphs[name])


def test_without_onnx_runtime_only_the_other_family_decodes(
    swin: StoredModel, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Engine(load_models((swin, small.stored), "cpu", torch.float32))
    picture = Picture(photo_like(40, 56, 2))
    swin_data = server.compress(picture, 4).data
    conv_data = Engine(load_models((small.stored,), "cpu", torch.float32)).compress(picture, 4).data
    for name in ("swin_onnx", "synthesis_onnx", "entropy_onnx", "analysis_onnx"):
        monkeypatch.delitem(sys.modules, f"service.transforms.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "service.transforms.onnx_session", None)
    engine = Engine(load_decode_only((small.stored, replace(swin, name="swin"))))
    engine.self_test()
    assert engine.decompress(conv_data).picture.rgb.shape == picture.rgb.shape
    with pytest.raises(UnsupportedStream, match="onnxruntime"):
        engine.decompress(swin_data)
