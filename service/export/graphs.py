"""ONNX graphs of a stored model, one for each network that ONNX Runtime runs.

A graph follows from the backbone's sizes and holds no weights: it declares them as external
initializers without a location, and they are passed as arrays when a session is opened
(runtime/onnx_session.py). So one graph serves every rate, and ONNX Runtime can still rearrange the
weights for its kernels, which it does only with initializers.
"""

from __future__ import annotations

from service.codec.entropy_model import EntropyModel
from service.export.entropy_graphs import features_graph, step_graph
from service.export.transform_graphs import analysis_graph, hyper_analysis_graph, synthesis_graph
from service.runtime.analysis_onnx import analysis_weights, hyper_analysis_weights
from service.runtime.entropy_onnx import entropy_weights
from service.runtime.synthesis_onnx import synthesis_weights
from service.store.model import StoredModel


def build_graphs(model: StoredModel) -> dict[str, bytes]:
    """Return the graphs of store.model.GRAPHS, each a serialised ModelProto."""
    s = model.sizes
    graphs = {
        "g_a": analysis_graph(s, analysis_weights(model)),
        "h_a": hyper_analysis_graph(s, hyper_analysis_weights(model)),
        "g_s": synthesis_graph(s, synthesis_weights(model)),
    }
    for name, weights in entropy_weights(EntropyModel(s, model.entropy)).items():
        first = name == "h_s"
        graphs[name] = features_graph(s, weights) if first else step_graph(s, name, weights)
    return graphs
