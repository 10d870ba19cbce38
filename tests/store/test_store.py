"""A store is read whole and as published, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Small
from safetensors.numpy import load, save
from small_model import small_stored_model

from service.codec.coder import Tables
from service.codec.lowrank import LayerUpdate, Update
from service.codec.model_stream import write_update
from service.codec.sizes import ConvSizes
from service.engine.opening import open_engine
from service.errors import BadParameter, StoreError, UnknownUpdate
from service.picture import Picture
from service.settings import Settings
from service.store.model import GRAPHS, SYNTHESIS, StoredUpdate, identity, layer_shapes
from service.store.read import default_model, load_model, load_store
from service.store.shapes import preview_shapes
from service.store.write import publish_previews, publish_updates, set_default, write_model

Manifest = dict[str, Any]

NEEDED = ["base.safetensors", "golden.safetensors", "graphs/g_s.onnx"]
"""Files that every model has."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, small: Small) -> Path:
    root = tmp_path_factory.mktemp("published")
    write_model(root / "small", small.stored, small.base)
    return root


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A model's folder that a test may damage."""
    return Path(shutil.copytree(published / "small", tmp_path / "small"))


def edit(folder: Path, change: Callable[[Manifest], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """A file and its entry, so that the checksum is right."""
    (folder / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda m: m["files"].update({name: entry}))


def test_a_published_model_comes_back(published: Path, small: Small) -> None:
    (model,) = load_store(published)
    assert (model.name, model.sizes, model.rates) == ("small", small.stored.sizes,
                                                      small.stored.rates)  # fmt: skip
    assert (model.sha256, model.identity) == (small.stored.sha256, small.stored.identity)
    for mine, theirs in ((model.transforms, small.stored.transforms),
                         (model.entropy, small.stored.entropy)):  # fmt: skip
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[n], theirs[n]) for n in mine)
        assert all(mine[n].dtype == theirs[n].dtype for n in mine)
    assert model.golden.stream == small.stored.golden.stream
    assert np.array_equal(model.golden.y_hat, small.stored.golden.y_hat)
    assert model.training == {"note": "made for tests"}
    assert model.graphs == small.stored.graphs
    files = [f for f in (published / "small").rglob("*.*") if f.name != "manifest.json"]
    assert len(files) == 2 + len(GRAPHS)
    assert model.file_bytes == sum(f.stat().st_size for f in files)


def test_the_identity_is_the_hash_of_the_hashes_of_the_weights(folder: Path, small: Small) -> None:
    """Stable: where the folder lies and what else the manifest says do not matter."""
    expected = hashlib.sha256(hashlib.sha256(small.base).digest()).digest()
    assert load_model(folder).identity == expected
    moved = folder.rename(folder.with_name("moved"))
    edit(moved, lambda m: m["training"].update(note="another"))
    assert load_model(moved).identity == expected
    assert load_model(moved).name == "moved"
    assert identity([b"a" * 32, b"b" * 32]) != identity([b"b" * 32, b"a" * 32])


def test_models_are_in_order_of_name(published: Path, tmp_path: Path) -> None:
    for name in ("zebra", "ant"):
        shutil.copytree(published / "small", tmp_path / name)
    (tmp_path / "no-model").mkdir()
    assert [m.name for m in load_store(tmp_path)] == ["ant", "zebra"]


def two_models(published: Path, root: Path) -> Path:
    for name in ("ant", "zebra"):
        shutil.copytree(published / "small", root / name)
    return root


def test_the_model_that_the_store_names_comes_first_and_the_others_stay(
    published: Path, tmp_path: Path
) -> None:
    store = two_models(published, tmp_path)
    assert default_model(store) is None
    set_default(store / "zebra")
    assert default_model(store) == "zebra"
    assert [m.name for m in load_store(store)] == ["zebra", "ant"]
    assert [m.name for m in load_store(store, "ant")] == ["ant", "zebra"]
    with pytest.raises(BadParameter, match="model 'bee' is not in .* holds ant, zebra"):
        load_store(store, "bee")
    with pytest.raises(StoreError):
        set_default(store / "bee")
    assert default_model(store) == "zebra"


