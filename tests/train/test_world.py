"""Two processes of half a batch train as one of the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from service.train.checkpoint import read_about, read_tensors
from service.train.world import World

CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from safetensors.torch import save_file
from test_run import RECIPE, data, small_start
from service.train.run import TrainingRun, TrainingSession
from service.train.sampler import Sampler
from service.train.step import TrainingStep
from service.train.world import join_world
world, _ = join_world(torch.device("cpu"))
recipe = replace(RECIPE, batch=6)
step = TrainingStep(
    small_start(), Sampler(data().sources, recipe, world), recipe, "off", graph=False, world=world
)
step.run(0, 1e-3)
if world.first:
    tensors = {{n: t.contiguous() for n, t in step.tensors().items() if n.startswith("adam.m")}}
    save_file(tensors, Path({folder!r}).with_suffix(".step"))
class Clock:  # a second passes with every look of the first process at it
    now = 0.0
    def monotonic(self):
        self.now += 1
        return self.now
import service.train.run, service.train.progress
service.train.run.time = service.train.progress.time = Clock()
session = TrainingSession(minutes={minutes})
TrainingRun(Path({folder!r}), data(), recipe, small_start, session, "test", world).train(print)
"""


def train(folder: Path, processes: int, minutes: float) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = folder.parent / f"child-{processes}.py"
    script.write_text(CHILD.format(paths=paths, folder=str(folder), minutes=minutes))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    result = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else ()), str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_two_processes_train_as_one_and_go_on_as_one(tmp_path: Path) -> None:
    train(tmp_path / "one", 1, 0.1)
    train(tmp_path / "two", 2, 0.1)
    # a tenth of the gradients, which are in bfloat16
    one, two = (load_file(tmp_path / f"{name}.step") for name in ("one", "two"))
    for name, tensor in one.items():
        largest = float(tensor.abs().max())
        assert torch.allclose(tensor, two[name], rtol=2e-2, atol=5e-3 * largest), name
    assert read_about(tmp_path / "one")["step"] == read_about(tmp_path / "two")["step"] == 16
    one, two = (read_tensors(tmp_path / name, "ema.") for name in ("one", "two"))
    for name, tensor in one.items():
        assert float((tensor - two[name]).abs().mean()) < 2e-3, name
    train(tmp_path / "two", 1, 0.1)
    sessions = read_about(tmp_path / "two")["pieces"]
    assert [p["processes"] for p in sessions] == [2, 1] and sum(p["steps"] for p in sessions) == 32


def test_a_lone_process_is_the_whole_world() -> None:
    world, x = World(), torch.arange(6.0)
    assert world.first and world.part(x, 2) is x and world.agree("x") == "x"
    world.average([x])
    assert torch.equal(x, torch.arange(6.0)) and world.share(5) == 5
