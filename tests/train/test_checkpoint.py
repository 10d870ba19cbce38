"""A run's state comes back whole, in small files, wherever a writer was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from power_cut import PowerCut, cuts
from torch import Tensor

from service.errors import BadParameter
from service.train.checkpoint import (
    SHARD_BYTES,
    has_state,
    plan_shards,
    read_about,
    read_tensors,
    write_state,
)


def tensors(fill: float) -> dict[str, Tensor]:
    """20.8 MB in four tensors, and scalars."""
    big = {f"model.{i}": torch.full((1300, 1000), float(fill + i)) for i in range(4)}
    return big | {"adam.step": torch.tensor(fill), "skipped": torch.tensor(int(fill))}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_state_comes_back_in_shards_of_at_most_16_mib(tmp_path: Path) -> None:
    assert not has_state(tmp_path)
    count = write_state(tmp_path, tensors(1), {"step": 7})
    files = list(tmp_path.glob("*.safetensors"))
    assert count == len(files) == 2
    assert all(f.stat().st_size <= 16 * 2**20 for f in files)
    assert same(read_tensors(tmp_path), tensors(1))
    assert read_tensors(tmp_path, "adam.").keys() == {"step"}
    assert has_state(tmp_path) and read_about(tmp_path)["step"] == 7


def test_an_older_state_is_replaced_and_its_shards_go(tmp_path: Path) -> None:
    write_state(tmp_path, tensors(1), {})
    (tmp_path / "tiles.safetensors").write_bytes(b"mine")
    write_state(tmp_path, tensors(2), {})
    assert same(read_tensors(tmp_path), tensors(2))
    assert len(list(tmp_path.glob("state-*"))) == 2 and (tmp_path / "tiles.safetensors").exists()


def test_a_write_that_is_cut_off_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path, tensors(1), {"step": 1})
    seen = []
    for _ in cuts(monkeypatch):
        try:
            write_state(tmp_path, tensors(2), {"step": 2})
        except PowerCut:
            pass
        step = read_about(tmp_path)["step"]
        assert same(read_tensors(tmp_path), tensors(step))
        seen.append(step)
    monkeypatch.undo()
    assert seen == sorted(seen) and set(seen) == {1, 2}, seen
    assert seen.count(1) >= 5, "two shards and the record were each cut while written or renamed"


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="contains no run"):
        read_about(tmp_path)
    write_state(tmp_path, tensors(1), {})
    shard = next(tmp_path.glob("state-*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BadParameter, match="not the shard"):
        read_tensors(tmp_path)
    shard.unlink()
    with pytest.raises(BadParameter, match="cannot be read"):
        read_tensors(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"schema": 9}))
    with pytest.raises(BadParameter, match="not the record"):
        read_about(tmp_path)


def test_a_tensor_that_no_shard_holds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    wide = {"w": torch.zeros(SHARD_BYTES // 4)}
    with pytest.raises(BadParameter, match="a shard holds at most"):
        write_state(tmp_path, wide, {})
    assert list(tmp_path.iterdir()) == [] and len(plan_shards(tensors(0))) == 2
