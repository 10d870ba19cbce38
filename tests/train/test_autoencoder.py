"""Training of the small KL autoencoder, and its export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import photo_like

from service.autoencoders.stored import NumpyAutoencoder, read_autoencoder
from service.codec.sizes import AutoencoderSizes
from service.errors import BadParameter
from service.export.autoencoder import export_autoencoder
from service.nets.autoencoder import KlAutoencoder
from service.store.model import StoredModel
from service.store.read import default_path, load_model
from service.train.autoencoder import AutoencoderRun, coarsely_coded, from_backbone
from service.train.evaluate import psnr_db
from service.train.recipe import BackboneRecipe
from service.train.sampler import Sampler, Source

SIZES = AutoencoderSizes(channels=4, width=8, encoder_blocks=1, decoder_blocks=1)


def sampler(crop: int = 192, batch: int = 2) -> Sampler:
    tiles = torch.from_numpy(np.stack([photo_like(crop, crop, seed=seed) for seed in range(3)]))
    recipe = BackboneRecipe(batch=batch, crop=crop, groups=1, downscaled=0, grain=0, procedural=0)
    return Sampler([Source(tiles, 1.0, True)], recipe)


def new() -> KlAutoencoder:
    torch.manual_seed(1)
    return KlAutoencoder(SIZES)


def steps(run: AutoencoderRun, count: int) -> list[float]:
    """The losses of some steps."""
    losses = []
    for _ in range(count):
        losses.append(float(run.step_once(2e-3)[0]))
    return losses


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses = steps(AutoencoderRun(tmp_path, sampler(), new, 4e-3), 24)
    assert np.median(losses[-8:]) < 0.8 * np.median(losses[:8])


def test_a_batch_may_be_a_single_crop(tmp_path: Path) -> None:
    assert np.isfinite(steps(AutoencoderRun(tmp_path, sampler(batch=1), new, 1e-3), 1)).all()


def test_coarse_codes_keep_what_their_steps_allow() -> None:
    torch.manual_seed(0)
    latents = torch.randn(2, 19, 30, 3, requires_grad=True)
    fine, many = coarsely_coded(latents, torch.full((3,), 0.01))
    assert fine.shape == latents.shape
    assert float((fine - latents).detach().std()) == pytest.approx(0.01, rel=0.15)
    coarse, few = coarsely_coded(latents, torch.tensor([0.01, 0.3, 100.0]))
    assert 0 < float(few.detach()) < float(many.detach())
    errors = (coarse - latents).detach().square().mean((0, 1, 2)).sqrt()
    assert float(errors[0]) < 0.02 and 0.25 < float(errors[1]) < 0.5
    assert not coarse[..., 2].any(), "nothing of the third channel is left"
    coarse.sum().backward()
    assert latents.grad is not None
    assert torch.allclose(latents.grad, torch.ones(()), atol=1e-4), "as if nothing were rounded"


def test_coarse_codes_cost_nothing_for_flat_latents_but_their_mean() -> None:
    flat, bits = coarsely_coded(torch.full((1, 16, 16, 1), 2.0), torch.full((1,), 0.1))
    assert float((flat - 2).abs().max()) < 0.05 and float(bits) < 60


def test_a_run_goes_on_from_its_state_as_if_nothing_had_happened(tmp_path: Path) -> None:
    run = AutoencoderRun(tmp_path, sampler(), new, 2e-3)
    steps(run, 2)
    run.save()
    again = AutoencoderRun(tmp_path, sampler(), new, 2e-3)
    assert again.step == 2
    assert steps(again, 2) == steps(run, 2)
    for one, other in zip(again.average.parameters(), run.average.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_exported_run_decodes_as_its_averaged_weights_do(tmp_path: Path) -> None:
    run = AutoencoderRun(tmp_path / "run", sampler(), new, 2e-3)
    steps(run, 2)
    run.save()
    export_autoencoder(tmp_path / "run", tmp_path / "kl")
    stored = read_autoencoder(tmp_path / "kl")
    assert (stored.name, stored.sizes) == ("kl", SIZES)
    latents = np.random.default_rng(0).normal(0, 1, (5, 6, 4)).astype(np.float32)
    with torch.inference_mode():
        exact = run.average.decode(torch.from_numpy(latents)[None])[0].numpy() + 0.5
    expected = np.rint(np.clip(exact, 0, 1) * 255)
    assert np.abs(NumpyAutoencoder(stored).decode(latents) - expected).max() <= 2
    with pytest.raises(BadParameter, match="holds no run"):
        export_autoencoder(tmp_path / "other", tmp_path / "kl")


def test_a_new_run_starts_with_what_a_backbone_knows() -> None:
    """With 16 channels of the shipped model's layers, a picture is there before any training."""
    model = load_model(default_path() / "light")
    x = torch.from_numpy(photo_like(64, 64, seed=9))[None].float() / 255
    quality = []
    for channels in (1, 16):
        net = from_backbone(model, sampler(64), AutoencoderSizes(channels))
        with torch.inference_mode():
            x_hat = net.decode(net.encode(x - 0.5)[0]) + 0.5
        quality.append(psnr_db(float((x_hat - x).square().mean())))
    assert quality[1] > quality[0] + 3
    assert quality[1] > 20


def test_another_width_than_the_backbone_s_is_refused(small_model: StoredModel) -> None:
    with pytest.raises(BadParameter, match="channels at 1/8"):
        from_backbone(small_model, sampler(64), AutoencoderSizes(4, 7, 1, 1))
