"""Adapters loaded and unloaded while the engine runs: whole or not at all, nobody is disturbed."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from small_ladder import small_update, with_rates, with_update
from small_model import decode_only, photo_like

from service.codec.lowrank import pack
from service.engine import registry
from service.engine.engine import Engine
from service.errors import (
    BadAdapter,
    BadParameter,
    RateUnavailable,
    StoreError,
    TooManyBytes,
    UnknownAdapter,
    UnknownModel,
)
from service.picture import Picture
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredModel, layer_shapes

RATES = (3, 3.5, 4, 4.5, 5, 5.5, 6)


@pytest.fixture(scope="module")
def ladder(small_model: StoredModel) -> StoredModel:
    return with_rates(small_model, (3, 5, 6))


@pytest.fixture(scope="module")
def base(ladder: StoredModel) -> LoadedModel:
    return load_models((ladder,), "cpu", torch.float32)[0]


@pytest.fixture
def engine(base: LoadedModel) -> Engine:
    return Engine((base,))


@pytest.fixture(scope="module")
def file(small_model: StoredModel) -> Callable[..., bytes]:
    """An adapter's file for a rate; other seeds give other ones."""

    def make(rate: int, seed: int = 7) -> bytes:
        update = small_update(small_model, rate, seed)
        return save(pack(update, layer_shapes(small_model.transforms, small_model.entropy)))

    return make


def streams(engine: Engine, photo: Picture) -> dict[float, bytes]:
    return {rate: engine.compress(photo, rate).data for rate in RATES}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_loaded_adapter_gives_the_bytes_of_a_store_that_holds_it(
    engine: Engine, small_model: StoredModel, ladder: StoredModel, photo: Picture,
    file: Callable[..., bytes],
) -> None:  # fmt: skip
    """New rates, replaced ones, and all that is mixed from them."""
    for rate in (5, 7):
        engine.add_adapter(file(rate), small_model.sha256, rate)
    stored = ladder
    for rate in (5, 7):
        stored = with_update(stored, rate, small_update(small_model, rate, 7))
    other = Engine(load_models((stored,), "cpu", torch.float32))
    for rate in (*RATES, 6.25, 7):
        assert engine.compress(photo, rate).data == other.compress(photo, rate).data
    assert [r.rate for r in engine.models()[0].rates] == [3, 4, 5, 6, 7]


def test_other_rates_are_not_touched_and_old_streams_decode_on(
    engine: Engine, small_model: StoredModel, photo: Picture, file: Callable[..., bytes]
) -> None:
    before = streams(engine, photo)
    pixels = {rate: engine.decompress(data).picture.rgb for rate, data in before.items()}
    engine.add_adapter(file(5), small_model.sha256, 5)
    after = streams(engine, photo)
    for rate in RATES:
        assert (before[rate] == after[rate]) == (not 4 < rate < 6), rate
        for data in (before[rate], after[rate]):
            assert engine.decompress(data).rate == rate
        assert np.array_equal(engine.decompress(before[rate]).picture.rgb, pixels[rate])
    engine.add_adapter(file(6), small_model.sha256, 6)
    for rate in RATES:  # 5.5 was made of two adapters that are both replaced by now
        assert np.array_equal(engine.decompress(before[rate]).picture.rgb, pixels[rate])
        engine.decompress(after[rate])


def test_removing_gives_the_rate_back_to_what_was_there_before(
    engine: Engine, small_model: StoredModel, photo: Picture, file: Callable[..., bytes]
) -> None:
    before = streams(engine, photo)
    first = engine.add_adapter(file(5, 7), small_model.sha256, 5)
    made_by_first = engine.compress(photo, 5).data
    second = engine.add_adapter(file(5, 8), small_model.sha256, 5)
    served = {a.sha256: a.served for a in engine.adapters() if a.rate == 5}
    assert served[first.sha256] is False and served[second.sha256] is True
    assert sum(served.values()) == 1 and len(served) == 3
    engine.remove_adapter(second.sha256)
    assert engine.compress(photo, 5).data == made_by_first
    engine.remove_adapter(first.sha256)
    assert streams(engine, photo) == before
    with pytest.raises(UnknownModel):
        engine.decompress(made_by_first)
    with pytest.raises(UnknownAdapter):
        engine.remove_adapter(first.sha256)


def test_a_rate_that_only_a_loaded_adapter_has_goes_with_it(
    engine: Engine, small_model: StoredModel, photo: Picture, file: Callable[..., bytes]
) -> None:
    with pytest.raises(RateUnavailable):
        engine.compress(photo, 7)
    info = engine.add_adapter(file(7), small_model.sha256, 7)
    assert engine.compress(photo, 7).rate == 7 and engine.compress(photo, 6.5).rate == 6.5
    engine.remove_adapter(info.sha256)
    for rate in (6.5, 7):
        with pytest.raises(RateUnavailable):
            engine.compress(photo, rate)


