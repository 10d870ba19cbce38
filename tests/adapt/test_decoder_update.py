"""The update that is optimised is the update that is sent and merged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from service.adapt.decoder_update import DecoderUpdate, UpdateLearningRates
from service.codec.coder import Tables
from service.codec.lowrank import PARTS, Share, merge_transforms
from service.codec.model_stream import write_update
from service.store.model import SYNTHESIS, StoredModel, layer_shapes

CPU = torch.device("cpu")


def update_of(stored: StoredModel, rank: int = 2, spread: float = 0.0) -> DecoderUpdate:
    generator = torch.Generator().manual_seed(1)
    update = DecoderUpdate(stored.transforms, rank, generator, CPU)
    for name, tensor in update.tensors.items():
        if not name.endswith("/a"):
            tensor.data.normal_(0, spread, generator=generator)
    return update


def weights_of(update: DecoderUpdate) -> dict[str, torch.Tensor]:
    return {n: t for n, t in update.parameters().items() if n.endswith(("weight", "bias"))}


def g_s(stored: StoredModel) -> dict[str, np.ndarray]:
    return {n: t for n, t in stored.transforms.items() if n.startswith(SYNTHESIS)}


def test_it_starts_as_no_update(small_model: StoredModel) -> None:
    update = update_of(small_model)
    assert not update.update().layers
    for name, value in weights_of(update).items():
        stored = small_model.transforms[f"g_s.{name}"].astype(np.float32)
        assert np.array_equal(value.detach().numpy(), stored)


def test_what_is_optimised_is_what_decoders_merge(small_model: StoredModel) -> None:
    update = update_of(small_model, spread=0.1)
    merged = merge_transforms(g_s(small_model), [Share(update.update(), PARTS)])
    for name, value in weights_of(update).items():
        np.testing.assert_allclose(
            value.detach().numpy(), merged[f"g_s.{name}"], rtol=1e-5, atol=1e-6
        )


def test_predicted_bits_are_near_the_real_ones(small_model: StoredModel) -> None:
    update = update_of(small_model, spread=0.2)
    tables = Tables(small_model.entropy["tables"])
    real = 8 * len(write_update(update.update(), layer_shapes(g_s(small_model)), tables))
    predicted = update.bits(torch.Generator().manual_seed(2)).item()
    assert predicted == pytest.approx(real, rel=0.15)


def test_bits_pull_every_variable_towards_zero(small_model: StoredModel) -> None:
    update = update_of(small_model, spread=0.2)
    before = update.bits(torch.Generator().manual_seed(2)).item()
    optimiser = torch.optim.Adam(update.groups(UpdateLearningRates(a=0.05, b=0.01, bias=0.01)))
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        optimiser.zero_grad()
        update.bits(generator).backward()
        optimiser.step()
    assert update.bits(torch.Generator().manual_seed(2)).item() < 0.6 * before


def test_pruning_keeps_exactly_what_pays(small_model: StoredModel) -> None:
    """Distortion here counts one layer's bias alone: the one gate that may stay open."""
    update = update_of(small_model, spread=0.2)
    tables = Tables(small_model.entropy["tables"])
    precious = update.tensors["g_s.0/bias"]

    def distortion() -> float:
        return 0.0 if precious.any() else 1e6

    update.prune(distortion, tables)
    sent = update.update()
    assert sent.layers.keys() == {"g_s.0"}
    assert sent.layers["g_s.0"].bias.any() and not len(sent.layers["g_s.0"].a)


def test_pruning_weighs_savings_against_bits(small_model: StoredModel) -> None:
    tables = Tables(small_model.entropy["tables"])
    for worth, kept in ((1.0, False), (1e5, True)):
        update = update_of(small_model, spread=0.2)
        factor = update.tensors["g_s.0/b"]
        update.prune(lambda f=factor, w=worth: w * float((f[:, 0] == 0).all()), tables)
        assert bool(update.update().layers) is kept


def test_the_same_symbols_are_an_update_of_every_rate(small_model: StoredModel) -> None:
    """What is shared are the variables: in units of another rate's weights they mean its update."""
    update = update_of(small_model, spread=0.1)
    other = {n: 3 * t.astype(np.float32) for n, t in small_model.transforms.items()}
    elsewhere = update.on(other)
    sent = update.update()
    with torch.no_grad():
        update.tensors["g_s.0/bias"].add_(1.0)
    moved = elsewhere.update()
    assert not np.array_equal(moved.layers["g_s.0"].bias, sent.layers["g_s.0"].bias)
    merged = merge_transforms(
        {n: t for n, t in other.items() if n.startswith(SYNTHESIS)}, [Share(moved, PARTS)]
    )
    for name, value in weights_of(elsewhere).items():
        assert np.allclose(value.detach().numpy(), merged[f"g_s.{name}"], rtol=1e-4, atol=1e-5)
