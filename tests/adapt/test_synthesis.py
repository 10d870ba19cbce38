"""g_s with an update gives the pixels and the gradients of g_s with the merged weights."""

from __future__ import annotations

import torch
from torch.func import functional_call

from service.adapt.decoder_update import DecoderUpdate
from service.adapt.synthesis import UpdatedLinear, updatable
from service.nets.twin import float_twin
from service.store.model import StoredModel

F32 = torch.float32


def test_without_an_update_it_is_the_network_itself(small_model: StoredModel) -> None:
    g_s = float_twin(small_model).g_s
    y_hat = torch.randn(1, 3, 5, small_model.sizes.M)
    assert torch.equal(updatable(small_model.sizes, g_s, F32)(y_hat), g_s(y_hat))


def test_gradients_of_factors_are_those_of_the_product() -> None:
    """Against autograd through the merged weight."""
    torch.manual_seed(1)
    layer = UpdatedLinear(5, 7).requires_grad_(False)
    leaves = [torch.randn(s, requires_grad=True) for s in ((2, 3, 5), (7,), (2, 5), (7, 2))]
    x, bias, a, b = leaves
    merged = layer.weight + b @ a
    aim = torch.randn(2, 3, 7)
    expected = torch.autograd.grad((torch.tanh(x @ merged.T + bias) * aim).sum(), leaves)
    changed = {"weight": merged.detach(), "bias": bias, "a": a, "b": b}
    out = functional_call(layer, changed, (x,))
    found = torch.autograd.grad((torch.tanh(out) * aim).sum(), leaves)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_gradients_reach_every_variable_of_an_update(small_model: StoredModel) -> None:
    update = DecoderUpdate(
        small_model.transforms, 2, torch.Generator().manual_seed(1), torch.device("cpu")
    )
    for name, tensor in update.tensors.items():
        if name.endswith("/b"):
            tensor.data.normal_()
    g_s = updatable(small_model.sizes, float_twin(small_model).g_s, F32)
    y_hat = torch.randn(1, 4, 4, small_model.sizes.M)
    functional_call(g_s, update.parameters(), (y_hat,)).square().sum().backward()
    for name, tensor in update.tensors.items():
        assert tensor.grad is not None and (tensor.grad != 0).any(), name
