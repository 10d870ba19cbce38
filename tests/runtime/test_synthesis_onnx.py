"""g_s through ONNX Runtime gives the pixels of torch and numpy, for every size and any weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from small_ladder import with_rates

from service.codec.sizes import Sizes
from service.codec.tiles import PATCH, Box
from service.engine.engine import Engine
from service.errors import MissingExtra, StoreError
from service.picture import Picture
from service.runtime import onnx_graph
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.runtime.synthesis_numpy import NumpySynthesis
from service.runtime.synthesis_onnx import OnnxSynthesis
from service.store.model import StoredModel
from service.store.read import load_store


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


@pytest.mark.parametrize(
    "sizes", [Sizes(), Sizes(M=8, c8=12, c16=8, nd8=2, nd16=0, ne8=1, ne16=0)]
)
@pytest.mark.parametrize(
    ("net", "layers", "graph"),
    [
        ("g_a", onnx_graph.analysis, onnx_graph.analysis_graph),
        ("h_a", onnx_graph.hyper_analysis, onnx_graph.hyper_analysis_graph),
        ("g_s", onnx_graph.synthesis, onnx_graph.synthesis_graph),
    ],
)
def test_the_graphs_are_valid_onnx_without_a_single_weight_in_them(
    sizes: Sizes,
    net: str,
    layers: Callable[[Sizes], list[onnx_graph.Layer]],
    graph: Callable[[Sizes], bytes],
) -> None:
    data = graph(sizes)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(_filled(model), full_check=True)
    assert len(data) < 10_000
    declared = {t.name: tuple(t.dims) for t in model.graph.initializer if t.external_data}
    assert declared == onnx_graph.weight_shapes(net, layers(sizes))


@pytest.mark.parametrize(("M", "pieces"), [(16, 0), (24, 2)])
def test_graphs_take_latents_apart_only_where_some_go_straight(M: int, pieces: int) -> None:
    sizes = Sizes(M=M, c16=16, c8=16)
    for graph, others in ((onnx_graph.analysis_graph, 0), (onnx_graph.synthesis_graph, 1)):
        kinds = Counter(n.op_type for n in onnx.load_from_string(graph(sizes)).graph.node)
        assert kinds["Slice"] == pieces + others and kinds["Concat"] == (pieces > 0)


def _filled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with zeros as its weights: the checker wants external data as files."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for tensor in out.graph.initializer:
        if tensor.external_data:
            zeros = onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name)
            tensor.CopyFrom(zeros)
    return out


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


@pytest.mark.parametrize("wrong", ["missing", "unknown", "shape"])
def test_tensors_that_do_not_fit_are_refused_by_name(
    small_model: StoredModel, wrong: str
) -> None:
    tensors = dict(small_model.transforms)
    name = "g_s.1.pw1.weight"
    if wrong == "missing":
        del tensors[name]
    elif wrong == "unknown":
        name = "g_s.9.pw1.weight"
        tensors[name] = np.zeros((2, 2), np.float32)
    else:
        tensors[name] = tensors[name].reshape(2, -1)
    with pytest.raises(StoreError, match=name):
        OnnxSynthesis(replace(small_model, transforms=tensors))


def test_the_light_decoder_says_what_compressing_needs(
    small_model: StoredModel, photo: Picture
) -> None:
    with pytest.raises(MissingExtra, match=r"rankpress\[server\]"):
        Engine(load_decode_only((small_model,))).compress(photo, 4)
