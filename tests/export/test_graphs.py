"""The graphs that are stored with a model are valid ONNX, hold no weights and fit them all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from small_model import SIZES, small_stored_model

from service.codec.entropy_model import EntropyModel
from service.errors import StoreError
from service.export.graphs import build_graphs
from service.store.model import GRAPHS, StoredModel
from service.store.read import load_store
from service.transforms.analysis_onnx import analysis_weights, hyper_analysis_weights
from service.transforms.entropy_onnx import entropy_weights
from service.transforms.synthesis_onnx import OnnxSynthesis, synthesis_weights

SHALLOW = replace(SIZES, M=8, c8=12, c16=8, nd8=2)


@pytest.fixture(scope="module", params=["light", "small", "shallow"])
def model(request: pytest.FixtureRequest) -> StoredModel:
    if request.param == "light":
        return load_store()[0]
    return small_stored_model(SIZES if request.param == "small" else SHALLOW)[0]


def declared(graph: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    external = onnx.TensorProto.EXTERNAL
    tensors = [t for t in graph.graph.initializer if t.data_location == external]
    return {t.name: tuple(t.dims) for t in tensors}


def filled(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with zeros as its weights: the checker wants external data as files."""
    out = onnx.ModelProto()
    out.CopyFrom(graph)
    for tensor in out.graph.initializer:
        if tensor.name in declared(graph):
            zeros = np.zeros(tensor.dims, np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    return out


def test_they_are_valid_onnx_that_declares_the_weights_and_holds_none(model: StoredModel) -> None:
    weights = {
        "g_a": analysis_weights(model),
        "g_s": synthesis_weights(model),
        "h_a": hyper_analysis_weights(model),
        **entropy_weights(EntropyModel(model.sizes, model.entropy)),
    }
    assert set(model.graphs) == set(weights) == set(GRAPHS)
    for name, data in model.graphs.items():
        graph = onnx.load_from_string(data)
        onnx.checker.check_model(filled(graph), full_check=True)
        assert len(data) < 10_000
        assert declared(graph) == {n: w.shape for n, w in weights[name].items()}


def test_the_graphs_of_a_model_are_those_that_are_exported_now(model: StoredModel) -> None:
    again = build_graphs(replace(model, graphs={}))
    for name in GRAPHS:
        assert onnx.load_from_string(again[name]) == onnx.load_from_string(model.graphs[name])


@pytest.mark.parametrize(("M", "pieces"), [(16, 0), (24, 2)])
def test_graphs_take_latents_apart_only_where_some_go_straight(M: int, pieces: int) -> None:
    model = small_stored_model(replace(SIZES, M=M, c16=16))[0]
    for name, others in (("g_a", 0), ("g_s", 1)):
        nodes = onnx.load_from_string(model.graphs[name]).graph.node
        kinds = Counter(n.op_type for n in nodes)
        assert kinds["Slice"] == pieces + others and kinds["Concat"] == (pieces > 0)


def test_a_graph_that_does_not_fit_the_model_is_refused(small_model: StoredModel) -> None:
    other = small_stored_model(SHALLOW)[0]
    for graph in (other.graphs["g_s"], small_model.graphs["g_a"], b"", b"garbage"):
        model = replace(small_model, graphs={**small_model.graphs, "g_s": graph})
        with pytest.raises(StoreError, match="graph g_s of model small cannot be opened"):
            OnnxSynthesis(model)
