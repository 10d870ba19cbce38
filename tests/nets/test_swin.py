"""Window attention: its reach, its edges, its prompts, against attention written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.codec.sizes import SHIFT, WINDOW, ConvSizes, SwinSizes
from service.codec.tiles import Box
from service.errors import BadParameter
from service.nets.families import new_prompts
from service.nets.model import Backbone
from service.nets.prompts import Prompt
from service.nets.swin import SwinLayer, Windows, normed

SMALL = SwinSizes(M=40, Cz=4, c16=32, cp=8, cc=8, c4=32, c8=32)


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random weights everywhere, so that no branch is zero."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in module.named_parameters():
            parameter.normal_(0, 0.4 if name.endswith("position") else 0.12)
    return module.requires_grad_(False)


def some(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_attention(layer: SwinLayer, x: np.ndarray, prompts: np.ndarray | None) -> np.ndarray:
    """The attention of one picture [h, w, C], token by token, as the module's text describes it."""
    h, w, c = x.shape
    weight, bias = layer.qkv.weight.numpy(), layer.qkv.bias.numpy()
    position = layer.position.numpy()
    out = np.empty_like(x)

    def window(row: int, column: int) -> tuple[int, int]:
        return (row + WINDOW - layer.shift) // WINDOW, (column + WINDOW - layer.shift) // WINDOW

    cells = [(r, q) for r in range(h) for q in range(w)]
    for r, q in cells:
        keys = [(a, b) for a, b in cells if window(a, b) == window(r, q)]
        tokens = [x[a, b] for a, b in keys]
        offsets = [(r - a + WINDOW - 1) * (2 * WINDOW - 1) + q - b + WINDOW - 1 for a, b in keys]
        logit_bias = position[:, offsets]
        if prompts is not None:
            under = [
                (a, b)
                for a in range(prompts.shape[0])
                for b in range(prompts.shape[1])
                if window(2 * a, 2 * b) == window(r, q)
            ]
            tokens += [prompts[a, b] for a, b in under]
            logit_bias = np.concatenate([logit_bias, np.zeros((c // 32, len(under)))], 1)
        query = weight[:c] @ x[r, q] + bias[:c]
        keys_values = np.stack(tokens) @ weight[c:].T + bias[c:]
        result = np.empty(c)
        for head in range(c // 32):
            part = slice(32 * head, 32 * head + 32)
            logits = keys_values[:, :c][:, part] @ query[part] / 32**0.5 + logit_bias[head]
            weights = np.exp(logits - logits.max())
            result[part] = weights / weights.sum() @ keys_values[:, c:][:, part]
        out[r, q] = layer.out.weight.numpy() @ result + layer.out.bias.numpy()
    return out


@pytest.mark.parametrize("shift", (0, SHIFT))
@pytest.mark.parametrize("size", ((16, 8), (11, 13), (3, 1)))
def test_a_layer_attends_as_written_out_token_by_token(size: tuple[int, int], shift: int) -> None:
    layer = shaken(SwinLayer(64, shift))
    assert isinstance(layer, SwinLayer)
    x = normed(some(1, *size, 64))
    values = some(1, -(-size[0] // 2), -(-size[1] // 2), 64, seed=2)
    windows = Windows.of(*size, shift, x.device)
    for prompt in (None, Prompt(values, torch.zeros(()))):
        expected = reference_attention(
            layer, x[0].numpy(), None if prompt is None else values[0].numpy()
        )
        found = layer.attend(x, windows, prompt)
        assert np.allclose(found[0].numpy(), expected, atol=2e-5)


def backbone(seed: int = 0) -> Backbone:
    net = shaken(Backbone(SMALL, nn.Linear), seed)
    assert isinstance(net, Backbone)
    return net


def prompted(net: Backbone, log_weight: float = 0.0) -> Backbone:
    net.attach_prompts()
    for network in (net.g_a, net.g_s):
        prompts = network.prompts
        assert isinstance(prompts, nn.Module)
        shaken(prompts, 3)
        prompts.log_weight.fill_(log_weight)
    return net


def test_a_part_that_begins_at_whole_windows_gives_the_latents_of_the_whole() -> None:
    """The reach of a cut is at most the halo, with prompts too, at odd sizes."""
    net = prompted(backbone())
    whole = Box(0, 0, 45, 37)
    x = some(1, 16 * whole.height, 16 * whole.width, 3) * 0.3
    y = net.g_a(x)
    inner = Box(16, 16, 24, 24)
    window = SMALL.read_by(inner, whole)
    assert window == Box(0, 0, 40, 37)
    part = net.g_a(x[:, : 16 * window.bottom])
    assert torch.allclose(part[:, 16:24], y[:, 16:24], atol=1e-5)
    beyond = net.g_a(x[:, : 16 * (window.bottom - WINDOW)])
    assert not torch.allclose(beyond[:, 16:24], y[:, 16:24], atol=1e-5)  # the halo is needed
    x_hat = net.g_s(y)
    part = net.g_s(y[:, : window.bottom])
    assert torch.allclose(part[:, 256:384], x_hat[:, 256:384], atol=1e-5)


def test_windows_are_read_whole_and_lie_where_they_lie_in_the_picture() -> None:
    whole = Box(0, 0, 200, 190)
    for inner in (Box(3, 5, 4, 6), Box(64, 64, 128, 128), Box(199, 189, 200, 190)):
        window = SMALL.read_by(inner, whole)
        assert window.top % WINDOW == window.left % WINDOW == 0
        assert window.top <= max(0, inner.top - SMALL.halo)
        assert window.bottom >= min(whole.bottom, inner.bottom + SMALL.halo)


@pytest.mark.parametrize("size", ((1, 1), (7, 3), (8, 16), (9, 17)))
def test_any_size_of_picture_has_latents_and_pixels(size: tuple[int, int]) -> None:
    net = prompted(backbone())
    y = net.g_a(some(2, 16 * size[0], 16 * size[1], 3))
    assert y.shape == (2, *size, SMALL.M) and torch.isfinite(y).all()
    x_hat = net.g_s(y)
    assert x_hat.shape == (2, 16 * size[0], 16 * size[1], 3) and torch.isfinite(x_hat).all()


def test_prompts_without_weight_change_nothing() -> None:
    plain, silent, loud = backbone(), prompted(backbone(), -torch.inf), prompted(backbone())
    x = some(1, 160, 112, 3)
    y = plain.g_a(x)
    assert torch.equal(silent.g_a(x), y)
    assert torch.equal(silent.g_s(y), plain.g_s(y))
    assert not torch.allclose(loud.g_a(x), y, atol=1e-2)
    assert not torch.allclose(loud.g_s(y), plain.g_s(y), atol=1e-2)


def test_pictures_of_a_batch_do_not_touch_one_another() -> None:
    net = prompted(backbone())
    x = some(3, 48, 176, 3)
    alone = torch.cat([net.g_a(one[None]) for one in x])
    assert torch.allclose(net.g_a(x), alone, atol=1e-5)


def test_only_a_swin_backbone_takes_prompts() -> None:
    with pytest.raises(BadParameter, match="family conv, only swin takes prompts"):
        new_prompts(ConvSizes())
