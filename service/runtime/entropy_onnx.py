"""The entropy networks through ONNX Runtime: the integers of codec/entropy_model.py, bit for bit.

Where numpy runs one operation at a time on one core, sessions fuse them and use all cores. The
model's own layers are built first: they check the stored tensors and prove their bounds, and the
sessions read the layers' arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import STEPS, EntropyModel, Step, StepNetworks, position_classes
from service.codec.fixed_point import IntBlock, IntLayer
from service.codec.sizes import Sizes
from service.runtime import entropy_graph as graph
from service.runtime.fork_safety import ForkSafeSession
from service.runtime.onnx_session import open_session

F32 = NDArray[np.float32]


class OnnxEntropyModel(EntropyModel):
    """An EntropyModel whose networks run in sessions. Immutable; safe to share between threads."""

    def __init__(self, sizes: Sizes, tensors: Mapping[str, NDArray[Any]], threads: int = 0) -> None:
        """Open the sessions.

        Args:
            sizes, tensors: see EntropyModel. threads: CPU threads of one call, 0 takes all cores.

        Raises:
            StoreError: as EntropyModel does.
        """
        super().__init__(sizes, tensors)
        weights = [_features(self)] + [_step(t, self.steps[t], sizes) for t in range(1, STEPS)]
        shapes = [{n: w.shape for n, w in part.items()} for part in weights]
        graphs = [graph.features_graph(sizes, shapes[0])]
        graphs += [graph.step_graph(sizes, t, shapes[t]) for t in range(1, STEPS)]
        self._weights = weights  # the sessions read some of them where they are
        self._sessions = [open_session(g, w, threads) for g, w in zip(graphs, weights, strict=True)]

    def begin(self, z_hat: NDArray[np.int32], height: int, width: int) -> StepNetworks:
        """See EntropyModel."""
        return _SessionStepNetworks(self, self._sessions, z_hat, (height, width))


class _SessionStepNetworks:
    """A walk whose networks are sessions; the features and what is known of y_hat lie here."""

    def __init__(
        self,
        model: EntropyModel,
        sessions: Sequence[ForkSafeSession],
        z_hat: NDArray[np.int32],
        size: tuple[int, int],
    ) -> None:
        self._model, self._sessions = model, sessions
        self._shape = np.array([len(z_hat), *size])
        self._classes = position_classes(*size)
        feed = {
            graph.Z_HAT: z_hat.reshape(-1, z_hat.shape[-1]).astype(np.float32),
            graph.Z_SHAPE: np.array(z_hat.shape[:3]),
            graph.SIZE: self._shape[1:],
        }
        self._features, self._mu, self._levels = sessions[0].run(
            [graph.P, graph.MU, graph.LEVEL], feed
        )
        self._context = np.zeros((len(z_hat), *size, model.sizes.M), np.float32)

    def add_known(self, p: int, group: int, y_hat: NDArray[np.int32]) -> None:
        c = self._classes[p]
        self._context[:, c.rows, c.cols, group::4] = self._model.context(y_hat, group)

    def parameters(self, t: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        if t == 0:
            return self._mu, self._levels
        feed = {graph.P: self._features, graph.CONTEXT: self._context, graph.SHAPE: self._shape}
        mu, levels = self._sessions[t].run([graph.MU, graph.LEVEL], feed)
        return mu, levels


def _features(model: EntropyModel) -> dict[str, F32]:
    """Weights of h_s and step 0, by their names in the graph."""
    weights = _layer("h_s.0", model.up0) | _layer("h_s.2", model.up1)
    weights |= _block("h_s.1", model.block0) | _block("h_s.3", model.block1)
    return weights | _heads(0, model.steps[0])


def _step(t: int, step: Step, sizes: Sizes) -> dict[str, F32]:
    """Weights of a further step."""
    first = f"step.{t}.first"
    weights = {
        f"{first}.weight": step.first.weight[: sizes.cp],
        f"{first}.context": step.first.weight[sizes.cp :],
        f"{first}.bias": step.first.bias,
    }
    return weights | _block(f"step.{t}.block", step.block) | _heads(t, step)


def _heads(t: int, step: Step) -> dict[str, F32]:
    weights: dict[str, F32] = {}
    for p, head in enumerate(step.heads):
        weights |= _layer(f"step.{t}.head.{p}", head)
    return weights


def _block(name: str, block: IntBlock) -> dict[str, F32]:
    weights: dict[str, F32] = {}
    for part in ("pw1", "pw2", "f1", "f2"):
        weights |= _layer(f"{name}.{part}", getattr(block, part))
    taps = np.stack(block.dw.taps, -1)
    weights[f"{name}.dw.weight"] = taps.reshape(len(taps), 1, 3, 3)
    weights[f"{name}.dw.bias"] = block.dw.bias
    return weights


def _layer(name: str, layer: IntLayer) -> dict[str, F32]:
    return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
