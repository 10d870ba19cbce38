"""CompressAI's models as backbones: low-rank rate adapters for any of their layers, by module path.

An adapter has two factors for each path: W' = W + b·a, where W is a matrix of its first dimension
by all others. A rate is always merged into a copy of the pristine base. Unlike in our own backbone,
the factors and the entropy model are floats; zoo/codec.py says what follows from that.

Idea: LoRA (Hu et al. 2021). The models: CompressAI (Bégaint et al. 2020), `pip install
'rankpress[zoo]'`.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from service.errors import BadAdapter, BadParameter, MissingExtra

Factors = Mapping[str, Tensor]
"""`PATH.b` [rows, r] and `PATH.a` [r, columns] of each adapted layer."""

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Layers adapted by default, not their subclasses: masked convolutions change their weight."""

MAX_RANK = 64


def pretrained(name: str, quality: int) -> nn.Module:
    """Load a model with the weights that CompressAI's own loader downloads.

    Raises:
        MissingExtra: CompressAI is not installed.
        BadParameter: CompressAI has no such model or quality.
    """
    try:
        from compressai.zoo import image_models
    except ImportError as error:
        raise MissingExtra("CompressAI's models need pip install 'rankpress[zoo]'") from error
    if name not in image_models:
        raise BadParameter(f"CompressAI has no model {name!r}; it has {', '.join(image_models)}")
    try:
        network: nn.Module = image_models[name](quality, pretrained=True)
    except ValueError as error:
        raise BadParameter(f"model {name}, quality {quality}: {error}") from error
    return network.eval()


def layers(network: nn.Module) -> tuple[str, ...]:
    """Return the paths of the layers that are adapted by default."""
    return tuple(n for n, m in network.named_modules() if type(m) in LAYERS)


class ZooAdapter(nn.Module):
    """Trainable factors of a frozen base."""

    def __init__(self, network: nn.Module, paths: Sequence[str], rank: int, seed: int = 0) -> None:
        """Start without a change: a is Gaussian, b zero.

        Raises:
            BadAdapter: a path does not lead to a layer with a weight matrix.
        """
        super().__init__()
        self._network = [network.requires_grad_(False)]  # in a list: not part of the state
        generator = torch.Generator().manual_seed(seed)
        self.paths = tuple(paths)
        self.b, self.a = nn.ParameterList(), nn.ParameterList()
        for path in paths:
            rows, columns = _matrix(network, path)
            r = min(rank, rows, columns)
            scale = 1 / math.sqrt(columns)
            self.b.append(nn.Parameter(torch.zeros(rows, r)))
            self.a.append(nn.Parameter(torch.randn(r, columns, generator=generator) * scale))

    def forward(self, x: Tensor) -> Any:
        """Run the merged network on x [B, 3, H, W] in [0, 1]."""
        (network,) = self._network
        return torch.func.functional_call(network, _merged_weights(network, self.factors()), (x,))

    def factors(self) -> dict[str, Tensor]:
        """Return the factors by their names in an adapter's file."""
        named = zip(self.paths, self.b, self.a, strict=True)
        return {f"{p}.{n}": t for p, b, a in named for n, t in (("b", b), ("a", a))}


def read_factors(data: bytes) -> Factors:
    """Read an adapter's safetensors file.

    Raises:
        BadAdapter: the bytes are no such file.
    """
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadAdapter(f"not a safetensors file that can be read: {error}") from error


def merged(network: nn.Module, factors: Factors) -> nn.Module:
    """Return a copy of a network with an adapter merged, ready to code.

    Raises:
        BadAdapter: the factors do not fit, or are not finite.
    """
    _check(network, factors)
    out = copy.deepcopy(network)
    with torch.no_grad():
        weights = _merged_weights(network, factors)
        for name, weight in weights.items():
            out.get_parameter(name).copy_(weight)
    return prepare_coder(out)


def prepare_coder(network: nn.Module) -> nn.Module:
    """Compute the coder's tables from a network's weights, and return the network."""
    network.eval().requires_grad_(False)
    network.update(force=True)  # type: ignore[operator]
    return network


def digest(network: nn.Module) -> bytes:
    """Return the hash of a network's weights, 32 bytes."""
    out = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        out.update(name.encode() + str(tuple(parameter.shape)).encode())
        out.update(parameter.detach().cpu().float().numpy().tobytes())
    return out.digest()


def _merged_weights(network: nn.Module, factors: Factors) -> dict[str, Tensor]:
    out = {}
    for name, b in factors.items():
        path, _, part = name.rpartition(".")
        if part == "b":
            weight = network.get_parameter(f"{path}.weight")
            out[f"{path}.weight"] = weight + (b @ factors[f"{path}.a"]).reshape(weight.shape)
    return out


def _matrix(network: nn.Module, path: str) -> tuple[int, int]:
    """Rows and columns of a layer's weight."""
    try:
        weight = network.get_parameter(f"{path}.weight")
    except AttributeError as error:
        raise BadAdapter(f"the model has no layer {path[:200]!r} with a weight") from error
    if weight.ndim < 2:
        raise BadAdapter(f"the weight of {path} is not a matrix")
    return weight.shape[0], weight[0].numel()


def _check(network: nn.Module, factors: Factors) -> None:
    if not factors:
        raise BadAdapter("the adapter holds no factors")
    for name, factor in factors.items():
        path, _, part = name.rpartition(".")
        other = factors.get(f"{path}.{'a' if part == 'b' else 'b'}")
        if part not in ("a", "b") or other is None or factor.ndim != 2 or other.ndim != 2:
            raise BadAdapter(f"{name[:200]} is not one of two matrices PATH.a and PATH.b")
        shape = _matrix(network, path)
        b, a = (factor, other) if part == "b" else (other, factor)
        fits = (b.shape[0], a.shape[1]) == shape and b.shape[1] == a.shape[0] <= MAX_RANK
        if not fits or not torch.isfinite(factor).all() or not factor.is_floating_point():
            raise BadAdapter(f"{name} {tuple(factor.shape)} does not fit a weight of {shape}")
