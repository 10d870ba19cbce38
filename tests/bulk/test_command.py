"""`rankpress bulk`, with its worker processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset
import pytest
from typer.testing import CliRunner, Result

from bulk.conftest import InThisProcess
from service.bulk.options import BulkCompression
from service.bulk.shards import ShardOutcome
from service.bulk.trial import try_run
from service.cli.main import app
from service.settings import Settings


def bulk(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bulk", *map(str, arguments)])


def sums_of(dest: Path) -> Mapping[str, object]:
    """The summary that another program makes of the reports."""
    table = pyarrow.dataset.dataset(dest / "_rankpress/reports").to_table()
    done = table.filter(pc.field("status") != "failed")
    return {
        "rows": len(table),
        "failed": len(table) - len(done),
        "bytes_before": pc.sum(done["bytes_before"]).as_py(),
        "bytes_after": pc.sum(done["bytes_after"]).as_py(),
    }


def test_a_run_is_summed_up_as_its_reports_are(source: Path, dest: Path, store: Path) -> None:
    (source / "empty.png").write_bytes(b"")
    options = "--workers", "1", "--shard-rows", "3", "--store", store, "--json"
    result = bulk(source, dest, *options)
    assert result.exit_code == 1
    assert "error: empty.png: the file is empty\n" in result.stderr
    summary = json.loads(result.stdout)
    sums = sums_of(dest)
    assert {name: summary[name] for name in sums} == sums
    assert (summary["rows"], summary["stored"], summary["skipped"]) == (4, 3, {".txt": 1})


def test_a_trial_of_everything_estimates_what_a_run_writes_and_writes_nothing(
    source: Path, dest: Path, settings: Settings
) -> None:
    sizes: list[int] = []

    def note(size: int, outcome: ShardOutcome) -> None:
        sizes.append(size)
        assert outcome.totals.failed == 0

    options = BulkCompression()
    estimate = try_run(str(source), options, settings, InThisProcess(), 1, 10, on_outcome=note)
    assert {*sizes} == {3} and not dest.exists()
    assert (estimate.rows, estimate.sample.rows, estimate.skipped) == (3, 3, {".txt": 1})
    assert estimate.bytes_after == estimate.sample.bytes_after
    assert estimate.pictures_per_s > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rate", "4", "--max-bytes", "9"], "expected only one of them"),
        (["--rate", "7"], "has no rate 7"),
        (["--effort", "1", "--target-psnr", "30"], "--effort adapts at a rate"),
        (["--max-seconds", "9"], "expected --effort with it"),
        (["--quality", "50"], "no effect when compressing"),
        (["--decompress", "--keep-smaller"], "no effect when decompressing"),
        (["--decompress", "--tune", "ms-ssim"], "no effect when decompressing"),
        (["--decompress", "--quality", "50"], "PNG is lossless"),
        (["--tune", "ms-ssim"], "tune"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(
    source: Path, dest: Path, store: Path, arguments: list[str], reason: str
) -> None:
    result = bulk(source, dest, "--store", store, *arguments)
    assert (result.exit_code, dest.exists()) == (2, False)
    assert reason in result.stderr


def test_a_source_that_is_no_folder_is_refused(tmp_path: Path, store: Path) -> None:
    for place in ("nothing", "ftp://server/folder"):
        result = bulk(place, tmp_path / "dest", "--store", store)
        assert result.exit_code == 2 and place in result.stderr
