"""The work on a shard: what is stored, what fails, and what an attempt that was cut leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from image_files import png_of
from small_model import photo_like

from bulk.conftest import Open, png
from service.bulk.options import BulkCompression, BulkDecompression
from service.bulk.process import WATCHDOG_EXIT_CODE
from service.bulk.reports import RowReport, read_report
from service.bulk.shards import Shard, ShardOutcome, Totals
from service.bulk.sources import FolderSource
from service.bulk.work import MOST_ATTEMPTS, ShardWork, ShardWorker
from service.codec.container import describe
from service.engine.opening import open_engine
from service.errors import BadParameter
from service.images.read import read_image
from service.images.write import write_image
from service.picture import Picture
from service.settings import Settings

SHARD = Shard(0)
KEYS = ["a.png", "below/b.PNG", "c.png"]


def rows_of(dest: Path) -> list[RowReport]:
    return list(read_report((dest / SHARD.report_key).read_bytes()))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def results_in(dest: Path) -> dict[str, bytes]:
    return {k: v for k, v in files_below(dest).items() if not k.startswith("_rankpress")}


def do(work: ShardWork) -> ShardOutcome:
    return work.open().do(SHARD)


def test_every_picture_is_stored_as_the_engine_compresses_it(
    begin: Open, source: Path, dest: Path, settings: Settings
) -> None:
    outcome = do(begin())
    engine = open_engine(settings)
    expected = {}
    for key in KEYS:
        picture = read_image((source / key).read_bytes(), max_pixels=10**6)
        expected[key + ".rkp"] = engine.compress(picture, 4)
    assert results_in(dest) == {key: c.data for key, c in expected.items()}
    for row in rows_of(dest):
        assert row.key is not None
        compressed = expected[row.key]
        assert (row.status, row.bytes_after) == ("stored", len(compressed.data))
        assert (row.bpp, row.psnr_db, row.rate) == (compressed.bpp, compressed.psnr_db, 4)
        assert row.graphics_share == compressed.graphics_share
    assert (outcome.totals.rows, outcome.totals.stored, outcome.failures) == (3, 3, ())


def test_poisoned_files_fail_alone_and_say_why(begin: Open, source: Path, dest: Path) -> None:
    (source / "bomb.png").write_bytes(png_of(b"", (100_000, 100_000), 8, 2))
    (source / "cut.png").write_bytes(png(5)[:300])
    (source / "empty.jpg").write_bytes(b"")
    (source / "gone.png").symlink_to("nowhere")
    (source / "no.webp").write_bytes(b"this is no picture")
    outcome = do(begin())
    assert sorted(results_in(dest)) == [key + ".rkp" for key in KEYS]
    errors = dict(outcome.failures)
    assert errors.keys() == {"bomb.png", "cut.png", "empty.jpg", "gone.png", "no.webp"}
    assert "the limit is 100000000" in errors["bomb.png"]
    assert errors["cut.png"] == "the PNG file is cut short"
    assert errors["empty.jpg"] == "the file is empty"
    assert errors["gone.png"] == "No such file or directory"
    assert "unknown kind" in errors["no.webp"]


def test_an_original_is_kept_where_the_stream_has_as_many_bytes(
    begin: Open, source: Path, dest: Path
) -> None:
    small = write_image(Picture(photo_like(32, 40, 9)), "webp", quality=1)
    (source / "small.webp").write_bytes(small)
    do(begin(BulkCompression(rate="lossless", keep_smaller=True)))
    for row in rows_of(dest):
        assert row.key is not None
        kept = row.key == row.source
        assert row.status == ("kept" if kept else "stored")
        data = (dest / row.key).read_bytes()
        assert data == (source / row.source).read_bytes() if kept else len(data) < row.bytes_before
    assert [row.status for row in rows_of(dest)] == ["stored", "stored", "stored", "kept"]


def test_a_finished_shard_is_only_read(begin: Open, dest: Path) -> None:
    first, before = do(begin()), files_below(dest)
    second = do(begin())
    assert second == ShardOutcome(0, first.totals, earlier=first.totals)
    assert files_below(dest) == before


def test_a_shard_whose_report_is_damaged_is_done_again(begin: Open, dest: Path) -> None:
    do(begin())
    (dest / SHARD.report_key).write_bytes(b"damaged")
    assert do(begin()).earlier == Totals()
    assert len(rows_of(dest)) == 3


def test_an_attempt_that_was_cut_is_completed(begin: Open, dest: Path) -> None:
    """Its objects are the same, or those of files that have changed since, and are replaced."""
    work = begin()
    do(work)
    whole = results_in(dest)
    (dest / SHARD.marker_key).unlink()
    (dest / SHARD.attempt_key(0)).parent.mkdir(parents=True, exist_ok=True)
    (dest / SHARD.attempt_key(0)).write_bytes(b"another start")
    (dest / "a.png.rkp").write_bytes(b"of another file")
    (dest / "c.png.rkp").unlink()
    (dest / "c.png.rkp#1").write_bytes(b"of a writer that was killed")
    assert do(work).failures == ()
    assert results_in(dest) == whole
    assert not (dest / SHARD.attempt_key(0)).exists()


def test_what_the_run_did_not_write_is_not_replaced(begin: Open, dest: Path) -> None:
    work = begin()
    (dest / "a.png.rkp").write_bytes(b"of somebody else")
    (failure,) = do(work).failures
    assert failure[0] == "a.png" and "--overwrite" in failure[1]
    assert (dest / "a.png.rkp").read_bytes() == b"of somebody else"
    assert do(begin(overwrite=True, retry_failed=True)).failures == ()
    assert describe((dest / "a.png.rkp").read_bytes()).width == 40


def test_only_failed_rows_are_done_again(begin: Open, source: Path, dest: Path) -> None:
    (source / "b.png").write_bytes(b"")
    assert len(do(begin()).failures) == 1
    before = rows_of(dest)
    (source / "b.png").write_bytes(png(7))
    assert do(begin()).earlier.rows == 4
    outcome = do(begin(retry_failed=True))
    assert (outcome.failures, outcome.earlier.rows, outcome.totals.stored) == ((), 3, 4)
    after = rows_of(dest)
    assert [row for row in after if row.source != "b.png"] == [
        row for row in before if row.source != "b.png"
    ]


class DeadlyWork(ShardWork):
    """Work whose processes are killed when they read the last picture."""

    def open(self) -> ShardWorker:
        read = FolderSource.read

        def deadly_read(source: FolderSource, key: str) -> bytes:
            if key == KEYS[-1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(source, key)

        FolderSource.read = deadly_read  # type: ignore[method-assign]
        return super().open()


def test_a_picture_that_ends_its_process_fails_alone(begin: Open, dest: Path) -> None:
    """It is found in the third attempt, whose rows are done in another process."""
    work = begin()
    attempts = [dest / SHARD.attempt_key(n) for n in range(2)]
    attempts[0].parent.mkdir(parents=True)
    for path in attempts:
        path.write_bytes(work.session.encode())
    deadly = DeadlyWork(**{field.name: getattr(work, field.name) for field in fields(work)})
    (failure,) = ShardWorker(deadly).do(SHARD).failures
    assert failure == (
        KEYS[-1], "its process was ended by SIGKILL, perhaps for lack of memory"
    )  # fmt: skip
    assert sorted(results_in(dest)) == [f"{key}.rkp" for key in KEYS[:-1]]
    assert not any(path.exists() for path in attempts)


def test_a_process_without_progress_ends_itself() -> None:
    code = """