def test_the_bases_own_rate_can_be_replaced_too(
    engine: Engine, small_model: StoredModel, photo: Picture, file: Callable[..., bytes]
) -> None:
    before = streams(engine, photo)
    info = engine.add_adapter(file(4), small_model.sha256, 4)
    after = streams(engine, photo)
    assert {rate for rate in RATES if before[rate] != after[rate]} == {3.5, 4, 4.5}
    assert all(engine.decompress(d).rate == r for m in (before, after) for r, d in m.items())
    engine.self_test()
    engine.remove_adapter(info.sha256)
    assert streams(engine, photo) == before


def test_an_adapter_of_another_ladder_makes_that_ladder_and_leaves_the_first_alone(
    engine: Engine, small_model: StoredModel, photo: Picture, file: Callable[..., bytes]
) -> None:
    before = streams(engine, photo)
    with pytest.raises(BadParameter, match="no tune"):
        engine.compress(photo, 5, "ms-ssim")
    for rate in (4, 5):
        info = engine.add_adapter(file(rate), small_model.sha256, rate, "ms-ssim")
        assert (info.rate, info.tune, info.served) == (rate, "ms-ssim", True)
    fresh = {rate: engine.compress(photo, rate, "ms-ssim").data for rate in (4, 4.5, 5)}
    assert streams(engine, photo) == before
    assert not set(fresh.values()) & set(before.values())
    assert all(engine.decompress(data).rate == rate for rate, data in fresh.items())
    with pytest.raises(RateUnavailable):
        engine.compress(photo, 6, "ms-ssim")
    with pytest.raises(BadParameter):
        engine.add_adapter(file(6), small_model.sha256, 6, "vmaf")


def test_loading_twice_is_loading_once(
    engine: Engine, small_model: StoredModel, file: Callable[..., bytes]
) -> None:
    first = engine.add_adapter(file(5), small_model.sha256, 5)
    assert engine.add_adapter(file(5), small_model.sha256, 5) == first
    assert len(engine.adapters()) == 4
    with pytest.raises(BadParameter, match="loaded already, as rate 5"):
        engine.add_adapter(file(5), small_model.sha256, 6)


def garbage(good: bytes) -> dict[str, bytes]:
    tensors = load(good)
    with_float = tensors | {"factors": tensors["factors"].astype(np.float32)}
    huge = np.full_like(tensors["bias_exponents"], 100)
    return {
        "nothing": b"", "text": b"no adapter at all", "a long header": b"\xff" * 4096,
        "cut": good[:-1], "no tensors": save({}), "float": save(with_float),
        "extra": save(tensors | {"more": np.zeros(1, np.int8)}),
        "too few": save(tensors | {"factors": tensors["factors"][:-1]}),
        "huge": save(tensors | {"bias_exponents": huge}),
        "steps": save(tensors | {"y.step": np.zeros_like(tensors["y.step"])}),
    }  # fmt: skip


def test_loading_garbage_changes_nothing(
    base: LoadedModel, small_model: StoredModel, photo: Picture, tmp_path: Path,
    file: Callable[..., bytes],
) -> None:  # fmt: skip
    engine = Engine((base,), adapters=tmp_path / "kept")
    before, listed = streams(engine, photo), engine.adapters()
    for name, data in garbage(file(5)).items():
        with pytest.raises(BadAdapter, match="does not fit"):
            engine.add_adapter(data, small_model.sha256, 5)
        assert engine.adapters() == listed, name
    with pytest.raises(TooManyBytes):
        engine.add_adapter(bytes(registry.MAX_ADAPTER_BYTES + 1), small_model.sha256, 5)
    for base_sha256, rate in (("00" * 32, 5), ("", 5), (small_model.sha256, 0),
                              (small_model.sha256, 9)):  # fmt: skip
        with pytest.raises(BadParameter):
            engine.add_adapter(file(5), base_sha256, rate)
    for name in ("", "xyz", "../../etc/passwd", "0" * 64):
        with pytest.raises(UnknownAdapter):
            engine.remove_adapter(name)
    assert engine.adapters() == listed and streams(engine, photo) == before
    assert not (tmp_path / "kept").exists()


def test_adapters_of_the_store_stay(engine: Engine) -> None:
    for info in engine.adapters():
        assert info.stored and info.served
        with pytest.raises(BadParameter, match="belongs to the store"):
            engine.remove_adapter(info.sha256)


def test_there_are_only_so_many(
    engine: Engine, small_model: StoredModel, monkeypatch: pytest.MonkeyPatch,
    file: Callable[..., bytes],
) -> None:  # fmt: skip
    monkeypatch.setattr(registry, "MAX_LOADED", 2)
    for seed in (1, 2):
        engine.add_adapter(file(5, seed), small_model.sha256, 5)
    with pytest.raises(BadParameter, match="2 adapters are loaded"):
        engine.add_adapter(file(5, 3), small_model.sha256, 5)


