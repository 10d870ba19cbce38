"""The files for decoders of web pages: enough to decode with, named by their hash, always equal."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from small_ladder import small_update, with_rates
from small_model import photo_like

from service.codec.lowrank import pack
from service.codec.sizes import ConvSizes, SwinSizes
from service.engine.engine import Engine
from service.picture import Picture
from service.runtime.decode_only import load_decode_only
from service.runtime.loading import load_models
from service.store.decoder_files import DecoderFiles, decoder_files
from service.store.model import ENTROPY, StoredModel, StoredUpdate, layer_shapes
from service.store.read import default_path, load_store, read_adapter


@pytest.fixture(scope="module")
def ladder(small_model: StoredModel) -> StoredModel:
    stored = with_rates(small_model, (3, 5))
    previews = {"trunk.0.weight": np.zeros((4, stored.sizes.M), np.float16)}
    return replace(stored, updates=(StoredUpdate("drawings", b"update", {}),), previews=previews)


def test_every_file_is_named_by_its_hash_and_listed_with_its_size(ladder: StoredModel) -> None:
    made = decoder_files((ladder,))
    (model,) = json.loads(made.index)["models"]
    entries = [model["decoder"], model["previews"], *model["rates"], *model["updates"]]
    listed = {e["file"]: e for e in entries if e["file"] is not None}
    assert listed.keys() == made.files.keys()
    for name, data in made.files.items():
        digest = hashlib.sha256(data).hexdigest()
        assert name.partition(".")[0] == digest == listed[name]["sha256"]
        assert listed[name]["bytes"] == len(data)
    assert model["sha256"] == ladder.sha256 and ConvSizes(**model["sizes"]) == ladder.sizes
    assert [(r["rate"], r["file"] is None) for r in model["rates"]] == [
        (3, False), (4, True), (5, False)
    ]  # fmt: skip
    assert model["updates"][0]["file"].endswith(".rku")
    shapes = layer_shapes(ladder.transforms, ladder.entropy)
    assert {name: tuple(shape) for name, shape in model["layers"].items()} == shapes
    assert list(model["layers"]) == sorted(shapes)


def test_the_bytes_are_always_the_same(ladder: StoredModel) -> None:
    turned = replace(ladder, entropy=dict(reversed(ladder.entropy.items())))
    assert decoder_files((ladder,)).index == decoder_files((turned,)).index
    assert decoder_files(()).index == DecoderFiles().index


def test_models_of_families_that_these_decoders_do_not_know_are_left_out(
    ladder: StoredModel,
) -> None:
    other = replace(ladder, name="other", sizes=SwinSizes())
    assert decoder_files((other, ladder, other)).index == decoder_files((ladder,)).index
    assert decoder_files((other,)).index == DecoderFiles().index
    assert not decoder_files((other,)).files


def test_a_decoder_with_these_tensors_alone_decodes_every_rate(ladder: StoredModel) -> None:
    """Also those between two rates, whose weights are merged from the base."""
    made = decoder_files((ladder,))
    (model,) = json.loads(made.index)["models"]
    tensors = load(made.files[model["decoder"]["file"]])
    entropy = {n.removeprefix(ENTROPY): t for n, t in tensors.items() if n.startswith(ENTROPY)}
    synthesis = {n: t for n, t in tensors.items() if not n.startswith(ENTROPY)}
    assert all(name.startswith("g_s.") for name in synthesis)
    entropy["z.mean"] = np.zeros(ladder.sizes.Cz, np.int32)  # our class has it for its encoder
    few = replace(ladder, entropy=entropy, transforms=synthesis)
    reader = Engine(load_decode_only((few,)))
    writer = Engine(load_models((ladder,), "cpu", torch.float32))
    for rate in (3, 3.5, 4, 4.5, 5):
        data = writer.compress(Picture(photo_like(40, 70)), rate).data
        expected = Engine(load_decode_only((ladder,))).decompress(data).picture.rgb
        assert np.array_equal(reader.decompress(data).picture.rgb, expected), rate


def test_adapters_that_are_loaded_and_those_they_replace_are_listed(ladder: StoredModel) -> None:
    engine = Engine(load_decode_only((ladder,)))
    before = engine.decoder_files()
    assert engine.decoder_files() is before  # derived once
    shapes = layer_shapes(ladder.transforms, ladder.entropy)
    data = save(pack(small_update(ladder, 3, seed=9), shapes))
    sha256 = engine.add_adapter(data, ladder.sha256, 3).sha256
    after = engine.decoder_files()
    rates = json.loads(after.index)["models"][0]["rates"]
    ours = {r["sha256"]: r["superseded"] for r in rates if r["rate"] == 3}
    old = read_adapter(ladder, next(r.data for r in ladder.rates if r.rate == 3), 3).digest.hex()
    assert ours == {sha256: False, old: True}
    assert after.files[f"{sha256}.safetensors"] == data
    assert before.files.keys() < after.files.keys()
    engine.remove_adapter(sha256)
    assert engine.decoder_files().index == before.index


def test_gzip_is_kept_where_it_saves_an_eighth() -> None:
    """Of the shipped model that is the file of the base, which becomes over a fifth smaller."""
    made = decoder_files(load_store(default_path()))
    (model,) = json.loads(made.index)["models"]
    name = model["decoder"]["file"]
    assert gzip.decompress(made.gzipped[name]) == made.files[name]
    assert len(made.gzipped[name]) < 0.8 * len(made.files[name])
    assert model["previews"]["file"] not in made.gzipped
    assert all(len(data) <= 7 / 8 * len(made.files[n]) for n, data in made.gzipped.items())
    base = (default_path() / "light" / "base.safetensors").stat().st_size
    assert len(made.files[name]) < 0.6 * base