@pytest.mark.parametrize(
    "text, message",
    [("{", "cannot be read as JSON"), ("[]", "must be an object"), ('{"schema": 1}', "must be an"),
     ('{"schema": 2, "default": "ant"}', "schema 2"), ('{"schema": 1, "default": 7}', "default 7"),
     ('{"schema": 1, "default": "bee"}', "says 'bee'"),
     ('{"schema": 1, "default": "../ant"}', "says '../ant'")],
)  # fmt: skip
def test_a_store_that_names_no_model_of_its_own_is_refused(
    published: Path, tmp_path: Path, text: str, message: str
) -> None:
    store = two_models(published, tmp_path)
    (store / "store.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        load_store(store)


def test_the_first_model_compresses_and_every_model_decodes(
    published: Path, tmp_path: Path, small: Small
) -> None:
    """A new backbone next to an old one: new streams are its own, the old one's still decode."""
    shutil.copytree(published / "small", tmp_path / "old")
    other, base, _ = small_stored_model(seed=1)
    write_model(tmp_path / "anew", other, base)
    picture = Picture(small.stored.golden.rgb)
    set_default(tmp_path / "old")
    settings = Settings(store=tmp_path, device="cpu", graphics=False)  # lossless needs no model
    data = open_engine(settings).compress(picture, 4).data
    set_default(tmp_path / "anew")
    engine = open_engine(settings)
    assert engine.decompress(data).model == "old"
    assert engine.decompress(engine.compress(picture, 4).data).model == "anew"
    chosen = open_engine(settings.model_copy(update={"model": "old"}))
    assert chosen.compress(picture, 4).data == data


def test_an_empty_or_missing_store_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match="no model in"):
            load_store(root)


@pytest.mark.parametrize("name", NEEDED)
def test_a_changed_cut_or_missing_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for wrong in (flipped, data[:-1], data + b"\0", b""):
        (folder / name).write_bytes(wrong)
        with pytest.raises(StoreError, match="the manifest says"):
            load_model(folder)
    (folder / name).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("name", NEEDED)
def test_a_model_that_does_not_list_a_file_is_refused(folder: Path, name: str) -> None:
    edit(folder, lambda m: m["files"].pop(name))
    with pytest.raises(StoreError, match=f"does not list {name}"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"schema": 1}', "\x00\xff"])
def test_a_manifest_that_is_no_object_with_its_keys_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"manifest\.json"):
        load_model(folder)


def test_a_missing_or_unknown_key_is_refused(folder: Path) -> None:
    original = (folder / "manifest.json").read_text()
    for key in json.loads(original):
        edit(folder, lambda m, key=key: m.pop(key))  # type: ignore[misc]
        with pytest.raises(StoreError, match="must be an object with the keys"):
            load_model(folder)
        (folder / "manifest.json").write_text(original)
    edit(folder, lambda m: m.update(more=1))
    with pytest.raises(StoreError, match="must be an object with the keys"):
        load_model(folder)


@pytest.mark.parametrize(
    "key, value",
    [("schema", 2), ("schema", None), ("sizes", []), ("files", []), ("rates", {}),
     ("training", "note"), ("files", {}), ("rates", []), ("rates", [4]), ("rates", [{}]),
     ("superseded", {}), ("superseded", [4]), ("updates", {}), ("updates", [4])],
)  # fmt: skip
def test_a_wrong_value_is_refused(folder: Path, key: str, value: object) -> None:
    edit(folder, lambda m: m.update({key: value}))
    with pytest.raises(StoreError):
        load_model(folder)


@pytest.mark.parametrize(
    "change",
    [{"rate": 0.5}, {"rate": 9}, {"rate": "4"}, {"rate": None}, {"rate": True},
     {"rate": 4.5}, {"lmbda": "x"}, {"kodak_bpp": "1"}, {"kodak_psnr_db": []}, {"more": 1}],
)  # fmt: skip
def test_a_wrong_rate_is_refused(folder: Path, change: Manifest) -> None:
    edit(folder, lambda m: m["rates"][0].update(change))
    with pytest.raises(StoreError, match="rate"):
        load_model(folder)


