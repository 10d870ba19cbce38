"""CompressAI models as backbones: rates by adapters, real streams, and on this machine only."""

from __future__ import annotations

import copy
import hmac
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from small_model import photo_like
from torch import nn
from typer.testing import CliRunner

from service.cli.main import app
from service.codec.container import Flags, read_stream, write_stream
from service.engine.engine import Engine
from service.engine.types import Load
from service.errors import (
    BadAdapter,
    BadParameter,
    BadStream,
    CheckFailed,
    RateUnavailable,
    SelfTestFailed,
    StoreError,
    TooManyPixels,
    UnknownModel,
    UnsupportedStream,
)
from service.picture import Picture, Region, View

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    compressai = pytest.importorskip("compressai")
    from compressai.models import Cheng2020Anchor, MeanScaleHyperprior

from service.datasets.crops import Crops  # noqa: E402
from service.zoo import codec as zoo  # noqa: E402
from service.zoo import opening  # noqa: E402
from service.zoo.adapters import MAX_RANK, ZooAdapter, digest, layers, merged, prepare_coder  # noqa: E402
from service.zoo.signing import machine_key  # noqa: E402
from service.zoo.train import ZooRecipe, loss_of, train_adapter  # noqa: E402

KEY = bytes(32)
MODELS = {"mbt2018-mean": (MeanScaleHyperprior, {"N": 16, "M": 24}),
          "cheng2020-anchor": (Cheng2020Anchor, {"N": 16})}  # fmt: skip


def untrained(name: str) -> nn.Module:
    """The architecture, small, with random weights that make symbols other than zero."""
    kind, sizes = MODELS[name]
    torch.manual_seed(1)
    network: nn.Module = kind(**sizes).eval()
    with torch.no_grad():
        last = [m for n, m in network.named_modules() if n.startswith("g_a.")][-1]
        last.weight.mul_(40)
    return network


def crops(tmp_path: Path) -> Crops:
    from PIL import Image

    for i in range(3):
        Image.fromarray(photo_like(128, 160, i)).save(tmp_path / f"{i}.png")
    return Crops(tmp_path, 64, 0)


@pytest.fixture(scope="module", params=sorted(MODELS))
def network(request: pytest.FixtureRequest) -> nn.Module:
    return untrained(request.param)


@pytest.fixture(scope="module")
def adapter(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    recipe = ZooRecipe(0.01, steps=12, rank=2, rate=0.01, batch=2)
    losses: list[float] = []
    folder = tmp_path_factory.mktemp("crops")
    file = train_adapter(network, crops(folder), recipe, lambda _, loss: losses.append(loss))
    assert len(losses) == recipe.steps
    return file


@pytest.fixture(scope="module")
def codec(network: nn.Module, adapter: bytes) -> zoo.ZooCodec:
    return zoo.ZooCodec("small", network, {6: adapter}, KEY)


def test_training_lowers_the_loss_and_leaves_the_base_alone(
    network: nn.Module, adapter: bytes, tmp_path: Path
) -> None:
    x = crops(tmp_path).batch(0, 3).permute(0, 3, 1, 2).contiguous()
    before = digest(network)
    with torch.inference_mode():
        base_loss = float(loss_of(network(x), x, 0.01))
        low = merged(network, load(adapter))
        assert float(loss_of(low(x), x, 0.01)) < 0.9 * base_loss
    assert digest(network) == before != digest(low)


def test_a_merge_is_the_adapters_forward_pass(network: nn.Module) -> None:
    found = ZooAdapter(network, layers(network), 2)
    with torch.no_grad():
        for b in found.b:
            b.normal_(0, 0.01)
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        mine = merged(network, found.factors())(x)["x_hat"]
        assert torch.allclose(mine, found(x)["x_hat"], atol=1e-5)
        assert not torch.allclose(mine, network(x)["x_hat"], atol=1e-3)


def test_what_alpha_hides_changes_neither_stream_nor_psnr(codec: zoo.ZooCodec) -> None:
    rgb = photo_like(40, 33, 3)
    alpha = np.where(np.hypot(*np.mgrid[-20:20, -16:17]) < 14, 255, 0).astype(np.uint8)
    other = np.where(alpha[..., None] > 0, rgb, 255 - rgb)
    one, same = (codec.compress(Picture(pixels, alpha), 4) for pixels in (rgb, other))
    assert one.data == same.data and one.psnr_db == same.psnr_db
    back = codec.decompress(one.data).picture.rgb.astype(float)
    mse = np.square(back - rgb)[alpha > 0].mean()
    assert one.psnr_db == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-9)