import time
from service.bulk.process import Watchdog
with Watchdog(0.1):
    time.sleep(3600)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=120)
    assert ended.returncode == WATCHDOG_EXIT_CODE


def test_a_shard_that_always_ends_its_worker_is_given_up(begin: Open, dest: Path) -> None:
    work = begin()
    for number in range(MOST_ATTEMPTS):
        (dest / SHARD.attempt_key(number)).parent.mkdir(parents=True, exist_ok=True)
        (dest / SHARD.attempt_key(number)).write_bytes(work.session.encode())
    assert [source for source, _ in do(work).failures] == KEYS


def test_streams_become_the_pictures_that_the_engine_decodes_and_originals_come_back(
    begin: Open, source: Path, dest: Path, tmp_path: Path, settings: Settings
) -> None:
    small = write_image(Picture(photo_like(32, 40, 9)), "webp", quality=1)
    (source / "small.webp").write_bytes(small)
    do(begin(BulkCompression(rate="lossless", keep_smaller=True)))
    back = tmp_path / "back"
    do(begin(BulkDecompression(), source=dest, dest=back))
    pictures, engine = results_in(back), open_engine(settings)
    assert pictures.pop("small.webp") == small
    assert sorted(pictures) == KEYS
    for key, data in pictures.items():
        decoded = engine.decompress((dest / f"{key}.rkp").read_bytes()).picture
        assert (read_image(data, max_pixels=10**6).rgb == decoded.rgb).all()


def test_no_two_files_become_one_picture(begin: Open, dest: Path, tmp_path: Path) -> None:
    do(begin())
    shutil.copy(dest / "a.png.rkp", dest / "a.rkp")
    (dest / "c.png").write_bytes(png(3))
    outcome = do(begin(BulkDecompression(), source=dest, dest=tmp_path / "back"))
    assert dict(outcome.failures) == {
        "a.png.rkp": "a.rkp of the source would become a.png too",
        "a.rkp": "a.png.rkp of the source would become a.png too",
        "c.png.rkp": "c.png of the source would become c.png too",
    }


def test_a_run_with_other_options_is_refused(begin: Open) -> None:
    begin(BulkCompression(rate="4"))
    begin(BulkCompression())  # which is rate 4 as well
    with pytest.raises(BadParameter, match="rate is '4' there and '5' here"):
        begin(BulkCompression(rate="5"))
    with pytest.raises(BadParameter, match="action is 'compress' there and 'decompress' here"):
        begin(BulkDecompression())


@pytest.mark.parametrize("place", [".", "below", "below/new"])
def test_a_destination_in_the_source_is_refused(begin: Open, source: Path, place: str) -> None:
    with pytest.raises(BadParameter, match="outside of SOURCE"):
        begin(dest=source / place)
