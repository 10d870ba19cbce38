"""Fitting latent streams to a picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_autoencoder import CellMeans
from small_model import photo_like

from service.adapt.latent_start import (
    high_rate_step,
    lmbda_of_quality,
    measure_sensitivity,
    starting_networks,
    weighted_inverse,
)
from service.adapt.overfit import (
    TILE,
    LatentAdaptation,
    LatentTask,
)
from service.autoencoders.interfaces import paint
from service.codec.container import read_stream
from service.codec.overfit import decode_fitted, decode_latents, plain_networks
from service.codec.tiles import Box
from service.errors import BadParameter, MissingExtra
from service.picture import Picture, squared_error

AUTOENCODER = CellMeans("means")


def task(width: int = 72, height: int = 56, **options: object) -> LatentTask:
    values = {"picture": Picture(photo_like(height, width)), "quality16": 80, "steps": 10}
    return LatentTask(**(values | options))  # type: ignore[arg-type]


def run(fit: LatentAdaptation, seconds: float = 1e9) -> bytes:
    while not fit.done:
        fit.advance(seconds)
    return fit.best()


def loss(fit: LatentAdaptation, of: LatentTask) -> tuple[float, float]:
    """R + lmbda·D of the first stream and of the best one."""
    p = fit.progress
    pairs = (p.first_bpp, p.first_psnr_db), (p.bpp, p.psnr_db)
    first, best = (bpp + of.lmbda * 255**2 * 10 ** (-db / 10) for bpp, db in pairs)
    return first, best


@pytest.mark.parametrize("distortion", ["latents", "pixels"])
def test_fitting_lowers_the_loss_and_reports_it(distortion: str) -> None:
    todo = task(320, 200, quality16=96, steps=20, distortion=distortion)
    fit = LatentAdaptation(AUTOENCODER, todo)
    assert (fit.progress.phase, fit.progress.step, fit.progress.total) == ("latents", 0, 20)
    data = run(fit)
    first, best = loss(fit, todo)
    assert best < 0.99 * first
    assert len(data) < 0.97 * fit.progress.first_bytes
    assert (fit.progress.phase, fit.progress.step) == ("done", 20)
    assert fit.progress.bytes == len(data)
    stream = read_stream(data)
    assert stream.overfit is not None
    latents = decode_latents(stream.overfit, 25, 40, 3, AUTOENCODER.networks)
    rgb = paint(AUTOENCODER, latents, Box(0, 0, 200, 320), grey=False)
    squared = float(np.square(rgb.astype(float) - todo.picture.rgb).sum())
    assert fit.progress.psnr_db == pytest.approx(todo.picture.psnr_db(squared), abs=1e-3)


def test_higher_qualities_take_more_bytes_and_have_less_error() -> None:
    fits = [LatentAdaptation(AUTOENCODER, task(quality16=q, steps=0)) for q in (16, 64, 128)]
    assert all(fit.done for fit in fits)
    sizes = [fit.progress.bytes for fit in fits]
    errors = [-fit.progress.psnr_db for fit in fits]
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    assert lmbda_of_quality(80) == pytest.approx(0.0018)


def test_a_fit_goes_on_from_its_checkpoint_as_if_nothing_had_happened() -> None:
    whole = run(LatentAdaptation(AUTOENCODER, task()))
    fit = LatentAdaptation(AUTOENCODER, task())
    for _ in range(7):
        fit.advance(0)
    again = LatentAdaptation(AUTOENCODER, task(), fit.checkpoint())
    assert again.progress == fit.progress
    assert run(again) == whole


def test_a_checkpoint_of_another_task_or_a_damaged_one_is_refused() -> None:
    fit = LatentAdaptation(AUTOENCODER, task())
    fit.advance(0)
    good = fit.checkpoint()
    for other in (task(quality16=48), task(seed=1), task(width=80), task(distortion="pixels")):
        with pytest.raises(BadParameter, match="of another picture"):
            LatentAdaptation(AUTOENCODER, other, good)
    with pytest.raises(BadParameter, match="of another picture"):
        LatentAdaptation(CellMeans("others"), task(), good)
    for bad in (b"", good[:-20], b"x" + good[1:]):
        with pytest.raises(BadParameter, match="damaged"):
            LatentAdaptation(AUTOENCODER, task(), bad)


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (8 * TILE + 40, 24)])
def test_every_size_is_fitted(size: tuple[int, int]) -> None:
    """The last one has two tiles."""
    todo = task(*size, steps=2)
    fit = LatentAdaptation(AUTOENCODER, todo)
    data = run(fit)
    assert fit.progress.step == (4 if size[0] > 8 * TILE else 2)
    header = read_stream(data).header
    assert (header.width, header.height, header.rate) == (*size, 5)


def test_every_tile_of_a_picture_is_coded() -> None:
    rows, columns = TILE + 40, TILE + 5
    small = photo_like(rows, columns)
    picture = Picture(small.repeat(8, 0).repeat(8, 1))
    todo = task(picture=picture, quality16=128, steps=0)
    fit = LatentAdaptation(AUTOENCODER, todo)
    payload = read_stream(fit.best()).overfit
    assert payload is not None
    latents = decode_latents(payload, rows, columns, 3, AUTOENCODER.networks)
    errors = np.square(latents - AUTOENCODER.encode(picture.rgb)).mean(-1)
    places = [slice(0, TILE), slice(TILE, None)]
    tiles = [errors[down, across].mean() for down in places for across in places]
    assert max(tiles) < 0.1 * np.square(AUTOENCODER.encode(picture.rgb)).mean()


def test_grey_pictures_alpha_and_metadata_are_kept() -> None:
    plain = task(steps=0).picture
    alpha = np.zeros(plain.rgb.shape[:2], np.uint8)
    alpha[20:] = 200
    picture = replace(plain, alpha=alpha, icc=b"profile", exif=b"exif")
    fit = LatentAdaptation(AUTOENCODER, task(picture=picture, steps=0))
    stream = read_stream(run(fit))
    assert stream.overfit is not None
    latents = decode_latents(stream.overfit, 7, 9, 3, AUTOENCODER.networks)
    rgb = paint(AUTOENCODER, latents, Box(0, 0, 56, 72), grey=False)
    error = squared_error(rgb, picture.rgb, alpha)
    assert fit.progress.psnr_db == pytest.approx(picture.psnr_db(error))
    assert stream.has_alpha and (stream.icc, stream.exif) == (b"profile", b"exif")
    hidden = picture.rgb.copy()
    hidden[:20] = 255 - hidden[:20]
    other = run(LatentAdaptation(AUTOENCODER, task(picture=replace(picture, rgb=hidden), steps=0)))
    assert read_stream(other).overfit == stream.overfit


def test_time_that_is_over_ends_a_fit() -> None:
    fit = LatentAdaptation(AUTOENCODER, task(steps=10**6, max_seconds=0.2))
    run(fit, 0)
    assert 0 < fit.progress.step < 10**6


def test_an_autoencoder_without_gradients_cannot_be_fitted_to() -> None:
    class Plain:
        name = "plain"

    with pytest.raises(MissingExtra, match="fitting needs torch"):
        LatentAdaptation(Plain(), task())  # type: ignore[arg-type]


def test_the_sensitivity_is_that_of_a_linear_decoder() -> None:
    """A latent of 8×8 equal pixels in units of 32 steps changes them by (32 / 255)² · 64 in all."""
    latents = torch.zeros(20, 30, 3)
    matrix = measure_sensitivity(AUTOENCODER, latents, 80)
    expected = 64 * (32 / 255) ** 2 * torch.eye(3)
    assert torch.allclose(matrix.diagonal(), expected.diagonal(), rtol=0.2)
    assert torch.allclose(matrix, expected, atol=0.1 * float(expected[0, 0]))


def test_the_sensitivity_is_scaled_to_what_coarse_latents_show() -> None:
    """Of a square root, the local slope at z says a quarter of what an error of -z shows."""

    class Root(CellMeans):
        def decode_tensor(self, latents: torch.Tensor) -> torch.Tensor:
            return super().decode_tensor(latents.sign() * latents.abs().sqrt())

    latents = torch.full((20, 30, 3), 0.25)
    latents[::2] = -0.25
    matrix = measure_sensitivity(Root("root"), latents, 16)
    # The slope at 0.25 is 1; at quality 1 all latents are rounded to their mean, 0.
    expected = 4 * 64 * (32 / 255) ** 2
    assert torch.allclose(matrix.diagonal(), torch.tensor(expected), rtol=0.2)


def test_plain_networks_take_the_steps_that_the_high_rate_rule_says() -> None:
    sensitivity = torch.diag(torch.tensor([4.0, 1.0, 0.25]))
    target = torch.ones(4, 4, 3)
    networks = starting_networks(plain_networks(3), target, sensitivity, 80)
    steps = 2.0 ** (networks.tensors["gain"][:3] / 4)
    expected = high_rate_step(80) * np.array([0.5, 1, 2])
    assert np.allclose(np.log2(steps), np.log2(expected), atol=0.13)
    assert np.allclose(networks.weight("syn.b2"), 1, atol=1e-3)


def test_the_weighted_inverse_undoes_a_matrix() -> None:
    torch.manual_seed(0)
    matrix, weight = torch.randn(5, 3), torch.diag(torch.rand(5) + 0.1)
    assert torch.allclose(weighted_inverse(matrix, weight) @ matrix, torch.eye(3), atol=1e-3)


def test_the_stream_holds_the_grids_that_were_fitted() -> None:
    data = run(LatentAdaptation(AUTOENCODER, task()))
    payload = read_stream(data).overfit
    assert payload is not None
    values = decode_fitted(payload, 7, 9, AUTOENCODER.networks).values
    assert values[0] is not None and values[0].shape == (7, 9) and values[0].any()