def test_the_base_is_a_rate_of_the_first_ladder(folder: Path) -> None:
    edit(folder, lambda m: m["rates"][0].update(tune="ms-ssim"))
    with pytest.raises(StoreError, match="exactly one rate, of tune psnr, must be the base's"):
        load_model(folder)


def test_a_rate_that_is_listed_twice_is_refused(folder: Path) -> None:
    edit(folder, lambda m: m["rates"].append(m["rates"][0]))
    with pytest.raises(StoreError, match="twice"):
        load_model(folder)


@pytest.mark.parametrize(
    "name",
    ["../base.safetensors", "/etc/passwd", "/tmp/x.safetensors", "a/../../b.safetensors",
     "..safetensors/x.safetensors", "a/b/c.safetensors", "base.pickle", "base.safetensors\n",
     "~/x.safetensors", "a\\b.safetensors", "", "..", "A.safetensors"],
)  # fmt: skip
def test_names_that_leave_the_folder_or_are_no_safetensors_are_refused(
    folder: Path, name: str
) -> None:
    edit(folder, lambda m: m["files"].update({name: m["files"]["base.safetensors"]}))
    with pytest.raises(StoreError, match="not a plain name"):
        load_model(folder)


@pytest.mark.parametrize(
    "entry", [None, "sha", {}, {"bytes": 1}, {"bytes": 1, "sha256": "", "x": 1}]
)
def test_a_wrong_file_entry_is_refused(folder: Path, entry: object) -> None:
    edit(folder, lambda m: m["files"].update({"base.safetensors": entry}))
    with pytest.raises(StoreError, match="must have bytes and sha256"):
        load_model(folder)


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(100), b"\xff" * 64])
@pytest.mark.parametrize("name", ["base.safetensors", "golden.safetensors"])
def test_a_file_that_is_no_safetensors_is_refused(folder: Path, name: str, data: bytes) -> None:
    replace_file(folder, name, data)
    with pytest.raises(StoreError, match="safetensors"):
        load_model(folder)


