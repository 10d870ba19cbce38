"""A backbone's training run: by the clock, in as many pieces as you like, resumed exactly.

    rankpress train base PICTURES --run runs/mine --minutes 480 --decay 60 --measure HELD_OUT

Each piece goes on from the run's folder (checkpoint.py) as if there had been no interruption: the
weights, Adam's moments, the average and the number of the step, of which every draw is a function.
The learning rate rises over `warmup` steps and is then constant; the cosine decay that a run ends
with is begun only when asked for, at the end of a piece's minutes, and is counted in steps, so that
it too goes on exactly when it is cut off.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from service.codec.sizes import Sizes
from service.errors import BadParameter
from service.eval.machine import device_name
from service.nets.compiling import Compile
from service.nets.model import Backbone
from service.train.checkpoint import as_type, has_state, read_about, read_tensors, write_state
from service.train.evaluate import Quality, evaluate
from service.train.ladder import RateLadder
from service.train.progress import Meter, Progress, RateProgress, Report
from service.train.recipe import Decay, Recipe, learning_rate
from service.train.sources import Data
from service.train.step import TrainingStep
from service.train.world import World

SYNC_STEPS: Final = 16
"""The host runs at most so many steps ahead of the device, to keep to the clock."""


@dataclass(frozen=True)
class Piece:
    """How long this piece of a run is and how it is done.

    Attributes:
        minutes: of this piece. decay: how many of them, at its end, are the run's final decay.
        report_s: between progress lines. checkpoint_s: between checkpoints.
        measure: folder of pictures, measured at the end; None for none.
        compiled: what to compile. graph: replay CUDA graphs on CUDA.
        moments: of Adam, as checkpoints keep them; exact only in float32.
        commit: of the code, for the record.
    """

    minutes: float
    decay: float = 0.0
    report_s: float = 10.0
    checkpoint_s: float = 300.0
    measure: Path | None = None
    compiled: Compile = "off"
    graph: bool = True
    moments: torch.dtype = torch.float32
    commit: str = ""


class Run:
    """A run in its folder: its state, and what is known of how it came about."""

    def __init__(
        self,
        folder: Path,
        data: Data,
        recipe: Recipe,
        start: Callable[[], RateLadder],
        piece: Piece,
        started_from: str,
        world: World | None = None,
    ) -> None:
        """Begin a run, or take it up where its folder says.

        Args:
            folder: of the run. data: tiles on the device to train on.
            recipe: must be that of the run, if there is one already.
            start: gives the model of a run that is new. piece: see Piece.
            started_from: what `start` gives, for the record.
            world: the processes that train together.

        Raises:
            BadParameter: the folder's run has another recipe, other tiles, or has decayed already.
        """
        self._folder, self._recipe, self._piece = folder, recipe, piece
        self._world, self._device = world or World(), data.sources[0].tiles.device
        if has_state(folder):
            self._about = read_about(folder)
            self._refuse_other(asdict(recipe), dict(data.record))
            sizes = Sizes.from_dict(self._about["sizes"])
            ladder = RateLadder(Backbone(sizes), recipe.rates)
        else:
            ladder = start()
            self._about = {
                "sizes": asdict(ladder.base.sizes),
                "recipe": asdict(recipe),
                "data": data.record,
                "started_from": started_from,
                "step": 0,
                "decay": None,
                "pieces": [],
                "measured": None,
            }
        ladder = ladder.to(self._device).train()
        self._world.spread(t.data for t in ladder.state_dict().values())
        sampler = data.sampler(recipe, self._world)
        self._work = TrainingStep(
            ladder, sampler, recipe, piece.compiled, piece.graph, self._world
        )
        if has_state(folder):
            self._work.load(as_type(read_tensors(folder), torch.float32))
        self._step: int = self._about["step"]
        told = self._about["decay"]
        self._decay = Decay(**told) if told else None
        self._first, self._began = self._step, time.monotonic()
        self._pace = self._first, 0.0
        if self._world.first:
            folder.mkdir(parents=True, exist_ok=True)
        self.shards = 0
        self._earlier = list(self._about["pieces"])

    @property
    def step(self) -> int:
        """Steps done in all pieces."""
        return self._step

    @property
    def finished(self) -> bool:
        """Whether the final decay is done."""
        return self._decay is not None and self._step >= self._decay.start + self._decay.steps

    def train(self, report: Report) -> dict[int, Quality]:
        """Do the piece; its state is kept at the end, also when interrupted.

        Returns:
            What the averaged weights measure with real rounding at each rate; nothing where there
            is nothing to measure on.

        Raises:
            BadParameter: another process trains in the folder.
        """
        if not self._world.first:
            self._train(lambda _: None)
            return {}
        with _alone(self._folder):
            self._train(report)
        return self._measure()

    def _train(self, report: Report) -> None:
        self._began = saved = time.monotonic()
        meter = Meter(self._step)
        try:
            while self._goes_on():
                for _ in range(min(SYNC_STEPS, self._left())):
                    lr = learning_rate(self._recipe, self._step, self._decay)
                    self._work.run(self._step, lr)
                    self._step += 1
                self._work.wait()
                if self._pace[0] == self._first:
                    self._pace = self._step, self._minutes()
                if meter.due(self._piece.report_s):
                    report(self._progress(meter))
                if time.monotonic() - saved > self._piece.checkpoint_s:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()
        if self._step > meter.step:
            report(self._progress(meter))

    def _goes_on(self) -> bool:
        """Whether another few steps are to be done; all processes do as the first one says."""
        self._begin_decay()
        goes_on = not self.finished and self._minutes() < self._piece.minutes
        agreed: tuple[bool, Decay | None] = self._world.agree((goes_on, self._decay))
        goes_on, self._decay = agreed
        return goes_on

    def save(self) -> None:
        """Write the state. Of a finished run only the averaged weights are kept."""
        if not self._world.first:
            return
        self._about |= {
            "step": self._step,
            "pixels": self._step * self._recipe.pixels,
            "skipped": self._work.skipped,
            "decay": asdict(self._decay) if self._decay else None,
            "pieces": [*self._earlier, self._this_piece()],
        }
        tensors = self._work.tensors()
        if self.finished:
            tensors = {n: t for n, t in tensors.items() if n.startswith("ema.")}
        if self._piece.moments != torch.float32:
            moments = {n: t for n, t in tensors.items() if n.startswith(("adam.m.", "adam.v."))}
            tensors |= as_type(moments, self._piece.moments)
        self.shards = write_state(self._folder, tensors, self._about)

    def _minutes(self) -> float:
        return (time.monotonic() - self._began) / 60

    def _left(self) -> int:
        """Steps until the decay ends; plenty where there is none."""
        return SYNC_STEPS if self._decay is None else (
            self._decay.start + self._decay.steps - self._step
        )

    def _begin_decay(self) -> None:
        """Once the clock says so, count the rest of the piece in steps at the speed so far."""
        piece, minutes = self._piece, self._minutes()
        if self._decay is not None or not piece.decay or minutes < piece.minutes - piece.decay:
            return
        # the first steps compile, and say nothing of the speed
        pace_step, pace_minutes = self._pace
        if self._step > pace_step > self._first:
            speed = (self._step - pace_step) / (minutes - pace_minutes)
            steps = max(1, int(0.98 * speed * (piece.minutes - minutes)))
            self._decay = Decay(self._step, steps)

    def _progress(self, meter: Meter) -> Progress:
        rates = {
            rate: RateProgress(m.loss, m.bpp, -10 * math.log10(max(m.mse, 1e-10)))
            for rate, m in self._work.means().items()
            if m.steps
        }
        steps, seconds = meter.lap(self._step)
        progress = Progress(
            step=self._step,
            minutes=self._total_minutes(),
            rates=rates,
            pixels_per_s=steps * self._recipe.pixels / seconds,
            lr=learning_rate(self._recipe, self._step - 1, self._decay),
            skipped=self._work.skipped,
        )
        if self._world.first:
            with (self._folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(asdict(progress)) + "\n")
        return progress

    def _total_minutes(self) -> float:
        earlier: float = sum(p["minutes"] for p in self._earlier)
        return earlier + self._minutes()

    def _this_piece(self) -> dict[str, Any]:
        return {
            "steps": self._step - self._first,
            "minutes": round(self._minutes(), 2),
            "device": device_name(self._device.type),
            "processes": self._world.size,
            "torch": torch.__version__,
            "commit": self._piece.commit,
        }

    def _measure(self) -> dict[int, Quality]:
        if self._piece.measure is None:
            return {}
        ladder = RateLadder(Backbone(self._work.ladder.base.sizes), self._recipe.rates)
        ladder.load_state_dict(self._work.averaged())
        measured = evaluate(ladder.to(self._device).eval(), self._piece.measure)
        record = {
            "step": self._step,
            "folder": self._piece.measure.name,
            "rates": {str(rate): asdict(quality) for rate, quality in measured.items()},
        }
        self._about["measured"] = record
        with (self._folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"measured": record}) + "\n")
        self.save()
        return measured

    def _refuse_other(self, recipe: dict[str, Any], data: dict[str, Any]) -> None:
        for name, mine in (("recipe", recipe), ("data", data)):
            if self._about[name] != json.loads(json.dumps(mine)):
                raise BadParameter(
                    f"{self._folder} holds a run with {name} {self._about[name]}, not {mine}; "
                    "give another --run, and --from this one to go on from its weights"
                )
        decay = self._about["decay"]
        if decay and self._about["step"] >= decay["start"] + decay["steps"]:
            raise BadParameter(
                f"{self._folder} holds a run that has ended with its decay: export it, or begin "
                "another --run --from it"
            )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run's folder."""
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadParameter(f"another process is training in {folder}") from None
        yield


def training_record(about: Mapping[str, Any]) -> dict[str, object]:
    """What a manifest says of a run: data, pixels seen, minutes, devices, commits, recipe."""
    pieces = about["pieces"]
    return {
        "data": about["data"],
        "started_from": about["started_from"],
        "recipe": about["recipe"],
        "steps": about["step"],
        "pixels": about["pixels"],
        "skipped": about["skipped"],
        "decay": about["decay"],
        "minutes": round(sum(p["minutes"] for p in pieces), 1),
        "devices": sorted({p["device"] for p in pieces}),
        "commits": sorted({p["commit"] for p in pieces if p["commit"]}),
        "measured": about["measured"],
    }
