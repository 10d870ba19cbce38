"""At edges, and with straight latents, every runtime gives what the float model gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import photo_like, small_stored_model

from service.codec.sizes import ConvSizes
from service.codec.tiles import PATCH, latent_box
from service.nets.backbone import Depthwise
from service.nets.model import Backbone
from service.nets.twin import float_twin
from service.picture import U8, Picture
from service.runtime.pipeline import pixels_under
from service.store.model import StoredModel
from service.transforms.analysis_onnx import OnnxTransforms
from service.transforms.interfaces import AnalysisTransform, SynthesisTransform, whole_cells
from service.transforms.synthesis_numpy import NumpySynthesis
from service.transforms.synthesis_onnx import CELL, OnnxSynthesis
from service.transforms.synthesis_torch import TorchSynthesis, TorchTransforms

STRAIGHT = ConvSizes(M=28, Cz=8, c8=16, c16=20, ne8=2, ne16=2, nd8=2, nd16=1, cp=16, cc=16)
"""With straight latents, and a number of channels that no blocked layout divides."""

NONE = replace(STRAIGHT, M=20)
"""All latents go through the blocks at 1/16."""

UNIT = 64
"""2^Y_FRAC: y_hat is given in these parts."""

GRIDS = [(1, 1), (1, 6), (5, 1), (2, 2), (5, 7)]

SYNTHESES: dict[str, Callable[[StoredModel], SynthesisTransform]] = {
    "numpy": NumpySynthesis,
    "torch": lambda model: TorchSynthesis(model, torch.device("cpu"), torch.float32),
    "onnx": OnnxSynthesis,
}
ANALYSES: dict[str, Callable[[StoredModel], AnalysisTransform]] = {
    "torch": lambda model: TorchTransforms(model, torch.device("cpu"), torch.float32),
    "onnx": OnnxTransforms,
}


@pytest.fixture(scope="module", params=[STRAIGHT, NONE], ids=["straight", "none"])
def model(request: pytest.FixtureRequest) -> StoredModel:
    return small_stored_model(request.param)[0]


@pytest.fixture(scope="module")
def witness(model: StoredModel) -> Backbone:
    """The float model in float64, its depthwise layers replaced by sums over clamped places."""
    twin = float_twin(model).double()
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Depthwise):
                setattr(module, name, Clamped(child))
    return twin


class Clamped(torch.nn.Module):
    """out[i, j] is the sum over taps of x[clamp(i + dy), clamp(j + dx)]."""

    def __init__(self, layer: Depthwise) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, H, W, C] -> the same."""
        rows, columns = (torch.arange(n) for n in x.shape[1:3])
        assert self.layer.bias is not None
        out = torch.zeros_like(x) + self.layer.bias
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                row = (rows + dy).clamp(0, len(rows) - 1)
                column = (columns + dx).clamp(0, len(columns) - 1)
                tap = self.layer.weight[:, 0, dy + 1, dx + 1]
                out = out + x[:, row][:, :, column] * tap
        return out


def some_latents(sizes: ConvSizes, height: int, width: int) -> np.ndarray:
    """Random y_hat, [height, width, M]."""
    rng = np.random.default_rng(height * 10 + width)
    return rng.integers(-3 * UNIT, 3 * UNIT, (height, width, sizes.M), np.int16)


def off(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.shape == other.shape
    return np.abs(one.astype(float) - other)


@pytest.mark.parametrize("runtime", SYNTHESES)
@pytest.mark.parametrize("grid", GRIDS)
def test_pixels_are_those_of_the_float_model(
    model: StoredModel, witness: Backbone, runtime: str, grid: tuple[int, int]
) -> None:
    y_hat = some_latents(model.sizes, *grid)
    with torch.no_grad():
        x_hat = witness.g_s(torch.from_numpy(y_hat)[None].double() / UNIT)[0] + 0.5
    expected = (x_hat * 255).clamp(0, 255).numpy()
    assert 0.1 < ((expected > 0) & (expected < 255)).mean(), "this test sees pixels in range"
    found = SYNTHESES[runtime](model).synthesise(y_hat)
    assert off(found, expected).max() < 0.501


@pytest.mark.parametrize("runtime", ANALYSES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (75, 106), (128, 17)])
def test_latents_of_pictures_are_those_of_the_float_model(
    model: StoredModel, witness: Backbone, runtime: str, height: int, width: int
) -> None:
    pixels = pixels_under(Picture(photo_like(height, width, 5)), latent_box(width, height))
    with torch.no_grad():
        y = witness.g_a(torch.from_numpy(pixels)[None].double() / 255 - 0.5)
        z = witness.h_a(torch.from_numpy(whole_cells(y.numpy()))).numpy()
    analysis = ANALYSES[runtime](model)
    found = analysis.analyse(pixels)
    assert off(found, y[0].numpy()).max() < 1e-5 * y.abs().max()
    assert off(analysis.hyper_analyse(found[None]), z).max() < 1e-5 * np.abs(z).max()