def test_a_number_format_that_numpy_lacks_is_refused(folder: Path) -> None:
    header = json.dumps({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(2)
    replace_file(folder, "base.safetensors", data)
    with pytest.raises(StoreError, match="safetensors"):
        load_model(folder)


@pytest.mark.parametrize("wrong", ["missing", "unknown", "shape"])
@pytest.mark.parametrize("name", ["g_s.1.pw1.weight", "g_a.0.l.bias", "h_a.1.dw.weight"])
def test_transforms_that_do_not_fit_the_sizes_are_refused_by_name(
    folder: Path, small: Small, name: str, wrong: str
) -> None:
    tensors = load(small.base)
    if wrong == "missing":
        del tensors[name]
    elif wrong == "unknown":
        name = name.replace(".", ".9", 1)
        tensors[name] = np.zeros((2, 2), np.float16)
    else:
        tensors[name] = tensors[name].reshape(2, -1)
    replace_file(folder, "base.safetensors", save(tensors))
    with pytest.raises(StoreError, match=f"tensors {name} do not fit the sizes"):
        load_model(folder)


def test_a_graph_that_is_large_or_reads_other_files_is_refused(folder: Path, small: Small) -> None:
    graph = onnx.load_from_string(small.stored.graphs["g_s"])
    weight = next(t for t in graph.graph.initializer if t.name == "g_s.0.weight")
    weight.external_data.add(key="location", value="/etc/passwd")
    replace_file(folder, "graphs/g_s.onnx", graph.SerializeToString())
    with pytest.raises(StoreError, match="graph g_s may name other files"):
        load_model(folder)
    replace_file(folder, "graphs/g_s.onnx", bytes(2**16 + 1))
    with pytest.raises(StoreError, match="graph g_s has 65537 bytes, expected at most 65536"):
        load_model(folder)


def ready_update(small: Small, symbol: int = 5) -> StoredUpdate:
    """An update of one bias, coded."""
    g_s = {n: t for n, t in small.stored.transforms.items() if n.startswith(SYNTHESIS)}
    shapes = layer_shapes(g_s)
    rows, columns = shapes["g_s.0"]
    factors = np.zeros((rows, 0), np.int8), np.zeros((0, columns), np.int8), np.zeros(0, np.int8)
    bias = np.full(rows, symbol, np.int8), np.array([-6], np.int8)
    update = Update({"g_s.0": LayerUpdate(*factors, *bias)}, {})
    data = write_update(update, shapes, Tables(small.stored.entropy["tables"]))
    return StoredUpdate(f"bias-{symbol}", data, {"made": "by hand"})


def test_ready_updates_are_added_and_stay(folder: Path, small: Small) -> None:
    before = load_model(folder)
    first, second = ready_update(small), ready_update(small, 6)
    publish_updates(folder, [first])
    model = publish_updates(folder, [first, second])
    assert [(u.name, u.data) for u in model.updates] == [
        (first.name, first.data), (second.name, second.data),
    ]  # fmt: skip
    digest = hashlib.sha256(first.data).digest()
    tables = Tables(model.entropy["tables"])
    bias = model.ready_update(digest[:4], tables).layers["g_s.0"].bias
    assert set(bias.tolist()) == {5} and model.updates[0].training == {"made": "by hand"}
    assert (folder / "updates" / f"{digest.hex()[:12]}.rku").read_bytes() == first.data
    assert model.identity == before.identity and model.rates == before.rates
    assert model.file_bytes == before.file_bytes + len(first.data) + len(second.data)
    with pytest.raises(UnknownUpdate, match=f"ready update 0a0b0c0d.*{digest[:4].hex()}"):
        model.ready_update(b"\x0a\x0b\x0c\x0d", tables)


def test_a_ready_update_that_does_not_fit_is_not_published(folder: Path, small: Small) -> None:
    manifest = (folder / "manifest.json").read_bytes()
    good = ready_update(small)
    for data in (b"", good.data[:-1], good.data + bytes(4)):
        with pytest.raises(StoreError, match="ready update x of model small"):
            publish_updates(folder, [StoredUpdate("x", data, {})])
    with pytest.raises(StoreError, match="two ready updates of one reference"):
        publish_updates(folder, [good, good])
    assert (folder / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(
    "change, message",
    [({"base": "0" * 64}, "is for base"), ({"file": "updates/x.rku"}, "needs a listed file"),
     ({"name": 3}, "needs a listed file"), ({"training": None}, "needs a listed file"),
     ({"more": 1}, "ready update must have the keys")],
)  # fmt: skip
def test_a_wrong_entry_of_a_ready_update_is_refused(
    folder: Path, small: Small, change: Manifest, message: str
) -> None:
    publish_updates(folder, [ready_update(small)])
    edit(folder, lambda m: m["updates"][0].update(change))
    with pytest.raises(StoreError, match=message):
        load_model(folder)


def test_a_damaged_or_doubled_ready_update_is_refused(folder: Path, small: Small) -> None:
    publish_updates(folder, [ready_update(small)])
    (path,) = (folder / "updates").iterdir()
    data = path.read_bytes()
    replace_file(folder, f"updates/{path.name}", data[:-1])
    damaged = load_model(folder)
    with pytest.raises(StoreError, match="ready update bias-5 of model small"):
        damaged.ready_update(damaged.updates[0].reference, Tables(damaged.entropy["tables"]))
    path.write_bytes(data)
    with pytest.raises(StoreError, match="the manifest says"):
        load_model(folder)
    replace_file(folder, f"updates/{path.name}", data)
    edit(folder, lambda m: m["updates"].append(m["updates"][0]))
    with pytest.raises(StoreError, match="two ready updates"):
        load_model(folder)
    edit(folder, lambda m: m.update(updates={}))
    with pytest.raises(StoreError, match="updates must be a list"):
        load_model(folder)


@pytest.mark.parametrize("name", ["stream", "y_hat", "rgb"])
def test_a_wrong_golden_tensor_is_refused(folder: Path, small: Small, name: str) -> None:
    golden = small.stored.golden
    good = {
        "stream": np.frombuffer(golden.stream, np.uint8),
        "y_hat": golden.y_hat,
        "rgb": np.ascontiguousarray(golden.rgb),
    }
    for wrong in (good[name].astype(np.float32), good[name][None], None):
        tensors = {n: t for n, t in good.items() if n != name}
        if wrong is not None:
            tensors[name] = wrong
        replace_file(folder, "golden.safetensors", save(tensors))
        with pytest.raises(StoreError, match=f"golden tensor {name}"):
            load_model(folder)


@pytest.mark.parametrize(
    "change",
    [{"M": 0}, {"M": 18}, {"M": "16"}, {"M": 16.0}, {"cc": -1}, {"cp": 4097}, {"nd8": None},
     {"c16": 28}, {"Cz": True}, {"more": 1}],
)  # fmt: skip
def test_wrong_sizes_are_refused(folder: Path, change: Manifest) -> None:
    edit(folder, lambda m: m["sizes"].update(change))
    with pytest.raises(StoreError, match="size"):
        load_model(folder)
    with pytest.raises(StoreError, match="sizes are"):
        ConvSizes.from_dict({})


def test_sizes_come_back_from_a_manifest() -> None:
    sizes = ConvSizes(M=20, Cz=3, c16=17)
    assert ConvSizes.from_dict(asdict(sizes)) == sizes


@pytest.mark.parametrize(
    "blocks, halo",
    [((1, 1, 1, 1), 2), ((3, 2, 3, 2), 4), ((4, 2, 3, 2), 4), ((1, 0, 5, 1), 4)],
)
def test_the_halo_covers_the_wider_of_both_transforms(
    blocks: tuple[int, int, int, int], halo: int
) -> None:
    ne8, ne16, nd8, nd16 = blocks
    assert ConvSizes(ne8=ne8, ne16=ne16, nd8=nd8, nd16=nd16).halo == halo


def previews(M: int, channels: int = 6, blocks: int = 1) -> dict[str, np.ndarray]:
    """A random preview network for latents of M channels."""
    rng = np.random.default_rng(0)
    shapes = preview_shapes(M, channels, blocks)
    return {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}


def test_a_preview_network_is_published_and_changes_no_identity(folder: Path) -> None:
    before = load_model(folder)
    assert before.previews == {}
    tensors = previews(before.sizes.M)
    stored = publish_previews(folder, tensors, {"steps": 3})
    assert stored.previews.keys() == tensors.keys()
    assert all(np.array_equal(stored.previews[n], t) for n, t in tensors.items())
    assert stored.training["previews"] == {"steps": 3}
    assert (stored.sha256, stored.identity) == (before.sha256, before.identity)
    assert stored.file_bytes > before.file_bytes
    wider = publish_previews(folder, previews(before.sizes.M, 9, 2), {})
    assert wider.previews["trunk.2.dw.weight"].shape == (9, 1, 3, 3)


def test_a_preview_network_that_does_not_fit_is_refused(folder: Path) -> None:
    M = load_model(folder).sizes.M
    good = previews(M)
    infinite = good["head.4.l.bias"].copy()
    infinite[5] = np.nan
    for tensors, reason in (
        ({}, "no matrix trunk.0.weight"),
        ({**good, "trunk.0.weight": good["trunk.0.bias"]}, "no matrix trunk.0.weight"),
        (previews(M + 4), "trunk.0.weight do not fit"),
        (previews(M, 513), "513 channels"),
        (previews(M, 2, 5), "5 blocks"),
        ({n: t for n, t in good.items() if n != "head.8.l.bias"}, "head.8.l.bias do not fit"),
        ({**good, "other": good["trunk.0.bias"]}, "other do not fit"),
        ({**good, "trunk.7.dw.weight": good["trunk.1.dw.weight"]}, "do not fit"),
        ({**good, "head.4.l.bias": infinite}, "head.4.l.bias .* finite"),
        ({**good, "trunk.0.bias": good["trunk.0.bias"].astype(np.float32)}, "trunk.0.bias"),
    ):
        with pytest.raises(StoreError, match=reason):
            publish_previews(folder, tensors, {})
        assert load_model(folder).previews == {}, "the store is unchanged"
        damaged = Path(shutil.copytree(folder, folder.with_name("damaged")))
        replace_file(damaged, "previews.safetensors", save(tensors))
        with pytest.raises(StoreError, match=reason):
            load_model(damaged)
        shutil.rmtree(damaged)