@pytest.mark.parametrize("rate", [4, 6])
@pytest.mark.parametrize("height, width", [(1, 1), (65, 7), (64, 64)])
def test_streams_come_back_as_the_network_itself_reconstructs(
    codec: zoo.ZooCodec, network: nn.Module, adapter: bytes, rate: int, height: int, width: int
) -> None:
    """Witnesses: its own coding without our container, and, where rounding is the same in both, its
    forward pass."""
    picture = Picture(photo_like(height, width, 3), alpha=photo_like(height, width, 4)[..., 0])
    made = codec.compress(picture, rate)
    back = codec.decompress(made.data)
    assert back.picture.rgb.shape == picture.rgb.shape and back.rate == made.rate == rate
    assert np.array_equal(back.picture.alpha, picture.alpha)
    assert read_stream(made.data).header.flags & Flags.SAME_MACHINE
    own = copy.deepcopy(network) if rate == 4 else merged(network, load(adapter))
    with torch.inference_mode():
        x = zoo.padded_input(picture)
        coded = prepare_coder(own).compress(x)
        decoded = own.decompress(coded["strings"], coded["shape"])["x_hat"]
        forward = own(x)["x_hat"]
    assert np.array_equal(back.picture.rgb, zoo.output_pixels(decoded, height, width, False))
    if type(network) is MeanScaleHyperprior:  # the other rounds its context without the means
        off = zoo.output_pixels(forward, height, width, False).astype(int) - back.picture.rgb
        assert np.abs(off).max() <= 1
    assert picture.alpha is not None
    weight = np.broadcast_to(picture.alpha[..., None] / 255, picture.rgb.shape)
    seen = weight * (back.picture.rgb.astype(float) - picture.rgb)
    mse = np.square(seen).sum() / np.square(weight).sum()
    assert made.psnr_db == pytest.approx(10 * math.log10(255**2 / mse))
    assert codec.compress(picture, rate).data == made.data


def test_rates_differ_and_others_are_refused(codec: zoo.ZooCodec) -> None:
    picture = Picture(photo_like(64, 64, 2))
    low, base = codec.compress(picture, 6), codec.compress(picture, 4)
    assert low.data != base.data
    for rate in (5, 4.5, 9):
        with pytest.raises(RateUnavailable):
            codec.compress(picture, rate)
    with pytest.raises(BadParameter):
        codec.compress(picture, 4, "ms-ssim")
    part = codec.decompress(low.data, View(Region(3, 4, 20, 30))).picture.rgb
    assert np.array_equal(part, codec.decompress(low.data).picture.rgb[4:34, 3:23])
    grey = Picture(np.repeat(picture.rgb[..., :1], 3, -1), grey=True)
    back = codec.decompress(codec.compress(grey, 6).data).picture
    assert back.grey and (back.rgb == back.rgb[..., :1]).all()


def test_models_say_that_they_are_for_one_machine(codec: zoo.ZooCodec, engine: Engine) -> None:
    (info,) = codec.models()
    assert info.same_machine and [r.rate for r in info.rates] == [4, 6]
    assert info.rates[1].sha256 == codec.adapters()[0].sha256
    assert not engine.models()[0].same_machine
    codec.self_test()


def test_no_byte_of_a_stranger_reaches_the_range_coder(
    codec: zoo.ZooCodec, network: nn.Module, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = codec.compress(Picture(photo_like(64, 64)), 4).data
    stream = read_stream(data)
    elsewhere = zoo.ZooCodec("small", network, {}, b"another machine's key, 32 bytes!")

    def never(*_: object) -> None:
        raise AssertionError("the range coder was reached")

    monkeypatch.setattr(type(network), "decompress", never)
    with pytest.raises(UnsupportedStream, match="on the machine that made them"):
        elsewhere.decompress(data)
    with pytest.raises(UnsupportedStream, match="only the machine that made it"):
        engine.decompress(data)
    ((signed,),) = stream.tiles
    for place in range(0, len(signed), 3):
        flipped = signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :]
        with pytest.raises(UnsupportedStream):
            codec.decompress(write_stream(replace(stream, tiles=((flipped,),))))
    for cut in (b"", signed[:5], signed[:40], signed[:-1]):
        with pytest.raises(UnsupportedStream):
            codec.decompress(write_stream(replace(stream, tiles=((cut,),))))
    for change in ({"width": 65}, {"height": 1}, {"flags": stream.header.flags | Flags.GREY}):
        header = replace(stream.header, **change)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedStream):
            codec.decompress(write_stream(replace(stream, header=header)))
    for change in ({"rate16": 96}, {"rate16": 72}, {"flags": 0}, {"model": b"1234"}):
        header = replace(stream.header, **change)  # type: ignore[arg-type]
        with pytest.raises((UnknownModel, BadStream)):
            codec.decompress(write_stream(replace(stream, header=header)))
    for place in range(len(data)):
        with pytest.raises(BadStream):
            codec.decompress(data[:place])


