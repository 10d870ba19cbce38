"""The command line with a fast codec, some of it in a process of its own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api.fake_codec import FakeCodec
from image_files import exif_of, file_of, photo, profile
from PIL import ExifTags, Image
from typer.testing import CliRunner, Result

import service.engine.opening
from service.cli import main
from service.cli.batch import ConvertedFile, check_output, run_batch
from service.cli.plan import BatchPlan, Task, plan_batch
from service.codec.container import LOSSLESS16, NO_MODEL, Flags, Header, Stream, write_stream
from service.codec.graphics import make_layer, write_layer
from service.engine.types import DecoderFiles
from service.errors import BadParameter
from service.files import IMAGE_SUFFIXES
from service.images import exif
from service.images.read import read_image
from service.picture import Picture
from service.settings import Settings

RGB = photo()
PNG = file_of(Image.fromarray(RGB), "PNG")
RKP = write_stream(
    Stream(Header(b"\1\2\3\4", 64, Flags.GREY, 37, 24), ((b"latents",),), icc=b"icc")
)


class OpenedCodec(FakeCodec):
    """A fast codec that records the settings of each time that it is opened."""

    def __init__(self) -> None:
        super().__init__(max_pixels=1 << 20)
        self.opened: list[Settings] = []

    def open(self, settings: Settings, *, warm: bool = False) -> OpenedCodec:
        del warm
        self.opened.append(settings)
        return self


@pytest.fixture(autouse=True)
def codec(monkeypatch: pytest.MonkeyPatch) -> OpenedCodec:
    """The engine that every command opens."""
    quick = OpenedCodec()
    monkeypatch.setattr(service.engine.opening, "open_engine", quick.open)
    for name in [name for name in os.environ if name.startswith("RANKPRESS_")]:
        monkeypatch.delenv(name)
    return quick


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one of every test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rankpress(*arguments: str, input: bytes | None = None) -> Result:
    return CliRunner().invoke(main.app, list(arguments), input=input)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def photos(here: Path) -> Path:
    """A folder `in` of a.png, b.jpg, b.png, sub/c.png, text, a hidden file and a hidden folder."""
    for name in ("a.png", "b.png", "sub/c.PNG", ".hidden.png", ".git/d.png"):
        path = here / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    (here / "in" / "b.jpg").write_bytes(file_of(Image.fromarray(RGB), "JPEG"))
    (here / "in" / "notes.txt").write_text("text")
    return here


def test_a_file_there_and_back(here: Path) -> None:
    Path("a.png").write_bytes(PNG)
    result = rankpress("compress", "a.png", "a.rkp")
    assert result.exit_code == 0 and result.stdout == ""
    assert "a.rkp" in result.stderr and "37x24" in result.stderr
    assert rankpress("decompress", "a.rkp", "b.png").exit_code == 0
    with Image.open("b.png") as image:
        assert np.array_equal(np.asarray(image), RGB)
    assert tree(here) == ["a.png", "a.rkp", "b.png"]


def test_a_map_is_drawn_of_each_file(photos: Path, codec: OpenedCodec) -> None:
    result = rankpress("maps", "in", "out", "--rates", "2,4", "--model", "fake", "--json")
    assert result.exit_code == 0 and codec.opened[0].model == "fake"
    assert {line["rate"] for line in lines(result)} == {None}
    for line in lines(result):
        with Image.open(line["target"]) as image:
            assert (image.format, image.size) == ("PNG", (line["width"], line["height"]))
    assert tree(photos / "out") == ["a.png", "b.jpg.png", "b.png.png", "sub/c.png"]
    codec.calls = 0
    for wrong in (["--rates", "2,x"], ["--at", "1,1"], ["--attention", "--at", "1"]):
        refused = rankpress("maps", "in/a.png", "map.png", *wrong)
        assert refused.exit_code == 2 and not Path("map.png").exists()
    assert codec.calls == 0


def test_pipes_carry_data_and_nothing_else(codec: OpenedCodec) -> None:
    large = file_of(Image.fromarray(RGB), "BMP")
    compressed = rankpress("compress", "-", "-", "--rate", "2", input=large)
    assert compressed.exit_code == 0 and compressed.stderr == ""
    assert codec.decompress(compressed.stdout_bytes).rate == 2
    back = rankpress("decompress", "-", "-", input=compressed.stdout_bytes)
    assert np.array_equal(read_image(back.stdout_bytes, max_pixels=1 << 20).rgb, RGB)


@pytest.mark.parametrize("option", [("--target-bpp", "90"), ("--max-bytes", "9000"),
                                    ("--target-psnr", "30")])  # fmt: skip
def test_a_target_takes_the_place_of_the_rate(option: tuple[str, str]) -> None:
    Path("a.png").write_bytes(PNG)
    result = rankpress("compress", "a.png", "a.rkp", "--json", *option)
    assert result.exit_code == 0, result.stderr
    assert lines(result)[0]["rate"] == 2, "what the codec chose"


def test_a_target_out_of_reach_fails_that_file(here: Path) -> None:
    Path("a.png").write_bytes(PNG)
    result = rankpress("compress", "a.png", "a.rkp", "--max-bytes", "7")
    assert result.exit_code == 1 and "bytes at least" in result.stderr
    assert tree(here) == ["a.png"]


@pytest.mark.parametrize(
    "options", [("--rate", "4", "--max-bytes", "9"), ("--target-bpp", "1", "--target-psnr", "9"),
                ("--rate", "lossless", "--max-bytes", "9"), ("--target-bpp", "0"),
                ("--max-bytes", "-1"), ("--target-psnr", "nan")],
)  # fmt: skip
def test_two_targets_or_one_that_is_no_positive_number_are_wrong_usage(
    codec: OpenedCodec, options: tuple[str, ...]
) -> None:
    Path("a.png").write_bytes(PNG)
    assert rankpress("compress", "a.png", "a.rkp", *options).exit_code == 2
    assert codec.opened == [], "known before any model is loaded"


def test_folders_are_mirrored(photos: Path) -> None:
    result = rankpress("compress", "in", "out")
    assert result.exit_code == 0, result.stderr
    assert tree(photos / "out") == ["a.rkp", "b.jpg.rkp", "b.png.rkp", "sub/c.rkp"]
    assert "4 files" in result.stderr
    assert rankpress("decompress", "out", "back", "--format", "webp").exit_code == 0
    assert tree(photos / "back") == ["a.webp", "b.jpg.webp", "b.png.webp", "sub/c.webp"]


def test_several_inputs_go_into_a_folder(photos: Path) -> None:
    assert rankpress("compress", "in/a.png", "in/sub", "out").exit_code == 0
    assert tree(photos / "out") == ["a.rkp", "sub/c.rkp"]
    assert rankpress("compress", "in/a.png", "new/").exit_code == 0
    assert tree(photos / "new") == ["a.rkp"]


def test_a_bad_file_does_not_stop_the_rest(photos: Path) -> None:
    (photos / "in" / "a.png").write_bytes(PNG[:40])
    result = rankpress("compress", "in", "missing.png", "out", "--json")
    assert result.exit_code == 1
    answer = {line["source"]: line for line in lines(result)}
    assert set(answer) == {"in/a.png", "in/b.jpg", "in/b.png", "in/sub/c.PNG", "missing.png"}
    assert not answer["in/a.png"]["ok"] and "cut short" in answer["in/a.png"]["error"]
    assert answer["missing.png"]["error"] == "No such file or directory"
    size = (photos / "out/in/b.png.rkp").stat().st_size
    assert answer["in/b.png"] | {"seconds": 0} == {
        "source": "in/b.png",
        "target": "out/in/b.png.rkp",
        "ok": True,
        "seconds": 0,
        "input_bytes": len(PNG),
        "output_bytes": size,
        "width": 37,
        "height": 24,
        "rate": 4.0,
        "bpp": answer["in/b.png"]["output_bytes"] * 8 / (37 * 24),
        "psnr_db": None,
        "notes": [f"the stream of {size} bytes is larger than its source of {len(PNG)}"],
        "larger_than_source": True,
    }
    assert "error: in/a.png: the PNG file is cut short" in result.stderr
    assert "error: missing.png: No such file or directory" in result.stderr


def test_pictures_of_kinds_that_are_not_read_fail_and_other_files_are_counted(photos: Path) -> None:
    (photos / "in" / "IMG_1.JXL").write_bytes(b"\xff\x0a" + bytes(40))
    (photos / "in" / "sub" / "old.TXT").write_text("text")
    (photos / "in" / "README").write_text("text")
    os.mkfifo("in/pipe.png")
    result = rankpress("compress", "in", "out", "--json")
    assert result.exit_code == 1
    failed = [line for line in lines(result) if not line["ok"]]
    assert [(f["source"], f["target"]) for f in failed] == [("in/IMG_1.JXL", "out/IMG_1.rkp")]
    assert failed[0]["error"].startswith("JPEG XL files are not read")
    assert result.stderr.splitlines()[-2:] == [
        "skipped: in/pipe.png is no plain file",
        "skipped: files of other kinds: 2 .txt, 1 no suffix",
    ]
    shown = rankpress("compress", "in", "out", "-f")
    assert "4 files, 1 failed" in shown.stderr
    assert "files of other kinds: 2 .txt, 1 no suffix" in shown.stderr
    os.rename("in/IMG_1.JXL", "IMG_1.JXL")
    assert rankpress("compress", "in", "out", "-f").exit_code == 0, "other files are no failure"
    alone = rankpress("decompress", "out", "back")
    assert alone.exit_code == 0 and "skipped" not in alone.stderr


@pytest.mark.usefixtures("photos")
def test_a_folder_that_cannot_be_read_fails_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unreadable(Path("in/sub"), monkeypatch)
    result = rankpress("compress", "in", "out", "--json")
    assert result.exit_code == 1
    answer = lines(result)
    assert [line["source"] for line in answer if line["ok"]] == ["in/a.png", "in/b.jpg", "in/b.png"]
    assert answer[0] == {"source": "in/sub", "target": "out", "ok": False,
                       "error": "Permission denied"}  # fmt: skip
    assert "error: in/sub: Permission denied" in result.stderr
    assert "3 files, 1 failed" in rankpress("compress", "in", "out", "-f").stderr
    alone = rankpress("compress", "in/sub", "out")
    assert alone.exit_code == 1
    assert alone.stderr == "error: in/sub: Permission denied\nno file was written, 1 failed\n"


def unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder unreadable, even for root."""
    really = os.listdir

    def listdir(path: str | Path = ".") -> list[str]:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return really(path)

    monkeypatch.setattr(os, "listdir", listdir)


