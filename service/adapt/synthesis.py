"""g_s of one rate, differentiable by its latents and by a low-rank update of its weights.

The gradient of a whole weight is never computed: the gradients of the factors come from a layer's
inputs and the gradients of its outputs (as in LoRA, Hu et al. 2021), though the layer multiplies by
its merged weight, as the decoder will. Without an update only latents have gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.codec.sizes import ConvSizes
from service.nets.backbone import synthesis


class UpdatedLinear(nn.Linear):
    """A Linear whose weight [N, K] already holds b·a, with gradients for a [r, K] and b [N, r].

    `torch.func.functional_call` replaces weight, a and b together; rank 0 is a plain Linear.
    """

    a: Tensor
    b: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("a", torch.zeros(0, inputs), persistent=False)
        self.register_buffer("b", torch.zeros(outputs, 0), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        if not len(self.a):
            return F.linear(input, self.weight, self.bias)
        apply: Callable[..., Tensor] = _Updated.apply  # typed in some releases of torch only
        return apply(input, self.weight, self.bias, self.a, self.b)


class _Updated(torch.autograd.Function):
    """x Wᵀ + bias, where W holds b·a but has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        inner = torch.cat([inputs @ a.T, inputs.new_ones(len(inputs), 1)], 1)
        grad_b = rows.T @ inner  # its last column is the gradient of the bias
        grad_a = (rows @ b).T @ inputs
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        return grad_x, None, grad_b[:, -1], grad_a, grad_b[:, :-1]


def updatable(sizes: ConvSizes, g_s: nn.Module, dtype: torch.dtype) -> nn.Sequential:
    """A frozen g_s that takes updates, with the weights of a given one from backbone.synthesis.

    `dtype` is that of its weights and of the latents that it will be called with.
    """
    out = synthesis(sizes, UpdatedLinear, UpdatedLinear)
    out.load_state_dict(g_s.state_dict())
    return out.requires_grad_(False).eval().to(next(g_s.parameters()).device, dtype)