def test_other_software_on_the_same_machine_is_refused(
    codec: zoo.ZooCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = codec.compress(Picture(photo_like(64, 64)), 4).data
    monkeypatch.setattr(torch, "__version__", "99.0")
    with pytest.raises(UnsupportedStream, match="by the software that made them"):
        codec.decompress(data)


def test_adapters_that_do_not_fit_are_refused(network: nn.Module, adapter: bytes) -> None:
    good = load(adapter)
    name = next(n for n in good if n.endswith(".b"))
    wrong = {
        "nothing": {}, "half": {name: good[name]}, "infinite": good | {name: good[name] / 0},
        "shape": good | {name: good[name][:-1]},
        "path": good | {"x.a": good[name].clone(), "x.b": good[name].clone()},
        "name": good | {"odd": good[name].clone()}, "integers": good | {name: good[name].int()},
        "rank": good | {name: torch.zeros(good[name].shape[0], MAX_RANK + 1),
                        name[:-1] + "a": torch.zeros(MAX_RANK + 1, good[name[:-1] + "a"].shape[1])},
    }  # fmt: skip
    for tensors in wrong.values():
        with pytest.raises(BadAdapter):
            zoo.ZooCodec("small", network, {6: save(tensors)}, KEY)
    for data in (b"", b"garbage", adapter[:-1]):
        with pytest.raises(BadAdapter):
            zoo.ZooCodec("small", network, {6: data}, KEY)
    with pytest.raises(BadAdapter, match="no layer"):
        ZooAdapter(network, ["g_a.99"], 2)


def test_limits_hold(network: nn.Module, codec: zoo.ZooCodec) -> None:
    small = zoo.ZooCodec("small", network, {}, KEY, max_pixels=100)
    with pytest.raises(TooManyPixels):
        small.compress(Picture(photo_like(11, 10)), 4)
    data = codec.compress(Picture(photo_like(11, 10)), 4).data
    with pytest.raises(TooManyPixels):
        small.decompress(data)
    cell = zoo.ZooCodec("small", network, {}, KEY, max_pixels=64 * 64)
    assert cell.decompress(data).picture.width == 10
    assert cell.picture_load((10, 11), 4) == cell.preview_stream(data).load == Load(64 * 64)
    with pytest.raises(TooManyPixels, match="1x65, with sides rounded up to 64: 8192 pixels"):
        cell.compress(Picture(photo_like(65, 1)), 4)


def test_a_coder_that_does_not_reproduce_fails_the_self_test(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = zoo.ZooCodec("small", network, {}, KEY)
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: False)
    with pytest.raises(SelfTestFailed):
        broken.self_test()


def test_a_fresh_stream_that_does_not_decode_is_not_the_clients_fault(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = zoo.ZooCodec("small", network, {}, KEY)
    monkeypatch.setattr(hmac, "compare_digest", lambda *_: False)
    with pytest.raises(CheckFailed, match="the new stream does not decode"):
        broken.compress(Picture(photo_like(16, 16)), 4)
    (made,) = broken.compress_batch([Picture(photo_like(16, 16))], 4)
    assert isinstance(made, CheckFailed)


def test_an_adapter_that_streams_may_need_is_replaced_only_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    out = tmp_path / "5.safetensors"
    out.write_bytes(b"an adapter")
    train = ["train", "zoo", "no-model", "4", str(tmp_path), "--lmbda", "1", "--out", str(out)]
    refused = CliRunner().invoke(app, train)
    assert refused.exit_code != 0 and "--overwrite replaces it" in refused.output
    asked = CliRunner().invoke(app, [*train, "--overwrite"])
    assert asked.exit_code != 0 and "no picture" in asked.output, "it gets as far as the pictures"
    assert out.read_bytes() == b"an adapter"


def test_the_machines_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "machine.key"
    key = machine_key(path)
    assert len(key) == 32 and machine_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"short")
    with pytest.raises(StoreError, match="5 bytes"):
        machine_key(path)
    with pytest.raises(StoreError, match="RANKPRESS_MACHINE_KEY"):
        machine_key(path / "below a file" / "machine.key")


def test_two_processes_that_make_the_machines_key_at_once_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key has its name only once it is whole; whoever comes second takes the first one."""
    path, link = tmp_path / "machine.key", os.link

    def overtaken(source: Path, target: Path) -> None:
        assert Path(source).stat().st_size == 32 and not path.exists()
        path.write_bytes(b"the key that another process made")
        link(source, target)

    monkeypatch.setattr(os, "link", overtaken)
    with pytest.raises(StoreError, match="33 bytes"):
        machine_key(path)
    assert [p.name for p in tmp_path.iterdir()] == ["machine.key"]


def test_a_zoo_model_is_opened_by_name_with_the_adapters_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its published weights are replaced here: they would have to be downloaded."""
    network = untrained("mbt2018-mean")
    monkeypatch.setattr(opening, "pretrained", lambda *_: network)
    found = ZooAdapter(network, ["g_s.6"], 1)
    (tmp_path / "6.safetensors").write_bytes(save(dict(found.factors())))
    codec = opening.open_zoo("mbt2018-mean-4", tmp_path, tmp_path / "key", 10**6)
    assert [m.name for m in codec.models()] == ["mbt2018-mean-4"]
    assert [a.rate for a in codec.adapters()] == [6]
    with pytest.raises(BadParameter, match="expected a name and quality"):
        opening.open_zoo("mbt2018", None, tmp_path / "key", 10**6)
    (tmp_path / "4.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="not named after a rate"):
        opening.open_zoo("mbt2018-mean-4", tmp_path, tmp_path / "key", 10**6)