def test_links_to_folders_are_followed_and_loops_told(photos: Path) -> None:
    (photos / "elsewhere").mkdir()
    (photos / "elsewhere" / "d.png").write_bytes(PNG)
    (photos / "in" / "linked").symlink_to("../elsewhere")
    (photos / "elsewhere" / "up").symlink_to("../in")
    (photos / "in" / "gone.png").symlink_to("nothing")
    result = rankpress("compress", "in", "out")
    assert result.exit_code == 1
    assert "error: in/gone.png: No such file or directory" in result.stderr
    assert "skipped: in/linked/up is a link to one of its parent folders" in result.stderr
    assert tree(photos / "out") == ["a.rkp", "b.jpg.rkp", "b.png.rkp", "linked/d.rkp", "sub/c.rkp"]


def test_damaged_exif_of_a_stream_is_a_note_and_no_failure(codec: OpenedCodec) -> None:
    Path("a.png").write_bytes(PNG)
    assert rankpress("compress", "a.png", "a.rkp").exit_code == 0
    codec.exif = b"no Exif"
    for more in ((), ("--region", "1,2,6,5"), ("--max-size", "7")):
        result = rankpress("decompress", "a.rkp", "a.avif", "--json", "-f", *more)
        assert result.exit_code == 0, result.stderr
        (line,) = lines(result)
        assert "the Exif block is damaged" in line["notes"][0]