@pytest.mark.parametrize("runtime", SYNTHESES)
def test_what_is_equal_everywhere_stays_so_up_to_the_edges(
    model: StoredModel, runtime: str
) -> None:
    """No frame around a plain picture: all 8×8 cells are equal where a latent's four start so."""
    s = model.sizes
    up = f"g_s.{1 + s.nd16}.l"
    alike = {
        f"{up}.{part}": np.concatenate([model.transforms[f"{up}.{part}"][: s.c8]] * 4)
        for part in ("weight", "bias")
    }
    plain = replace(model, transforms=model.transforms | alike)
    y_hat = np.tile(some_latents(s, 1, 1), (5, 7, 1))
    found = SYNTHESES[runtime](plain).synthesise(y_hat)
    cells = found.reshape(10, CELL, 14, CELL, 3).swapaxes(1, 2).astype(int)
    assert np.ptp(cells, axis=(0, 1)).max() <= 1
    assert cells.std() > 5, "this test sees a pattern"


@pytest.mark.parametrize("runtime", ANALYSES)
def test_a_plain_picture_has_equal_latents_up_to_the_edges(
    model: StoredModel, runtime: str
) -> None:
    pixels: U8 = np.full((80, 112, 3), (250, 30, 60), np.uint8)
    y = ANALYSES[runtime](model).analyse(pixels)
    assert np.ptp(y, axis=(0, 1)).max() < 1e-5 * np.abs(y).max()


@pytest.mark.parametrize("runtime", SYNTHESES)
def test_straight_latents_reach_what_blocks_at_an_eighth_reach(runtime: str) -> None:
    """2 blocks at 1/8 see 16 pixels around a patch; one at 1/16 before them, 16 more."""
    stored = small_stored_model(STRAIGHT)[0]
    synthesis = SYNTHESES[runtime](stored)
    y_hat = some_latents(STRAIGHT, 7, 7)
    before = synthesis.synthesise(y_hat)
    for channels, patches in ((slice(STRAIGHT.c16, None), 1), (slice(STRAIGHT.c16), 2)):
        changed = y_hat.copy()
        changed[3, 3, channels] += 8 * UNIT
        rows, columns = np.nonzero((synthesis.synthesise(changed) != before).any(-1))
        for places in (rows, columns):
            assert places.min() // PATCH == 3 - patches
            assert places.max() // PATCH == 3 + patches


@pytest.mark.parametrize("runtime", ANALYSES)
def test_straight_latents_see_what_blocks_at_an_eighth_see(runtime: str) -> None:
    analysis = ANALYSES[runtime](small_stored_model(STRAIGHT)[0])
    pixels = photo_like(112, 112, 2)
    before = analysis.analyse(pixels)
    pixels[48:64, 48:64] ^= 255
    moved = np.abs(analysis.analyse(pixels) - before) > 1e-6 * np.abs(before).max()
    for channels, patches in ((slice(STRAIGHT.c16, None), 1), (slice(STRAIGHT.c16), 3)):
        rows, columns = np.nonzero(moved[..., channels].any(-1))
        assert (rows.min(), rows.max()) == (columns.min(), columns.max())
        assert (rows.min(), rows.max()) == (3 - patches, 3 + patches)


def test_bfloat16_keeps_edges_and_straight_latents_too(
    model: StoredModel, witness: Backbone
) -> None:
    y_hat = some_latents(model.sizes, 3, 4)
    with torch.no_grad():
        x_hat = witness.g_s(torch.from_numpy(y_hat)[None].double() / UNIT)[0] + 0.5
    expected = (x_hat * 255).clamp(0, 255).numpy()
    runtime = TorchSynthesis(model, torch.device("cpu"), torch.bfloat16)
    assert off(runtime.synthesise(y_hat), expected).mean() < 1
