"""What a token attends to in its window, with prompts and without."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import photo_like, random_backbone
from torch import nn

from service.codec.sizes import SwinSizes
from service.codec.tiles import Box
from service.errors import BadParameter
from service.maps.attention import WindowAttention, draw_attention
from service.maps.swin_attention import TOKEN_PIXELS, window_attention
from service.nets.model import Backbone
from service.nets.prompts import AnalysisPrompts
from service.nets.swin import SwinAnalysis
from service.picture import Picture

SIZES = SwinSizes(M=32, Cz=4, c16=32, cp=8, cc=8, c4=32, c8=32, layers=2)
WIDE = Picture(photo_like(300, 760, 3))


@pytest.fixture(scope="module")
def swin() -> Backbone:
    """A small backbone of window attention with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Backbone(SIZES, nn.Linear).eval().requires_grad_(False)
        assert isinstance(model.g_a, SwinAnalysis)
        for name, weights in model.g_a.named_parameters():
            if name.endswith("weight"):
                nn.init.orthogonal_(weights)
            if name.endswith("position"):
                weights.normal_()
    return model


def prompts(log_weight: float = 0.0) -> AnalysisPrompts:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = AnalysisPrompts(SIZES).requires_grad_(False)
    made.log_weight.fill_(log_weight)
    return made


def attend(swin: Backbone, made: AnalysisPrompts | None, *where: object) -> WindowAttention:
    assert isinstance(swin.g_a, SwinAnalysis)
    swin.g_a.prompts = made
    return window_attention(swin, *where)  # type: ignore[arg-type]


def total(one: WindowAttention) -> float:
    return float(np.nansum(one.tokens)) + one.prompt_share


@pytest.mark.parametrize("stage", TOKEN_PIXELS)
@pytest.mark.parametrize("size", [(300, 760), (17, 33), (1, 1)])
def test_weights_of_a_window_sum_to_1_and_the_query_lies_under_the_pixel(
    swin: Backbone, stage: str, size: tuple[int, int]
) -> None:
    height, width = size
    picture = Picture(WIDE.rgb[:height, :width])
    for at in {(0, 0), (width - 1, height - 1), (width // 2, height // 2), (width // 3, 0)}:
        one = attend(swin, prompts(), picture, at, stage)
        assert total(one) == pytest.approx(1, abs=1e-5)
        assert 0.01 < one.prompt_share < 0.9 and not np.isnan(one.tokens[one.query])
        side = TOKEN_PIXELS[stage]
        row, column = (n * side for n in one.query)
        token = Box(row, column, row + side, column + side)
        assert not token.cut(Box(at[1], at[0], at[1] + 1, at[0] + 1).relative(one.pixels)).empty
        rows = one.pixels.top + side * np.arange(8)
        outside = (rows < 0) | (rows >= -(-height // 16) * 16)
        assert np.isnan(one.tokens[outside]).all()


def test_prompts_of_no_weight_have_no_share_and_change_nothing(swin: Backbone) -> None:
    without = attend(swin, None, WIDE, (300, 100))
    masked = attend(swin, prompts(-math.inf), WIDE, (300, 100))
    shown = attend(swin, prompts(), WIDE, (300, 100))
    assert without.prompts is None and without.prompt_share == masked.prompt_share == 0
    assert masked.prompts is not None and not masked.prompts.any()
    assert np.allclose(masked.tokens, without.tokens, atol=1e-6)
    assert not np.allclose(shown.tokens, without.tokens, atol=1e-3)
    assert total(without) == pytest.approx(1, abs=1e-5)


def test_the_part_that_is_analysed_gives_what_the_whole_picture_does(
    swin: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [(100, 150), (5, 290), (700, 20)]
    parts = [attend(swin, prompts(), WIDE, at, "stage16") for at in places]
    reads = [SIZES.read_by(Box(9, 6, 10, 7), Box(0, 0, 19, 48))]
    assert reads[0].width < 48, "less than the whole is read"
    monkeypatch.setattr(SwinSizes, "read_by", lambda _, __, within: within)
    for at, part in zip(places, parts, strict=True):
        whole = attend(swin, prompts(), WIDE, at, "stage16")
        assert (whole.pixels, whole.query) == (part.pixels, part.query)
        assert np.allclose(whole.tokens, part.tokens, atol=1e-5, equal_nan=True)


def test_the_figure_has_a_panel_for_each_rate_and_its_declared_size(swin: Backbone) -> None:
    sizes = []
    for count in (1, 3, 8):
        windows = {
            1.0 + n: attend(swin, prompts() if n else None, WIDE, (0, 0)) for n in range(count)
        }
        figure = draw_attention(WIDE, windows)
        with Image.open(io.BytesIO(figure.data)) as image:
            assert image.format == "PNG" and image.size == (figure.width, figure.height)
        sizes.append(figure.width * figure.height)
    assert sizes == sorted(sizes)


def test_a_model_of_convolutions_has_no_attention() -> None:
    with pytest.raises(BadParameter, match="of family conv, expected swin"):
        window_attention(random_backbone(), WIDE, (0, 0))
