"""Autoencoders of latent streams: in the store, of a model, and of diffusers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Small
from safetensors.numpy import load, save
from small_ladder import with_rates
from small_model import photo_like

from service.autoencoders.interfaces import (
    Autoencoder,
    DifferentiableAutoencoder,
    encode_picture,
    latents_shape,
    paint,
)
from service.autoencoders.kl import TorchAutoencoder
from service.autoencoders.own import OwnAutoencoder
from service.autoencoders.registry import Autoencoders, open_autoencoders
from service.autoencoders.stored import (
    NETWORKS,
    WEIGHTS,
    NumpyAutoencoder,
    StoredAutoencoder,
    read_autoencoder,
)
from service.codec.overfit import plain_networks
from service.codec.sizes import AutoencoderSizes
from service.codec.tiles import Box
from service.errors import (
    BadParameter,
    MissingExtra,
    ModelUnavailable,
    StoreError,
    TooManyPixels,
    UnknownModel,
)
from service.nets.autoencoder import KlAutoencoder
from service.picture import Picture
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.latent_networks import write_networks
from service.store.model import StoredModel

SIZES = AutoencoderSizes(channels=4, width=12, encoder_blocks=1, decoder_blocks=2)
CPU = torch.device("cpu")


def write_small(folder: Path) -> Path:
    """A KL autoencoder with random weights in a folder."""
    torch.manual_seed(0)
    net = KlAutoencoder(SIZES)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder.mkdir(parents=True)
    weights = {n: t.numpy().astype(np.float16) for n, t in net.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(weights))
    (folder / NETWORKS).write_bytes(write_networks(plain_networks(SIZES.channels)))
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredAutoencoder:
    return read_autoencoder(write_small(tmp_path_factory.mktemp("store") / "kl"))


def picture(width: int, height: int) -> Picture:
    return Picture(photo_like(height, width))


def test_numpy_and_torch_decode_alike(stored: StoredAutoencoder) -> None:
    latents = np.random.default_rng(0).normal(0, 1, (9, 7, SIZES.channels)).astype(np.float32)
    one, other = NumpyAutoencoder(stored), TorchAutoencoder(stored, CPU)
    difference = one.decode(latents).astype(int) - other.decode(latents)
    assert one.decode(latents).shape == (72, 56, 3)
    assert np.abs(difference).max() <= 1
    inner = Box(2, 1, 5, 6)
    assert np.array_equal(one.decode(latents, inner), one.decode(latents)[16:40, 8:48])
    exact = other.decode_tensor(torch.from_numpy(latents)[None])[0].numpy()
    rounded = np.rint(np.clip(exact, 0, 1) * 255)
    assert np.abs(rounded - other.decode(latents)).max() <= 1


def test_numpy_only_decodes(stored: StoredAutoencoder) -> None:
    with pytest.raises(MissingExtra, match="8x16 pixels with autoencoder kl needs torch"):
        NumpyAutoencoder(stored).encode(np.zeros((16, 8, 3), np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (40, 24), (700, 90)])
def test_windows_give_what_the_whole_picture_gives(
    stored: StoredAutoencoder, size: tuple[int, int]
) -> None:
    autoencoder, image = TorchAutoencoder(stored, CPU), picture(*size)
    latents = encode_picture(autoencoder, image)
    assert latents.shape[:2] == latents_shape(autoencoder, *size)
    pad = (-image.height % 8, -image.width % 8)
    whole = np.pad(image.rgb, ((0, pad[0]), (0, pad[1]), (0, 0)), mode="edge")
    assert np.allclose(latents, autoencoder.encode(whole), atol=1e-4)
    box = Box(0, 0, image.height, image.width)
    painted = paint(autoencoder, latents, box, grey=False)
    direct = autoencoder.decode(latents)[: image.height, : image.width]
    assert np.abs(painted.astype(int) - direct).max() <= 1
    part = Box(image.height // 3, image.width // 4, image.height, image.width)
    assert np.array_equal(paint(autoencoder, latents, part, grey=False), painted[part.slices])
    assert np.ptp(paint(autoencoder, latents, box, grey=True), axis=-1).max() == 0


def test_colours_under_alpha_0_do_not_matter(stored: StoredAutoencoder) -> None:
    image = picture(32, 32)
    alpha = np.full((32, 32), 255, np.uint8)
    alpha[:16] = 0
    other = image.rgb.copy()
    other[:16] = 255 - other[:16]
    autoencoder = TorchAutoencoder(stored, CPU)
    one = encode_picture(autoencoder, replace(image, alpha=alpha))
    assert np.array_equal(one, encode_picture(autoencoder, replace(image, rgb=other, alpha=alpha)))


def test_the_identity_is_of_all_weights_and_of_the_networks(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "kl")
    first = read_autoencoder(folder).identity
    tensors = {n: t.copy() for n, t in load((folder / WEIGHTS).read_bytes()).items()}
    tensors["decoder.3.l.bias"][0] += np.float16(0.5)
    (folder / WEIGHTS).write_bytes(save(tensors))
    second = read_autoencoder(folder).identity
    (folder / NETWORKS).write_bytes(write_networks(plain_networks(SIZES.channels, n=9)))
    assert len({first, second, read_autoencoder(folder).identity}) == 3


def test_a_damaged_autoencoder_is_refused(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "kl")
    good = (folder / WEIGHTS).read_bytes()
    tensors = load(good)
    wrong = {
        "cut": good[:-9],
        "no file of tensors": b"x" * 100,
        "a tensor is missing": save({n: t for n, t in tensors.items() if n != "encoder.0.l.bias"}),
        "another shape": save(
            tensors | {"decoder.1.dw.weight": np.zeros((12, 1, 5, 5), np.float16)}
        ),
        "one too many": save(tensors | {"more": np.zeros(1, np.float16)}),
        "not finite": save(tensors | {"decoder.0.bias": np.full(12, np.inf, np.float16)}),
    }
    for data in wrong.values():
        (folder / WEIGHTS).write_bytes(data)
        with pytest.raises(StoreError):
            read_autoencoder(folder)
    (folder / WEIGHTS).write_bytes(good)
    (folder / NETWORKS).write_bytes(write_networks(plain_networks(SIZES.channels + 1)))
    with pytest.raises(StoreError, match="tensors"):
        read_autoencoder(folder)
    (folder / NETWORKS).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        read_autoencoder(folder)


def test_a_model_s_transforms_are_an_autoencoder(loaded: LoadedModel, small: Small) -> None:
    own = OwnAutoencoder(loaded, None)
    image = picture(40, 33)
    latents = encode_picture(own, image)
    assert latents.shape == (3, 3, small.stored.sizes.M)
    box = Box(0, 0, image.height, image.width)
    painted = paint(own, latents, box, grey=False)
    with_gradients = own.decode_tensor(torch.from_numpy(latents)[None])[0].numpy()
    rounded = np.rint(np.clip(with_gradients, 0, 1) * 255)[:33, :40]
    assert np.abs(rounded - painted).max() <= 2
    networks = write_networks(plain_networks(own.channels, n=5))
    assert OwnAutoencoder(loaded, networks).identity != own.identity
    hostile = latents.copy()
    hostile[0, 0] = np.nan
    hostile[1, 1] = 1e30
    assert own.decode(hostile).shape == (48, 48, 3)


def test_a_model_s_own_autoencoder_is_that_of_its_lowest_rate(
    small_model: StoredModel, tmp_path: Path
) -> None:
    """With torch and without; its networks are found by the identity at that rate."""
    ladder = with_rates(small_model, (3, 6))
    identity = ladder.at_rate(3 * 16).identity
    file = tmp_path / "autoencoders" / "own" / f"{identity.hex()[:16]}.safetensors"
    file.parent.mkdir(parents=True)
    networks = plain_networks(small_model.sizes.M, n=5)
    file.write_bytes(write_networks(networks))
    with_torch = load_models((ladder,), "cpu", torch.float32)
    full = open_autoencoders(tmp_path, with_torch, "cpu", decode_only=False)
    light = open_autoencoders(tmp_path, load_decode_only((ladder,)), "cpu", decode_only=True)
    own = full.named("own")
    assert own.identity == light.named("own").identity
    assert own.networks.tensors["ar.b2"].shape == networks.tensors["ar.b2"].shape
    image = picture(40, 33)
    latents = encode_picture(own, image)
    box = Box(0, 0, image.height, image.width)
    shown = [paint(one, latents, box, False).astype(int) for one in (own, light.named("own"))]
    assert np.abs(shown[0] - shown[1]).max() <= 1
    base = OwnAutoencoder(load_models((small_model,), "cpu", torch.float32)[0], None)
    assert np.abs(shown[0] - paint(base, latents, box, False)).max() > 1, "other weights"


def test_autoencoders_are_found_by_name_and_by_identity(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    write_small(tmp_path / "autoencoders" / "kl")
    known = open_autoencoders(tmp_path, (loaded,), "cpu", decode_only=False)
    assert known.names() == ("own", "kl")
    assert known.named(None) is known.named("own")
    for name in known.names():
        one = known.named(name)
        assert known.of_stream(one.identity[:4]) is one
    with pytest.raises(ModelUnavailable, match="'x', expected one of own, kl"):
        known.named("x")
    with pytest.raises(UnknownModel, match="needs autoencoder 01020304"):
        known.of_stream(bytes([1, 2, 3, 4]))
    light = open_autoencoders(tmp_path, (loaded,), "cpu", decode_only=True)
    assert type(light.named("kl")) is NumpyAutoencoder
    assert light.named("kl").identity == known.named("kl").identity
    (tmp_path / "vae").mkdir()
    more = open_autoencoders(tmp_path, (loaded,), "cpu", True, [str(tmp_path / "vae")])
    with pytest.raises(MissingExtra, match="rankpress\\[vae\\]"):
        more.named("vae")
    with pytest.raises(UnknownModel, match="vae .which needs more packages"):
        more.of_stream(bytes(4))
    with pytest.raises(ModelUnavailable, match="expected one of none"):
        Autoencoders({}).named(None)


def test_two_autoencoders_of_one_name_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="two autoencoders have the name 'own'"):
        open_autoencoders(tmp_path, (loaded,), "cpu", False, [str(tmp_path / "own")])


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_autoencoders_of_diffusers_are_read_from_a_folder(
    kind: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    """Random weights stand for trained ones, which would have to be downloaded."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    if kind == "AutoencoderKL":
        net = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 4, 8),
            norm_num_groups=2,
            latent_channels=4,
            scaling_factor=0.5,
            shift_factor=0.25,
        )
    else:
        net = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
    folder = tmp_path / "tiny-vae"
    net.save_pretrained(folder)
    known = open_autoencoders(tmp_path, (loaded,), "cpu", False, [str(folder)])
    vae: Autoencoder = known.named("tiny-vae")
    assert (vae.cell, vae.channels, vae.halo) == (4, 4, None)
    assert known.of_stream(vae.identity[:4]) is vae
    image = picture(50, 37)
    latents = encode_picture(vae, image)
    assert latents.shape == (10, 13, 4)
    direct = net.eval().encode(torch.zeros(1, 3, 8, 8))
    shape = (direct.latent_dist.mode() if kind == "AutoencoderKL" else direct.latents).shape
    assert shape == (1, 4, 2, 2)
    painted = paint(vae, latents, Box(3, 5, 37, 50), grey=False)
    whole = vae.decode(latents)
    assert np.array_equal(painted, whole[3:37, 5:50])
    trained: DifferentiableAutoencoder = vae  # type: ignore[assignment]
    variable = torch.from_numpy(latents)[None].requires_grad_()
    trained.decode_tensor(variable).sum().backward()
    assert variable.grad is not None and bool(variable.grad.abs().sum() > 0)
    with pytest.raises(TooManyPixels, match="reads whole pictures"):
        latents_shape(vae, 4000, 3000)


def test_what_is_no_autoencoder_of_diffusers_is_refused(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    known = open_autoencoders(tmp_path, (loaded,), "cpu", False, [str(tmp_path / "other")])
    with pytest.raises(BadParameter, match="is a UNet2DModel, expected one of"):
        known.named("other")