def test_nothing_is_overwritten_without_leave(codec: OpenedCodec) -> None:
    Path("a.png").write_bytes(PNG)
    Path("a.rkp").write_bytes(b"precious")
    result = rankpress("compress", "a.png", "a.rkp")
    assert result.exit_code == 1
    assert "cannot write a.rkp: it exists; --overwrite replaces it" in result.stderr
    assert Path("a.rkp").read_bytes() == b"precious" and codec.calls == 0
    assert rankpress("compress", "a.png", "a.rkp", "-f").exit_code == 0
    assert Path("a.rkp").read_bytes() != b"precious"


def test_files_have_the_modes_that_new_files_have() -> None:
    Path("a.png").write_bytes(PNG)
    rankpress("compress", "a.png", "a.rkp")
    assert Path("a.rkp").stat().st_mode == Path("a.png").stat().st_mode


def test_a_failed_write_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    Path("a.png").write_bytes(PNG)
    monkeypatch.setattr(os, "replace", full)
    result = rankpress("compress", "a.png", "a.rkp")
    assert result.exit_code == 1 and result.stderr.startswith(
        "error: a.png: cannot write a.rkp: No space left on device\n"
    )
    assert tree(here) == ["a.png"]


def test_overwriting_keeps_links_and_modes() -> None:
    Path("a.png").write_bytes(PNG)
    Path("real.rkp").write_bytes(b"old")
    Path("real.rkp").chmod(0o600)
    Path("a.rkp").symlink_to("real.rkp")
    assert "a.rkp: it exists" in rankpress("compress", "a.png", "a.rkp").stderr
    assert rankpress("compress", "a.png", "a.rkp", "-f").exit_code == 0
    assert Path("a.rkp").is_symlink() and Path("real.rkp").stat().st_mode & 0o777 == 0o600
    assert rankpress("decompress", "real.rkp", "b.png").exit_code == 0


