"""The entropy networks through ONNX Runtime: the integers of codec/entropy_model.py, bit for bit.

Where numpy runs one operation at a time on one core, sessions fuse them and use all cores. The
model's own layers are built first: they check the stored tensors and prove their bounds, and the
sessions read the layers' arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.codec.entropy_model import CLASSES, EntropyModel, Step, StepNetworks
from service.codec.fixed_point import IntBlock, IntLayer
from service.store.model import StoredModel
from service.transforms.fork_safety import ForkSafeSession
from service.transforms.onnx_session import open_session

F32 = NDArray[np.float32]

Z_HAT, Z_SHAPE, SIZE = "z_hat", "z_shape", "size"
"""z_hat [n, Cz]; its grid [B, h, w] and the size [height, width] of the latents, both int64."""

P, SHAPE = "P", "shape"
"""The features [B, height, width, cp], and the grid [B, height, width] of the latents as int64."""

CONTEXT = "context"
"""y_hat as activations [B, height, width, M], zero where it is not known yet."""

MU, LEVEL = "mu", "levels"
"""int32 and uint8, both [B, n] in coding order."""


class OnnxEntropyModel(EntropyModel):
    """An EntropyModel whose networks run in sessions. Immutable; safe to share between threads."""

    def __init__(self, model: StoredModel, threads: int = 0) -> None:
        """Open the sessions; `threads` are those of one call, 0 takes all cores.

        Raises:
            StoreError: as EntropyModel does, or a graph does not fit the model.
        """
        super().__init__(model.sizes, model.entropy)
        weights = entropy_weights(self)
        self._sessions = [open_session(model, name, w, threads) for name, w in weights.items()]

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
        feed = {
            Z_HAT: z_hat.reshape(-1, z_hat.shape[-1]).astype(np.float32),
            Z_SHAPE: np.array(z_hat.shape[:3]),
            SIZE: self._shape[1:],
        }
        self._features, self._mu, self._levels = sessions[0].run([P, MU, LEVEL], feed)
        self._context = np.zeros((len(z_hat), *size, model.sizes.M), np.float32)

    def add_known(self, p: int, group: int, y_hat: NDArray[np.int32]) -> None:
        self._context[:, *CLASSES[p], group::4] = self._model.context(y_hat, group)

    def parameters(self, t: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        if t == 0:
            return self._mu, self._levels
        feed = {P: self._features, CONTEXT: self._context, SHAPE: self._shape}
        mu, levels = self._sessions[t].run([MU, LEVEL], feed)
        return mu, levels


def entropy_weights(model: EntropyModel) -> dict[str, dict[str, F32]]:
    """The weights of each graph, by the names of the graph and of its initializers."""
    features = _layer("h_s.0", model.up0) | _layer("h_s.2", model.up1)
    features |= _block("h_s.1", model.block0) | _block("h_s.3", model.block1)
    weights = {"h_s": features | _heads(0, model.steps[0])}
    for t, step in enumerate(model.steps[1:], 1):
        name, cp = f"step.{t}", model.sizes.cp
        first = {
            f"{name}.first.weight": step.first.weight[:cp],
            f"{name}.first.context": step.first.weight[cp:],
            f"{name}.first.bias": step.first.bias,
        }
        weights[name] = first | _block(f"{name}.block", step.block) | _heads(t, step)
    return weights


def _heads(t: int, step: Step) -> dict[str, F32]:
    weights: dict[str, F32] = {}
    for p, head in enumerate(step.heads):
        weights |= _layer(f"step.{t}.head.{p}", head)
    return weights


def _block(name: str, block: IntBlock) -> dict[str, F32]:
    weights: dict[str, F32] = {}
    for part in ("pw1", "pw2", "f1", "f2"):
        weights |= _layer(f"{name}.{part}", getattr(block, part))
    taps = np.ascontiguousarray(block.dw.weight.T)
    weights[f"{name}.dw.weight"] = taps.reshape(len(taps), 1, 3, 3)
    weights[f"{name}.dw.bias"] = block.dw.bias
    return weights


def _layer(name: str, layer: IntLayer) -> dict[str, F32]:
    return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
