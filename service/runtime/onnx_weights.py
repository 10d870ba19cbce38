"""The stored tensors of a transform as its ONNX graph declares them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import StoreError
from service.runtime.onnx_graph import GraphLayer, weight_shapes
from service.store.model import Tensors

F32 = NDArray[np.float32]


def weights_of(transforms: Tensors, net: str, layers: Sequence[GraphLayer]) -> dict[str, F32]:
    """Every tensor of a network in float32, those of Linear layers [N, K, side, side].

    The store has these [N, side · side · K], cells row by row.

    Raises:
        StoreError: a tensor is missing, unknown or of the wrong shape.
    """
    shapes = weight_shapes(net, layers)
    stored = {n: t for n, t in transforms.items() if n.startswith(f"{net}.")}
    wrong = stored.keys() ^ shapes.keys()
    wrong |= {
        n for n in stored.keys() & shapes.keys() if stored[n].shape != _stored_shape(shapes[n])
    }
    if wrong:
        raise StoreError(f"the stored tensors {', '.join(sorted(wrong))} do not fit the sizes")
    return {
        n: _as_kernel(np.ascontiguousarray(t, np.float32), shapes[n]) for n, t in stored.items()
    }


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the store of a tensor that is declared with `shape`."""
    if len(shape) == 1 or _depthwise(shape):
        return shape
    outputs, inputs, rows, columns = shape
    return outputs, inputs * rows * columns


def _depthwise(shape: tuple[int, ...]) -> bool:
    return shape[2:] == (3, 3)


def _as_kernel(tensor: F32, shape: tuple[int, ...]) -> F32:
    """A stored tensor in the declared shape; a view where the order stays."""
    if tensor.shape == shape:
        return tensor
    outputs, inputs, rows, columns = shape
    cells = tensor.reshape(outputs, rows, columns, inputs).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(cells)