def test_pipes_and_standard_output_by_name_need_no_leave() -> None:
    Path("a.bmp").write_bytes(file_of(Image.fromarray(RGB), "BMP"))
    data = rankpress("compress", "a.bmp", "-").stdout_bytes
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        result = rankpress("compress", "a.bmp", name)
        assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, data, "")
        result = rankpress("compress", "a.bmp", name, "--json")
        assert result.exit_code == 2 and "expected a file for OUT" in result.stderr
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        assert rankpress("compress", "a.bmp", "pipe").exit_code == 0
        assert reader.communicate()[0] == data
    assert Path("pipe").is_fifo()


def test_a_place_that_cannot_be_written_is_known_before_the_work(codec: OpenedCodec) -> None:
    longest = "x" * 251
    Path(f"{longest}.png").write_bytes(PNG)
    assert rankpress("compress", f"{longest}.png", "out/").exit_code == 0
    assert os.listdir("out") == [f"{longest}.rkp"] and codec.calls == 1
    Path(f"{longest}.jpg").write_bytes(PNG)
    Path("folder").mkdir()
    for target, reason in (("y" * 256, "File name too long"), ("new/" + "y" * 256, "File name too"),
                           (f"{longest}.png/a.rkp", "Not a directory")):  # fmt: skip
        result = rankpress("compress", f"{longest}.jpg", target, "-f")
        assert result.exit_code == 1 and reason in result.stderr
    Path("in").mkdir()
    Path("in/a.png").write_bytes(PNG)
    Path("out/a.rkp").mkdir()
    result = rankpress("compress", "in", "out", "-f")
    assert result.exit_code == 1
    assert "cannot write out/a.rkp: it is a folder, expected a file" in result.stderr
    assert codec.calls == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "in", "-"], "OUT is standard output for several files"),
        (["compress", "-", "out/"], "standard input is one of the inputs"),
        (["compress", "in/a.png", "-", "new"], "standard input is one of the inputs"),
        (["compress", "in", "in/a.png"], "OUT is the file in/a.png, expected a folder"),
        (["compress", "in/a.png", "in/a.png", "-f"], "would be replaced by its own result"),
        (["compress", "in/a.png", "in/a.png", "out"], "several inputs would become out/a.png.rkp"),
        (["compress", "in/.git/..", "empty", "out", "--rate", "9"], "rate is 9, expected a number"),
        (["compress", "in", "out", "--rate", "best"], "rate is best, expected a number from 1 to"),
        (["compress", "in", "out", "--rate", "nan"], 'or "lossless"'),
        (["adapt", "in", "out", "--rate", "lossless"], "unable to parse string as a number"),
        (["compress", "empty", "out"], "nothing to do in empty: no files"),
        (["decompress", "in", "out"], "in in: files of other kinds: 1 .jpg, 3 .png, 1 .txt"),
        (["compress", "in/a.png", "-", "--json"], "expected a file for OUT"),
        (["compress", "in/a.png", "new.rkp", "--rate", "3"], "rate is 3, expected one of 2, 4"),
        (["decompress", "a.rkp", "a.tga"], "expected a suffix of .png, .webp, .jpg, .jpeg, .avif"),
        (["decompress", "a.rkp", "a.png", "--region", "1,2,3"], "region is '1,2,3', expected four"),
        (["decompress", "a.rkp", "a.png", "--quality", "9"], "PNG is lossless"),
        (["compress", "in/a.png"], "Missing argument 'IN'"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage_exits_2_and_says_why(photos: Path, arguments: list[str], message: str) -> None:
    (photos / "empty").mkdir()
    (photos / "a.rkp").write_bytes(RKP)
    before = tree(photos)
    result = rankpress(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert tree(photos) == before


def test_a_terminal_gets_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.batch.sys.stdout", TTY())
    with pytest.raises(BadParameter, match="standard output is a terminal"):
        check_output("-", json=False)


class TTY(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("view", [["--region", "3,4,20,10"], ["--max-size", "20"], []])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "avif"])
def test_a_part_has_no_exif_of_the_whole(format: str, view: list[str], codec: OpenedCodec) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "Maker"
    tags[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExifImageWidth: 37,
        ExifTags.Base.MakerNote: b"focus at 30, 20",
    }
    codec.exif = tags.tobytes().removeprefix(exif.PREFIX)
    Path("a.png").write_bytes(PNG)
    rankpress("compress", "a.png", "a.rkp")
    assert rankpress("decompress", "a.rkp", f"b.{format}", *view).exit_code == 0
    with Image.open(f"b.{format}") as image:
        camera = image.getexif().get_ifd(ExifTags.IFD.Exif)
        assert image.getexif()[ExifTags.Base.Make] == "Maker"
        assert camera[ExifTags.Base.ExifImageWidth] == image.width == (20 if view else 37)
        assert (ExifTags.Base.MakerNote in camera) == (not view)


def test_format_quality_region_and_size() -> None:
    Path("a.png").write_bytes(PNG)
    rankpress("compress", "a.png", "a.rkp")
    for name in ("a.webp", "a.jpg", "a.jpeg", "a.avif"):
        assert rankpress("decompress", "a.rkp", name).exit_code == 0
        with Image.open(name) as image:
            assert image.format == {"a.webp": "WEBP", "a.avif": "AVIF"}.get(name, "JPEG")
    low = rankpress("decompress", "a.rkp", "low.jpg", "--quality", "5", "--json")
    assert lines(low)[0]["output_bytes"] < Path("a.jpg").stat().st_size
    part = rankpress("decompress", "a.rkp", "part.png", "--region", "3,4,20,10", "--json")
    assert lines(part)[0]["bpp"] is None
    with Image.open("part.png") as image:
        assert np.array_equal(np.asarray(image), RGB[4:14, 3:23])
    rankpress("decompress", "a.rkp", "small.png", "--max-size", "10")
    with Image.open("small.png") as image:
        assert image.size == (10, 6)
    outside = rankpress("decompress", "a.rkp", "no.png", "--region", "30,0,20,10")
    assert outside.exit_code == 1 and "reaches outside the picture of 37x24" in outside.stderr


def test_metadata_is_what_was_asked_for(
    codec: OpenedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.jpg").write_bytes(
        file_of(Image.fromarray(RGB), "JPEG", icc_profile=profile(), exif=b"Exif\0\0" + exif_of(6))
    )
    pictures: list[Picture] = []
    really = codec.compress
    monkeypatch.setattr(codec, "compress", lambda p, r, t: (pictures.append(p), really(p, r, t))[1])
    for metadata in ("icc", "all", "none"):
        assert rankpress("compress", "a.jpg", f"{metadata}.rkp", "--metadata", metadata
                         ).exit_code == 0  # fmt: skip
    assert [(p.icc is not None, p.exif is not None) for p in pictures] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    answer = rankpress("compress", "a.jpg", "again.rkp", "--metadata", "none")
    assert "a.jpg: colours converted to sRGB by the file's profile" in answer.stderr


def test_options_then_environment_then_defaults(
    codec: OpenedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.png").write_bytes(PNG)
    monkeypatch.setenv("RANKPRESS_DEVICE", "cpu")
    monkeypatch.setenv("RANKPRESS_MAX_PIXELS", "1000")
    rankpress("compress", "a.png", "a.rkp")
    rankpress("compress", "a.png", "b.rkp", "--device", "cuda", "--no-check", "--store", "s",
              "--model", "m")  # fmt: skip
    first, second = codec.opened
    assert first == Settings(device="cpu", max_pixels=1000) and first.check
    assert second.device == "cuda" and not second.check
    assert (second.store, second.model) == (Path("s"), "m")
    monkeypatch.setenv("RANKPRESS_MAX_PIXELS", "800")
    small = rankpress("compress", "a.png", "c.rkp")
    assert small.exit_code == 1 and "37x24 = 888 pixels, the limit is 800" in small.stderr


def test_a_frame_is_chosen_for_files_that_have_several(here: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    refused = rankpress("compress", "a.gif", "a.rkp")
    assert refused.exit_code == 1 and "choose one: frame=0" in refused.stderr
    assert rankpress("compress", "a.gif", "a.rkp", "--rate", "2", "--frame", "1").exit_code == 0
    assert rankpress("decompress", "a.rkp", "a.png").exit_code == 0
    assert np.asarray(Image.open("a.png"))[3, 4].tolist() == [0, 0, 255]
    assert tree(here) == ["a.gif", "a.png", "a.rkp"]


def test_streams_that_are_larger_than_their_sources_are_told() -> None:
    Image.new("1", (300, 200)).save("flat.png")
    Image.effect_noise((60, 60), 90).convert("RGB").save("noisy.bmp")
    one = rankpress("compress", "flat.png", "one.rkp", "--rate", "2")
    said = " ".join(one.stderr.split())
    assert one.exit_code == 0 and "is larger than its source" in said, said
    both = rankpress("compress", "flat.png", "noisy.bmp", "out/", "--rate", "2")
    assert "1 of 2 streams are larger than their source files" in both.stderr
    ran = rankpress("compress", "flat.png", "noisy.bmp", "json/", "--rate", "2", "--json")
    answer = {line["source"]: line for line in lines(ran)}
    assert [answer[n]["larger_than_source"] for n in ("flat.png", "noisy.bmp")] == [True, False]
    back = rankpress("decompress", "out/noisy.rkp", "back.png")
    assert "larger" not in back.stderr


def test_info_says_what_the_stream_holds() -> None:
    Path("a.rkp").write_bytes(RKP)
    Path("bad.rkp").write_bytes(RKP[:-1])
    result = rankpress("info", "a.rkp", "--json")
    assert result.exit_code == 0
    answer = lines(result)[0]
    assert (answer["width"], answer["height"], answer["rate"], answer["grey"]) == (
        37,
        24,
        4.0,
        True,
    )
    assert answer["model"] == "01020304" and answer["total_bytes"] == len(RKP)
    assert answer["tune"] == "psnr"
    assert answer["bpp"] == 8 * len(RKP) / (37 * 24)
    assert {name for name, _ in answer["sections"]} == {"latents", "icc"}
    shown = rankpress("info", "a.rkp", "bad.rkp", "missing.rkp")
    assert shown.exit_code == 1
    assert "37x24 grey" in shown.stdout and f"{len(RKP)} bytes" in shown.stdout
    assert "error: bad.rkp: " in shown.stderr and "error: missing.rkp: No such" in shown.stderr
    assert lines(rankpress("info", "-", "--json", input=RKP))[0]["width"] == 37


def test_info_says_what_the_rate_was_trained_for() -> None:
    header = Header(b"\1\2\3\4", 40, Flags.MS_SSIM, 37, 24)
    Path("a.rkp").write_bytes(write_stream(Stream(header, ((b"latents",),))))
    assert lines(rankpress("info", "a.rkp", "--json"))[0]["tune"] == "ms-ssim"
    assert re.search(r"rate +2\.5, tune ms-ssim", rankpress("info", "a.rkp").stdout)


def test_info_says_how_much_of_the_picture_is_exact() -> None:
    rgb = photo(40, 40)
    marked = np.zeros((3, 3), np.bool_)
    marked[0] = True
    layers = [make_layer(Picture(rgb), marked), make_layer(Picture(rgb), np.ones_like(marked))]
    sizes = [len(write_layer(layer)) for layer in layers]
    part = Stream(Header(b"\1\2\3\4", 64, 0, 40, 40), ((b"latents!",),), graphics=layers[0])
    whole = Stream(Header(NO_MODEL, LOSSLESS16, 0, 40, 40), (), graphics=layers[1])
    Path("part.rkp").write_bytes(write_stream(part))
    Path("whole.rkp").write_bytes(write_stream(whole))
    answers = lines(rankpress("info", "part.rkp", "whole.rkp", "--json"))
    assert [(a["rate"], a["model"]) for a in answers] == [(4.0, "01020304"), (None, "00000000")]
    assert [a["graphics_share"] for a in answers] == [pytest.approx(1 / 3), 1]
    assert [dict(a["sections"])["graphics"] for a in answers] == sizes
    shown = rankpress("info", "part.rkp", "whole.rkp").stdout
    assert "33.3% of the blocks are exact" in shown and "100.0% of the blocks" in shown
    assert re.search(r"rate +4, tune psnr", shown) and "lossless, needs no model" in shown


def test_lossless_reaches_the_codec_and_is_told_as_no_number() -> None:
    Path("a.png").write_bytes(PNG)
    result = rankpress("compress", "a.png", "a.rkp", "--rate", "lossless", "--json")
    assert result.exit_code == 0, result.stderr
    (answer,) = lines(result)
    assert (answer["rate"], answer["psnr_db"]) == (None, None)
    shown = rankpress("compress", "a.png", "a.rkp", "--rate", "lossless", "-f")
    assert "exact" in shown.stderr
    assert lines(rankpress("decompress", "a.rkp", "b.png", "--json"))[0]["rate"] is None
    with Image.open("b.png") as image:
        assert np.array_equal(np.asarray(image), RGB)


def test_tune_reaches_the_codec_with_a_rate_and_with_a_target(codec: OpenedCodec) -> None:
    Path("a.png").write_bytes(PNG)
    for options in (("--rate", "2"), ("--max-bytes", "99999")):
        result = rankpress("compress", "a.png", "a.rkp", "-f", "--tune", "ms-ssim", *options)
        assert result.exit_code == 0, result.stderr
    assert codec.tunes == ["ms-ssim", "ms-ssim"]
    rankpress("compress", "a.png", "a.rkp", "-f")
    assert codec.tunes[-1] == "psnr"
    assert rankpress("compress", "a.png", "b.rkp", "--tune", "butteraugli").exit_code == 2
    assert not Path("b.rkp").exists()


def test_models_lists_rates_that_do_not_say_their_lmbda(
    codec: OpenedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates of adapters that were loaded at run time."""
    (model,) = codec.models()
    rates = tuple(replace(rate, lmbda=None) for rate in model.rates)
    monkeypatch.setattr(codec, "models", lambda: (replace(model, rates=rates),))
    ran = rankpress("models")
    assert ran.exit_code == 0 and "ab" * 32 in ran.stdout
    assert re.search(r"ms-ssim +2 +0\.200 +27\.00 +0\.9700 +98", ran.stdout)


def test_models_lists_rates() -> None:
    shown = rankpress("models").stdout
    assert "fake" in shown and "ab" * 32 in shown and "0.350" in shown
    answer = lines(rankpress("models", "--json"))
    assert [(r["tune"], r["rate"]) for r in answer[0]["rates"]] == [
        ("ms-ssim", 2.0), ("psnr", 4.0), ("psnr", 2.0),
    ]  # fmt: skip
    assert re.search(r"ms-ssim +2 +4\.5 +0\.200 +27\.00 +0\.9700 +98", shown)
    assert answer[0]["training"] == {"steps": 3}


def test_decoder_files_are_those_that_a_server_offers(
    codec: OpenedCodec, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = codec.decoder_files()
    for _ in range(2):  # what is there already is written again
        ran = rankpress("decoder-files", "weights")
        assert ran.exit_code == 0, ran.stderr
        written = {path.name: path.read_bytes() for path in (here / "weights").iterdir()}
        assert written == {**made.files, "index.json": made.index}
    assert codec.opened[-1].decode_only
    monkeypatch.setattr(codec, "decoder_files", DecoderFiles)
    refused = rankpress("decoder-files", "none")
    assert refused.exit_code == 2 and "web pages can decode" in refused.stderr
    assert not (here / "none").exists()


def test_serve_hands_over_codec_and_settings(
    codec: OpenedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("service.server.run.serve", lambda c, s: served.extend([c, s]))
    result = rankpress("serve", "--port", "0", "--workers", "3", "--log-format", "text")
    assert result.exit_code == 0, result.stderr
    assert served[0] is codec
    assert (served[1].port, served[1].workers, served[1].log_format) == (0, 3, "text")


def test_serving_decode_only_opens_the_light_decoder_and_needs_no_torch(
    codec: OpenedCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("service.server.run.serve", lambda _, s: served.append(s))
    monkeypatch.setattr("service.cli.serve.find_spec", lambda _: None)
    result = rankpress("serve")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: serving needs torch: pip install 'rankpress[server]', or serve --decode-only\n"
    )
    result = rankpress("serve", "--decode-only", "--objects", "somewhere")
    assert result.exit_code == 0, result.stderr
    assert served[0].decode_only and served[0].objects_url == "somewhere"
    assert codec.opened[-1].decode_only


def test_a_bug_is_one_line_or_a_traceback(codec: OpenedCodec, here: Path) -> None:
    Path("a.png").write_bytes(PNG)
    codec.fault = KeyError("weights")
    result = rankpress("compress", "a.png", "a.rkp")
    assert result.exit_code == 70
    assert result.stderr == (
        "error: unexpected KeyError: 'weights'; rankpress --debug shows where\n"
    )
    assert isinstance(rankpress("--debug", "compress", "a.png", "a.rkp").exception, KeyError)
    assert tree(here) == ["a.png"]


def test_names_that_no_terminal_can_show() -> None:
    name = os.fsdecode(b"\xff\x1b[31m\n.png")
    Path(name).write_bytes(b"bad")
    result = rankpress("compress", name, "out/")
    assert result.exit_code == 1 and result.stderr.startswith("error: ??[31m .png: the file is of")
    assert "\x1b" not in result.stderr
    assert lines(rankpress("compress", name, "out/", "--json"))[0]["source"] == name


def test_the_next_file_is_read_while_one_is_made(here: Path) -> None:
    tasks = [Task(here / str(n), here / f"{n}.out") for n in range(4)]
    for task in tasks:
        assert task.source is not None
        task.source.write_bytes(task.source.name.encode())
    started = [threading.Event() for _ in range(5)]
    started[4].set()
    most = 0

    def load(data: bytes) -> int:
        started[int(data)].set()
        return int(data)

    def convert(number: int) -> ConvertedFile:
        nonlocal most
        assert started[number + 1].wait(10)
        most = max(most, sum(event.is_set() for event in started[:4]) - number)
        return ConvertedFile(b"made %d" % number, 1, 1, 4.0, 8.0, None, ())

    done = list(run_batch(BatchPlan(tasks), load, convert, overwrite=False))
    assert [outcome.error for outcome in done] == [None] * 4
    assert (here / "3.out").read_bytes() == b"made 3"
    assert most == 2


def test_plan_strips_only_suffixes_it_knows() -> None:
    planned = plan_batch(["photo.2024", "b.JPG"], "out", IMAGE_SUFFIXES, ".rkp")
    assert [str(task.target) for task in planned.tasks] == ["out/photo.2024.rkp", "out/b.rkp"]


START = "import sys; sys.argv[0] = 'rankpress'; from service.cli.main import main; "
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(main.__file__).parents[2])}
HELP = """
try:
    main()
except SystemExit:
    heavy = "torch", "fastapi", "numpy", "PIL", "pydantic"
    print([name for name in heavy if name in sys.modules])
"""
SLOW = """
import signal, threading, service.cli.batch, service.engine.opening
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
class Slow:
    def compress(self, picture, rate, tune):
        print("begun", flush=True)
        threading.Event().wait()
read = service.cli.batch.read_bytes
def read_bytes(source):
    if source is None:
        print("begun", flush=True)
    return read(source)
service.cli.batch.read_bytes = read_bytes
service.engine.opening.open_engine = lambda *_, **__: Slow()
main()
"""


def process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


def test_help_loads_nothing_heavy() -> None:
    result = process(START + HELP, "--help")
    assert result.stdout.endswith("[]\n"), result.stdout + result.stderr
    assert "decompress" in result.stdout


def test_a_missing_extra_is_named() -> None:
    code = START.replace("import sys;", "import sys; sys.modules['fastapi'] = None;") + "main()"
    result = process(code, "serve")
    assert result.returncode == 1
    assert result.stderr == "error: serving needs fastapi: pip install 'rankpress[server]'\n"
    result = process(code, "serve", "--decode-only")
    assert result.stderr == "error: serving needs fastapi: pip install 'rankpress[decode]'\n"


@pytest.mark.parametrize("source", ["a.png", "-"], ids=["working", "reading"])
def test_an_interrupt_ends_with_130_and_no_half_file(here: Path, source: str) -> None:
    Path("a.png").write_bytes(PNG)
    with subprocess.Popen(
        [sys.executable, "-c", START + SLOW, "compress", source, "a.rkp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"begun\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 130
        assert child.stderr is not None and child.stderr.read() == b"error: interrupted\n"
    assert tree(here) == ["a.png"]
