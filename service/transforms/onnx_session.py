"""ONNX Runtime sessions: a graph and its weights, always opened with the same options.

Only this module imports ONNX Runtime. Since version 1.29 its official builds send events about
sessions and machines to their maker; the environment variable below, set before the import, stops
that. The thread that sends them would also keep a forked child from ending.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.errors import StoreError
from service.store.model import StoredModel
from service.transforms.fork_safety import ForkSafeSession

Weights = Mapping[str, NDArray[np.float32]]

_QUIET = 3
"""Severity: errors only."""


def open_session(model: StoredModel, name: str, weights: Weights, threads: int) -> ForkSafeSession:
    """A session on the CPU for one of the model's graphs, safe to run from several threads.

    The weights are by names of the graph's initializers; one call takes `threads`, or all cores
    for 0.

    Raises:
        StoreError: the graph is damaged, or does not declare these weights.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # An arena in every rate's session would keep its peak for ever; it is no faster here.
    options.enable_cpu_mem_arena = False
    # Threads that spin while they wait take a busy machine's cores from one another: with two cores
    # and two other processes a photo took 219 ms to decode, not 158.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # no other, by its bytes
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
    options.add_external_initializers(list(weights), values)
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(model.graphs[name], options, providers=providers)
    except Exception as error:  # its errors have no class in common
        raise StoreError(f"graph {name} of model {model.name} cannot be opened: {error}") from error
    return ForkSafeSession(session, weights)
