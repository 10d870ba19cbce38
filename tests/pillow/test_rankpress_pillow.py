"""Pillow opens, saves and refuses streams like files of its own formats."""

from __future__ import annotations

import io
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rankpress_pillow
import torch
from conftest import Small
from image_files import chunk, profile
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from small_model import photo_like

from service.adapt.adaptation import PictureAdaptation
from service.adapt.plan import AdaptationPlan
from service.adapt.task import AdaptationTask
from service.codec import container
from service.codec.tiles import SEGMENTS
from service.engine.engine import Engine
from service.images import colour
from service.picture import WHOLE, Picture, View
from service.runtime.loading import load_models
from service.runtime.pipeline import LoadedModel
from service.store.model import StoredUpdate
from service.store.write import publish_updates, write_model

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory, small: Small) -> Iterator[None]:
    """Use the small model to open and to save streams, by its networks alone: it is so bad that
    lossless streams of most pictures cost less."""
    folder = tmp_path_factory.mktemp("store")
    write_model(folder / "small", small.stored, small.base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKPRESS_STORE", str(folder))
        patch.setenv("RANKPRESS_GRAPHICS", "false")
        forget()
        yield
    forget()


def forget() -> None:
    rankpress_pillow.engine_of.cache_clear()


def saved(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format="RKP", **options)
    return out.getvalue()


def test_a_picture_survives_a_file(tmp_path: Path, engine: Engine, photo: Picture) -> None:
    path = tmp_path / "photo.rkp"
    Image.fromarray(photo.rgb).save(path, rate=4)
    data = path.read_bytes()
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("RKP", "RGB", (106, 75))
        assert image.get_format_mimetype() == "application/vnd.rankpress"
        assert (image.info["rate"], image.info["tune"]) == (4, "psnr")
        assert len(bytes.fromhex(image.info["model"])) == 4
        result = np.asarray(image).astype(int)
    assert np.abs(result - engine.decompress(data).picture.rgb).max() <= 1


def decoded_views(monkeypatch: pytest.MonkeyPatch) -> list[View]:
    """The views that the plug-in decodes from now on, in order."""
    calls: list[View] = []
    decoder = rankpress_pillow.engine_of(os.getpid(), decode_only=True)

    def counted(data: bytes, view: View) -> object:
        calls.append(view)
        return decoder.decompress(data, view)

    spy = type("Spy", (), {"decompress": staticmethod(counted)})
    monkeypatch.setattr(rankpress_pillow, "engine_of", lambda *_, **__: spy)
    return calls


def test_opening_reads_and_only_loading_decodes(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, photo: Picture
) -> None:
    data = engine.compress(photo, 4).data
    calls = decoded_views(monkeypatch)
    image = Image.open(io.BytesIO(data))
    assert image.size == (106, 75) and calls == []
    image.load()
    image.load()
    assert image.copy().resize((10, 10)).size == (10, 10)
    assert calls == [WHOLE]


def test_a_thumbnail_decodes_the_smallest_scale_that_suffices(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    picture = Picture(photo_like(150, 201, 3))
    data = engine.compress(picture, 4).data
    calls = decoded_views(monkeypatch)
    for bound, size in ((9, (26, 19)), (18, (51, 38)), (37, (101, 75)), (150, (201, 150))):
        image = Image.open(io.BytesIO(data))
        image.thumbnail((bound, bound))
        expected = engine.decompress(data, View(max_size=bound)).picture.rgb
        assert image.size == expected.shape[1::-1]
        assert calls.pop() == View(size=size)
        assert np.abs(np.asarray(image).astype(int) - expected).mean() < 5, "another filter"
    image = Image.open(io.BytesIO(data))
    assert image.draft("L", (25, 18)) == ("RGB", (0, 0, 26, 19))
    assert image.draft("L", (2, 2)) is None, "the first draft stays"
    assert image.size == (26, 19) and np.asarray(image).shape == (19, 26, 3)
    assert image.draft("L", (2, 2)) is None, "it is decoded"


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_grey_stays_grey_and_alpha_is_exact(mode: str, engine: Engine, photo: Picture) -> None:
    samples = np.dstack([photo.rgb, photo.rgb[..., 1]])
    source = Image.fromarray(samples).convert(mode)
    data = saved(source)
    expected = engine.decompress(data).picture
    assert expected.grey == (mode in ("L", "LA"))
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        colours = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(colours - expected.rgb).max() <= 1
        if mode.endswith("A"):
            assert image.getchannel("A").tobytes() == source.getchannel("A").tobytes()


def test_what_alpha_hides_costs_nothing_and_comes_back_cleared(photo: Picture) -> None:
    alpha = np.where(photo.rgb[..., 1] > 128, 255, 0).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, photo.rgb.shape, np.uint8)
    other = np.where(alpha[..., None] > 0, photo.rgb, noise)
    streams = [saved(Image.fromarray(np.dstack([rgb, alpha]))) for rgb in (photo.rgb, other)]
    assert streams[0] == streams[1]
    with Image.open(io.BytesIO(streams[0])) as image:
        assert not np.asarray(image)[alpha == 0].any()


def test_the_frame_that_is_shown_is_saved() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    gif = io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    with Image.open(gif) as image:
        image.seek(1)
        data = saved(image)
    assert data == saved(frames[1])


def test_an_opaque_alpha_channel_and_palettes_are_saved_as_what_they_show(photo: Picture) -> None:
    opaque = Image.fromarray(photo.rgb).convert("RGBA")
    with Image.open(io.BytesIO(saved(opaque))) as image:
        assert image.mode == "RGB"
    palette = Image.fromarray(photo.rgb).quantize(8)
    with Image.open(io.BytesIO(saved(palette))) as image:
        assert image.mode == "RGB"
    palette.info["transparency"] = 0
    with Image.open(io.BytesIO(saved(palette))) as image:
        assert image.mode == "RGBA" and 0 in image.getchannel("A").getextrema()
    bilevel = Image.new("1", (9, 5), 1)
    with Image.open(io.BytesIO(saved(bilevel))) as image:
        assert image.mode == "L" and image.size == (9, 5)


def test_damaged_exif_is_left_out_with_a_warning(photo: Picture) -> None:
    """Damaged Exif is left out when a stream is opened and saved, as other formats refuse it."""
    source = Image.fromarray(photo.rgb)
    for damaged in (b"no Exif", b"Exif\0\0II*\0"):
        with pytest.warns(UserWarning, match="the Exif block is damaged and was left out"):
            data = saved(source, exif=damaged)
        assert container.read_stream(data).exif is None
        stream = replace(container.read_stream(data), exif=damaged)
        with pytest.warns(UserWarning, match="the Exif block is damaged and was left out"):
            image = Image.open(io.BytesIO(container.write_stream(stream)))
        assert "exif" not in image.info and not image.getexif()
        image.load()


def test_profile_and_exif_come_back_as_they_were(photo: Picture) -> None:
    source = Image.fromarray(photo.rgb)
    tags = Image.Exif()
    tags[ExifTags.Base.Artist] = "A. Person"
    tags[ExifTags.Base.Orientation] = 6
    icc = profile()
    with Image.open(io.BytesIO(saved(source, exif=tags, icc_profile=icc))) as image:
        assert image.info["icc_profile"] == icc
        assert image.getexif()[ExifTags.Base.Artist] == "A. Person"
        assert image.getexif()[ExifTags.Base.Orientation] == 6
        again = saved(image)
    with Image.open(io.BytesIO(again)) as image:
        assert image.info["icc_profile"] == icc, "a profile is kept, as Pillow's formats keep it"
        assert "exif" not in image.info, "Exif is saved on request, as in Pillow's formats"
    assert "icc_profile" not in Image.open(io.BytesIO(saved(image, icc_profile=None))).info


def test_colours_that_pillow_tells_without_a_profile_are_kept_as_one(photo: Picture) -> None:
    """A profile is made from PNG's gamma and chromaticities, or Exif's Adobe RGB."""
    adobe = Image.Exif()
    adobe[ExifTags.IFD.Exif] = {ExifTags.Base.ColorSpace: 2}
    png = io.BytesIO()
    Image.fromarray(photo.rgb).save(png, "PNG", exif=adobe)
    linear = io.BytesIO(png_with_gamma(Image.fromarray(photo.rgb).convert("L"), 1.0))
    plain = io.BytesIO(png_with_gamma(Image.fromarray(photo.rgb), 1 / 2.2))
    for file, space in ((png, "RGB"), (linear, "GRAY"), (plain, "")):
        with Image.open(file) as source:
            data, without = saved(source), saved(source, icc_profile=None)
        assert "icc_profile" not in Image.open(io.BytesIO(without)).info
        with Image.open(io.BytesIO(data)) as image:
            icc = image.info.get("icc_profile", b"")
            assert colour.space(icc) == space
            assert image.mode == source.mode
            if space == "GRAY":
                to_srgb = colour.to_srgb(icc, "L")
                assert to_srgb is not None
                grey = to_srgb.apply(Image.new("L", (1, 1), 128)).getpixel((0, 0))
                assert grey == (188, 188, 188)


def png_with_gamma(image: Image.Image, value: float) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    gamma = chunk(b"gAMA", struct.pack(">I", round(value * 1e5)))
    return out.getvalue()[:33] + gamma + out.getvalue()[33:]


def test_a_target_takes_the_place_of_a_rate(photo: Picture) -> None:
    source = Image.fromarray(photo.rgb)
    size = len(saved(source))
    assert len(saved(source, max_bytes=size)) <= size
    with pytest.raises(ValueError, match="rate and max_bytes"):
        saved(source, rate=4, max_bytes=size)
    for wrong in (9, "best", math.nan):
        with pytest.raises(ValueError, match='a number from 1 to 8 or "lossless"'):
            saved(source, rate=wrong)
    with pytest.raises(ValueError, match="rate and max_bytes"):
        saved(source, rate="lossless", max_bytes=size)
    with pytest.raises(ValueError, match="no tune 'vmaf'"):
        saved(source, tune="vmaf")
    with pytest.raises(ValueError, match="positive"):
        saved(source, target_psnr=-1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P"])
def test_lossless_gives_every_sample_back(mode: str, photo: Picture) -> None:
    rgba = np.dstack([photo.rgb, photo.rgb[..., 1] // 2 + 128])
    source = Image.fromarray(rgba[..., :3] if mode == "P" else rgba).convert(mode)
    shown = source.convert({"1": "L", "P": "RGB"}.get(mode, mode))
    data = saved(source, rate="lossless")
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.size) == (shown.mode, (106, 75))
        assert image.info["rate"] == "lossless"
        assert image.tobytes() == shown.tobytes()
        again = saved(image, rate="lossless")
    assert again == data, "nothing is lost the second time either"


def test_a_palette_with_a_transparent_entry_is_lossless_too(photo: Picture) -> None:
    """Colours under alpha 0 are cleared, as for every rate."""
    source = Image.fromarray(photo.rgb).quantize(8)
    source.info["transparency"] = 0
    expected = np.asarray(source.convert("RGBA")).copy()
    expected[expected[..., 3] == 0] = 0
    with Image.open(io.BytesIO(saved(source, rate="lossless"))) as image:
        assert image.mode == "RGBA"
        assert np.array_equal(np.asarray(image), expected)


def test_a_drawing_becomes_lossless_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKPRESS_GRAPHICS", "true")
    forget()
    source = Image.new("RGB", (60, 40), (250, 250, 240))
    source.paste((200, 30, 30), (10, 10, 33, 27))
    with Image.open(io.BytesIO(saved(source, rate=4))) as image:
        assert image.info["rate"] == "lossless"
        assert image.tobytes() == source.tobytes()
    forget()


@pytest.mark.parametrize("mode", ["CMYK", "F", "I", "I;16", "YCbCr", "HSV"])
def test_modes_without_a_place_in_a_stream_are_refused(mode: str) -> None:
    with pytest.raises(OSError, match="cannot write mode"):
        saved(Image.new(mode, (8, 8)))


def test_a_file_that_could_not_be_saved_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot write mode"):
        Image.new("F", (8, 8)).save(tmp_path / "x.rkp")
    assert list(tmp_path.iterdir()) == []


def test_every_prefix_and_every_flipped_byte_is_refused_or_right_sized(
    engine: Engine, photo: Picture
) -> None:
    data = engine.compress(Picture(photo.rgb, photo.rgb[..., 0]), 4).data
    places = [*range(40), *range(40, len(data), max(1, len(data) // 60))]
    for at in places:
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(data[:at]))
        damaged = bytearray(data)
        damaged[at] ^= 0x55
        with pytest.raises((UnidentifiedImageError, OSError, Image.DecompressionBombError)):
            Image.open(io.BytesIO(bytes(damaged))).load()


def resealed(data: bytes, change: Callable[[container.Stream], container.Stream]) -> bytes:
    """A stream whose checksum is right although its content was changed."""
    return container.write_stream(change(container.read_stream(data)))


def test_damage_under_a_right_checksum_fails_when_it_is_loaded(
    engine: Engine, photo: Picture
) -> None:
    data = engine.compress(photo, 4).data
    cut = resealed(data, lambda s: replace(s, tiles=((s.tiles[0][0][:-8],),)))
    image = Image.open(io.BytesIO(cut))
    assert image.size == (106, 75)
    with pytest.raises(OSError, match="coded bytes|zero byte"):
        image.load()
    other = resealed(data, lambda s: replace(s, header=replace(s.header, model=b"none")))
    with pytest.raises(OSError, match="needs weights 6e6f6e65"):
        Image.open(io.BytesIO(other)).load()


def test_a_stream_that_names_a_ready_update_opens(
    engine: Engine, loaded: LoadedModel, small: Small, photo: Picture, tmp_path: Path
) -> None:
    """One that its store holds; one that no store holds is named."""
    adaptation = PictureAdaptation(
        loaded, AdaptationTask(photo, 64, 0.05, AdaptationPlan(120, 1, rank=1))
    )
    adaptation.advance(math.inf)
    fitted = container.read_stream(adaptation.best()).update
    assert fitted is not None
    update = StoredUpdate("photo", fitted, {})
    write_model(tmp_path / "small", small.stored, small.base)
    stored = publish_updates(tmp_path / "small", [update])
    data = resealed(engine.compress(photo, 4).data, lambda s: replace(s, ready=update.reference))
    expected = Engine(load_models((stored,), "cpu", torch.float32)).decompress(data).picture.rgb
    plain = engine.decompress(engine.compress(photo, 4).data).picture.rgb
    assert np.abs(expected.astype(int) - plain).max() > 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKPRESS_STORE", str(tmp_path))
        forget()
        with Image.open(io.BytesIO(data)) as image:
            result = np.asarray(image.convert("RGB")).astype(int)
    forget()
    assert np.abs(result - expected).max() <= 1
    data = resealed(engine.compress(photo, 4).data, lambda s: replace(s, ready=b"none"))
    with pytest.raises(OSError, match="ready update 6e6f6e65"):
        Image.open(io.BytesIO(data)).load()


def test_a_newer_format_is_named_and_not_called_unidentified(
    engine: Engine, photo: Picture
) -> None:
    data = bytearray(engine.compress(photo, 4).data)
    data[3] = 9
    with pytest.raises(OSError, match="format version 9") as caught:
        Image.open(io.BytesIO(bytes(data)))
    assert not isinstance(caught.value, UnidentifiedImageError)


def test_a_bomb_is_refused_when_it_is_opened_by_pillows_own_limit(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, photo: Picture
) -> None:
    data = engine.compress(photo, 4).data

    def enlarged(stream: container.Stream) -> container.Stream:
        header = replace(stream.header, width=container.MAX_SIDE, height=container.MAX_SIDE)
        return replace(stream, header=header, tiles=((b"",) * len(SEGMENTS),) * 65536)

    bomb = resealed(data, enlarged)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 106 * 75 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))


def test_pillows_parser_and_lists_know_the_format(engine: Engine, photo: Picture) -> None:
    assert Image.registered_extensions()[".rkp"] == "RKP"
    data = engine.compress(photo, 4).data
    parser = ImageFile.Parser()
    parser.feed(data[:20])
    parser.feed(data[20:])
    assert parser.close().size == (106, 75)
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data), formats=["PNG"])


BASE_INSTALL = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "fastapi", "starlette"}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Without())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "torch" else find(name, *a)
import rankpress_pillow
from PIL import Image
image = Image.open(sys.argv[1])
heavy = {"onnxruntime", "constriction"} & set(sys.modules)
print(image.size, sorted(heavy))
image.load()
print(image.mode)
try:
    image.save(sys.argv[2])
except OSError as error:
    print(error)
"""


def test_opening_needs_only_the_base_install_and_saving_says_what_it_needs(
    tmp_path: Path, engine: Engine, photo: Picture
) -> None:
    source, target = tmp_path / "a.rkp", tmp_path / "b.rkp"
    source.write_bytes(engine.compress(photo, 4).data)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BASE_INSTALL, str(source), str(target)],
        cwd=REPO,
        env={"PYTHONPATH": "service/pillow:.", **_environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    opened, loaded, refused = done.stdout.splitlines()
    assert (opened, loaded) == ("(106, 75) []", "RGB")
    assert "torch" in refused and "rankpress[server]" in refused
    assert not target.exists()


def _environment() -> dict[str, str]:
    import os

    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def test_a_cut_stream_opens_where_pillow_allows_it(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    data = engine.compress(Picture(photo_like(528, 560)), 4).data
    cut = data[: container.describe(data).marks[3][1]]
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(cut))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(io.BytesIO(cut)) as image:
        expected = engine.decompress(cut, View(partial=True)).picture.rgb
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
