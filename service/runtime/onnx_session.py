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

from service.runtime.fork_safety import ForkSafeSession

_QUIET = 3
"""Severity: errors only."""


def open_session(
    graph: bytes, weights: Mapping[str, NDArray[np.float32]], threads: int
) -> ForkSafeSession:
    """A session on the CPU, safe to run from several threads.

    Args:
        graph: serialised. weights: what it declares as external; they must outlive the session,
            which reads some of them where they are.
        threads: of one call, 0 takes all cores.
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
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
    options.add_external_initializers(list(weights), values)
    providers = ["CPUExecutionProvider"]
    return ForkSafeSession(onnxruntime.InferenceSession(graph, options, providers=providers))