def test_loading_and_unloading_under_load_never_breaks_a_running_request(
    base: LoadedModel, small_model: StoredModel, file: Callable[..., bytes]
) -> None:
    """Every answer is that of the adapter before or after; each was whole when it began."""
    engine = Engine((base,), cache_bytes=0)  # nothing is kept beyond what requests hold
    photo = Picture(photo_like(40, 33, 2))
    old = engine.compress(photo, 5).data
    new_file = file(5)
    info = engine.add_adapter(new_file, small_model.sha256, 5)
    new = engine.compress(photo, 5).data
    assert old != new
    stop = threading.Event()

    def work(_: int) -> int:
        done = 0
        while not stop.is_set():
            data = engine.compress(photo, 5).data  # with check: it is decoded again too
            assert data in (old, new)
            assert engine.compress(photo, 6).data
            assert engine.decompress(old).rate == 5
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, i) for i in range(3)]
        try:
            for _ in range(20):
                engine.remove_adapter(info.sha256)
                engine.add_adapter(new_file, small_model.sha256, 5)
        finally:
            stop.set()
        assert all(f.result(60) > 0 for f in futures)


def test_an_adapter_that_is_unloaded_in_the_middle_of_a_request_serves_it_to_its_end(
    base: LoadedModel, small_model: StoredModel, photo: Picture, monkeypatch: pytest.MonkeyPatch,
    file: Callable[..., bytes],
) -> None:  # fmt: skip
    engine = Engine((base,), cache_bytes=0)
    info = engine.add_adapter(file(5), small_model.sha256, 5)
    expected = engine.compress(photo, 5).data
    from service.engine import coding as module

    encode = module.encode

    def unloading(*args):  # type: ignore[no-untyped-def]
        encoded = encode(*args)
        engine.remove_adapter(info.sha256)
        return encoded

    monkeypatch.setattr(module, "encode", unloading)
    assert engine.compress(photo, 5).data == expected, "the check ran with it as well"
    monkeypatch.undo()
    assert engine.compress(photo, 5).data != expected


def test_a_restart_finds_what_was_kept_in_the_same_order(
    base: LoadedModel, small_model: StoredModel, photo: Picture, tmp_path: Path,
    file: Callable[..., bytes],
) -> None:  # fmt: skip
    folder = tmp_path / "adapters"
    engine = Engine((base,), adapters=folder)
    gone = engine.add_adapter(file(6), small_model.sha256, 6)
    for seed in (2, 1):
        engine.add_adapter(file(5, seed), small_model.sha256, 5)
    engine.remove_adapter(gone.sha256)
    old, data = engine.adapters(), streams(engine, photo)
    (folder / ".x.json.part").write_bytes(b"cut off")
    (folder / f"{'0' * 64}.safetensors").write_bytes(b"its note was never written")
    again = Engine((base,), adapters=folder)
    assert again.adapters() == old and streams(again, photo) == data
    assert Engine((base,)).adapters() != old, "without the folder they are forgotten"


@pytest.mark.parametrize("damage", ["file", "missing", "note", "keys", "base", "rate"])
def test_a_kept_adapter_that_cannot_be_loaded_is_named_at_start(
    base: LoadedModel, small_model: StoredModel, tmp_path: Path, damage: str,
    file: Callable[..., bytes],
) -> None:  # fmt: skip
    info = Engine((base,), adapters=tmp_path).add_adapter(file(5), small_model.sha256, 5)
    data, note = tmp_path / f"{info.sha256}.safetensors", tmp_path / f"{info.sha256}.json"
    content = json.loads(note.read_text())
    if damage == "file":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "missing":
        data.unlink()
    elif damage == "note":
        note.write_text("{")
    elif damage == "keys":
        note.write_text("[1]")
    else:
        note.write_text(json.dumps(content | {damage: {"base": "00" * 32, "rate": 9}[damage]}))
    with pytest.raises(StoreError, match=info.sha256):
        Engine((base,), adapters=tmp_path)


def test_an_adapter_that_cannot_be_kept_is_not_loaded(
    base: LoadedModel, small_model: StoredModel, tmp_path: Path, file: Callable[..., bytes]
) -> None:
    (tmp_path / "folder").write_text("a file is in the way")
    engine = Engine((base,), adapters=tmp_path / "folder")
    before = engine.adapters()
    with pytest.raises(OSError):
        engine.add_adapter(file(5), small_model.sha256, 5)
    assert engine.adapters() == before


def test_without_torch_adapters_decode_too(
    ladder: StoredModel, small_model: StoredModel, engine: Engine, photo: Picture,
    file: Callable[..., bytes],
) -> None:  # fmt: skip
    from service.runtime.decode_only import load_decode_only

    plain = Engine(load_decode_only((ladder,)))
    engine.add_adapter(file(5), small_model.sha256, 5)
    data = engine.compress(photo, 5).data
    with pytest.raises(UnknownModel):
        plain.decompress(data)
    plain.add_adapter(file(5), small_model.sha256, 5)
    off = plain.decompress(data).picture.rgb.astype(int) - engine.decompress(data).picture.rgb
    assert np.abs(off).max() <= 1
    alone = Engine((decode_only(small_model),))
    with pytest.raises(BadAdapter, match="own rate only"):
        alone.add_adapter(file(5), small_model.sha256, 5)
