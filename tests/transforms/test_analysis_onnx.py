"""g_a and h_a through ONNX Runtime give torch's latents; servers choose by what their CPU has."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from small_ladder import with_rates
from small_model import photo_like

from service.adapt.adaptation import PictureAdaptation
from service.adapt.plan import AdaptationPlan
from service.adapt.task import AdaptationTask
from service.codec.container import read_stream
from service.codec.tiles import Box
from service.engine.engine import Engine
from service.picture import Picture
from service.runtime.loading import batch_for, load_models, transforms_of
from service.runtime.pipeline import LoadedModel, decode_latents
from service.store.model import StoredModel
from service.store.read import load_store
from service.transforms.analysis_onnx import OnnxTransforms
from service.transforms.entropy_onnx import OnnxEntropyModel
from service.transforms.synthesis_torch import TorchTransforms


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


def test_latents_are_those_of_torch_at_every_size(
    small_model: StoredModel, loaded: LoadedModel
) -> None:
    transforms, torchs = OnnxTransforms(small_model), loaded.analysis
    assert torchs is not None
    for height, width in ((16, 16), (16, 112), (80, 16), (48, 32), (144, 208)):
        pixels = photo_like(height, width, 3)
        y, expected = transforms.analyse(pixels), torchs.analyse(pixels)
        assert y.shape == expected.shape and y.dtype == np.float32
        assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()
        z, expected = transforms.hyper_analyse(y[None]), torchs.hyper_analyse(y[None])
        assert z.shape == expected.shape and z.dtype == np.float32
        assert np.abs(z - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_shipped_backbone_has_the_same_latents_too() -> None:
    model = load_store()[0]
    pixels = photo_like(96, 64, 1)
    torchs = TorchTransforms(model, torch.device("cpu"), torch.float32)
    y, expected = OnnxTransforms(model).analyse(pixels), torchs.analyse(pixels)
    assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_number_of_threads_changes_no_bit(small_model: StoredModel) -> None:
    one, two = (OnnxTransforms(small_model, threads) for threads in (1, 2))
    pixels = photo_like(144, 208, 3)
    y = one.analyse(pixels)
    assert np.array_equal(two.analyse(pixels), y)
    assert np.array_equal(two.hyper_analyse(y[None]), one.hyper_analyse(y[None]))


@pytest.mark.usefixtures("no_bfloat16")
def test_a_cpu_with_bfloat16_runs_torch_and_one_without_onnx_runtime(
    small_model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = load_models((small_model,), "cpu", None)
    assert transforms_of(model) == "onnxruntime.float32" and batch_for(model) == 1
    assert isinstance(model.coder.entropy, OnnxEntropyModel)
    (asked,) = load_models((small_model,), "cpu", torch.float32)
    assert transforms_of(asked) == "torch.float32", "asked for a type, it is torch that runs in it"
    for capability in ("amx_bf16", "avx512_bf16", "bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capability: {c: True})
        (model,) = load_models((small_model,), "cpu", None)
        assert transforms_of(model) == "torch.bfloat16"


@pytest.mark.usefixtures("no_bfloat16")
def test_without_onnx_runtime_torch_runs_in_float32(
    small_model: StoredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "service.transforms.analysis_onnx")
    monkeypatch.setitem(sys.modules, "service.transforms.onnx_session", None)
    (model,) = load_models((small_model,), "cpu", None)
    assert transforms_of(model) == "torch.float32"


@pytest.mark.usefixtures("no_bfloat16")
def test_every_rate_is_served_and_its_streams_decode_anywhere(
    small_model: StoredModel, photo: Picture
) -> None:
    ladder = with_rates(small_model, (3, 5))
    (model,), (torchs,) = (load_models((ladder,), "cpu", d) for d in (None, torch.float32))
    assert transforms_of(model) == "onnxruntime.float32"
    engine, other = Engine((model,)), Engine((torchs,))
    engine.self_test()
    for rate in (3, 3.5, 4, 5):
        made = engine.compress(photo, rate)
        expected = other.compress(photo, rate)
        assert made.psnr_db == pytest.approx(expected.psnr_db, abs=0.01)
        assert len(made.data) == pytest.approx(len(expected.data), abs=8)
        pixels, expected_pixels = (e.decompress(made.data).picture.rgb for e in (engine, other))
        assert np.abs(pixels.astype(int) - expected_pixels).max() <= 1
    stream = read_stream(engine.compress(photo, 4).data)
    everything = Box(0, 0, photo.height, photo.width)
    ours, theirs = (decode_latents(m, stream, everything).y_hat for m in (model, torchs))
    assert np.array_equal(ours, theirs)


@pytest.mark.usefixtures("no_bfloat16")
def test_it_adapts_to_a_picture(small_model: StoredModel) -> None:
    (model,) = load_models((small_model,), "cpu", None)
    picture = Picture(photo_like(40, 56, 2))
    job = AdaptationTask(picture, 64, 0.05, AdaptationPlan(4, 4, rank=1, latent_lr=2e-2), seed=3)
    adaptation = PictureAdaptation(model, job)
    adaptation.advance(math.inf)
    engine = Engine((model,))
    assert adaptation.progress.first_bytes == len(engine.compress(picture, 4).data)
    assert engine.decompress(adaptation.best()).picture.width == picture.width
