"""ONNX graphs of a stored model, one for each network that ONNX Runtime runs.

A graph follows from the backbone's sizes and holds no weights: it declares them as external
initializers without a location, and they are passed as arrays when a session is opened
(transforms/onnx_session.py). So one graph serves every rate, and ONNX Runtime can still rearrange
the weights for its kernels, which it does only with initializers.
"""

from __future__ import annotations

from service.codec.entropy_model import EntropyModel
from service.codec.sizes import SwinSizes, conv_sizes
from service.export.entropy_graphs import features_graph, step_graph
from service.export.swin_graphs import swin_analysis_graph, swin_synthesis_graph
from service.export.transform_graphs import analysis_graph, hyper_analysis_graph, synthesis_graph
from service.store.model import StoredModel
from service.transforms.analysis_onnx import analysis_weights, hyper_analysis_weights
from service.transforms.entropy_onnx import entropy_weights
from service.transforms.swin_onnx import swin_analysis_weights, swin_synthesis_weights
from service.transforms.synthesis_onnx import synthesis_weights


def build_graphs(model: StoredModel) -> dict[str, bytes]:
    """Return the graphs of store.model.GRAPHS, each a serialised ModelProto."""
    s = model.sizes
    graphs = {"h_a": hyper_analysis_graph(s, hyper_analysis_weights(model))}
    if isinstance(s, SwinSizes):
        graphs["g_a"] = swin_analysis_graph(s, swin_analysis_weights(model))
        graphs["g_s"] = swin_synthesis_graph(s, swin_synthesis_weights(model))
    else:
        s = conv_sizes(s)
        graphs["g_a"] = analysis_graph(s, analysis_weights(model))
        graphs["g_s"] = synthesis_graph(s, synthesis_weights(model))
    for name, weights in entropy_weights(EntropyModel(s, model.entropy)).items():
        first = name == "h_s"
        graphs[name] = features_graph(s, weights) if first else step_graph(s, name, weights)
    return graphs
