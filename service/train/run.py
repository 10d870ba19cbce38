"""A backbone's training run: any number of sessions of some minutes each, resumed exactly.

    rankpress train base PICTURES --run runs/mine --minutes 480 --decay 60 --measure HELD_OUT

A session resumes from the run's folder (checkpoint.py) as if there had been no interruption: the
folder holds the weights, the optimisers' state, the averaged weights and the number of the step,
and every random draw is a function of that number. The learning rate rises over `warmup` steps and
is then constant. The final cosine decay is requested for the last minutes of a session and counted
in steps, so that it too resumes exactly.
"""

from __future__ import annotations

import fcntl
import json
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
from service.train.evaluate import Quality, evaluate, psnr_db
from service.train.ladder import RateLadder
from service.train.progress import BackboneProgress, Meter, RateFigures
from service.train.recipe import BackboneRecipe, Decay, learning_rate
from service.train.sampler import TrainingData
from service.train.step import TrainingStep
from service.train.world import World

SYNC_STEPS: Final = 16
"""Steps that the host queues before it waits for the device and reads the clock."""


@dataclass(frozen=True)
class TrainingSession:
    """Settings of one session of a run, which may differ from one session to the next.

    Attributes:
        minutes: length of the session.
        decay: how many of these minutes, at the end, are the run's final decay.
        report_s: seconds between progress reports.
        checkpoint_s: seconds between checkpoints.
        measure: folder of pictures to measure on at the end; None to measure nothing.
        compiled: what to compile.
        graph: replay CUDA graphs on CUDA.
        moments: type of Adam's moments in checkpoints; only float32 resumes exactly.
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


class TrainingRun:
    """A run in its folder: the state of training, and the record of all sessions."""

    def __init__(
        self,
        folder: Path,
        data: TrainingData,
        recipe: BackboneRecipe,
        start: Callable[[], RateLadder],
        session: TrainingSession,
        started_from: str,
        world: World | None = None,
    ) -> None:
        """Begin a run, or resume the one in the folder.

        Args:
            folder: of the run.
            data: tiles on the device that trains.
            recipe: of the run; a run that exists must have the same.
            start: returns the initial model of a new run.
            session: settings of this session.
            started_from: name of the initial model, for the record.
            world: the processes that train together.

        Raises:
            BadParameter: the run in the folder has another recipe or other tiles, or is finished.
        """
        self._folder, self._recipe, self._session = folder, recipe, session
        self._world, self._device = world or World(), data.sources[0].tiles.device
        if has_state(folder):
            self._about = read_about(folder)
            self._check_record(asdict(recipe), dict(data.record))
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
            ladder, sampler, recipe, session.compiled, session.graph, self._world
        )
        if has_state(folder):
            self._work.load(as_type(read_tensors(folder), torch.float32))
        self._step: int = self._about["step"]
        decay = self._about["decay"]
        self._decay = Decay(**decay) if decay else None
        self._first, self._began = self._step, time.monotonic()
        self._compiled_at = self._first, 0.0
        if self._world.first:
            folder.mkdir(parents=True, exist_ok=True)
        self.shards = 0
        self._earlier = list(self._about["pieces"])

    @property
    def step(self) -> int:
        """Number of steps done in all sessions."""
        return self._step

    @property
    def finished(self) -> bool:
        """Whether the final decay is done."""
        return self._decay is not None and self._step >= self._decay.start + self._decay.steps

    def train(self, report: Callable[[BackboneProgress], None]) -> dict[int, Quality]:
        """Train for one session, and save the state at its end or when it is interrupted.

        Returns:
            Rate and quality of the averaged weights with real rounding, by rate; empty if the
            session has no folder to measure on.

        Raises:
            BadParameter: another process trains in the folder.
        """
        if not self._world.first:
            self._train(lambda _: None)
            return {}
        with _locked(self._folder):
            self._train(report)
        return self._measure()

    def _train(self, report: Callable[[BackboneProgress], None]) -> None:
        self._began = saved = time.monotonic()
        meter = Meter(self._step)
        try:
            while self._must_continue():
                for _ in range(self._steps_until_sync()):
                    lr = learning_rate(self._recipe, self._step, self._decay)
                    self._work.run(self._step, lr)
                    self._step += 1
                self._work.wait()
                if self._compiled_at[0] == self._first:
                    self._compiled_at = self._step, self._minutes()
                if meter.due(self._session.report_s):
                    report(self._progress(meter))
                if time.monotonic() - saved > self._session.checkpoint_s:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()
        if self._step > meter.step:
            report(self._progress(meter))

    def _must_continue(self) -> bool:
        """Whether the session is not over; the first process decides for all."""
        self._begin_decay()
        continues = not self.finished and self._minutes() < self._session.minutes
        agreed: tuple[bool, Decay | None] = self._world.agree((continues, self._decay))
        continues, self._decay = agreed
        return continues

    def save(self) -> None:
        """Write the state; of a finished run only the averaged weights."""
        if not self._world.first:
            return
        self._about |= {
            "step": self._step,
            "pixels": self._step * self._recipe.pixels,
            "skipped": self._work.skipped,
            "decay": asdict(self._decay) if self._decay else None,
            "pieces": [*self._earlier, self._session_record()],
        }
        tensors = self._work.tensors()
        if self.finished:
            tensors = {n: t for n, t in tensors.items() if n.startswith("ema.")}
        if self._session.moments != torch.float32:
            moments = {n: t for n, t in tensors.items() if n.startswith(("adam.m.", "adam.v."))}
            tensors |= as_type(moments, self._session.moments)
        self.shards = write_state(self._folder, tensors, self._about)

    def _minutes(self) -> float:
        return (time.monotonic() - self._began) / 60

    def _steps_until_sync(self) -> int:
        if self._decay is None:
            return SYNC_STEPS
        return min(SYNC_STEPS, self._decay.start + self._decay.steps - self._step)

    def _begin_decay(self) -> None:
        """Begin the decay when it is due, with the steps that fit in the rest of the session."""
        minutes = self._minutes()
        left = self._session.minutes - minutes
        if self._decay is not None or not self._session.decay or left > self._session.decay:
            return
        # the speed is measured without the first steps, which compile
        step, compiled_minutes = self._compiled_at
        if self._step > step > self._first:
            speed = (self._step - step) / (minutes - compiled_minutes)
            self._decay = Decay(self._step, max(1, int(0.98 * speed * left)))

    def _progress(self, meter: Meter) -> BackboneProgress:
        rates = {
            rate: RateFigures(m.loss, m.bpp, psnr_db(m.mse))
            for rate, m in self._work.means().items()
            if m.steps
        }
        steps, seconds = meter.lap(self._step)
        progress = BackboneProgress(
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
        earlier: float = sum(session["minutes"] for session in self._earlier)
        return earlier + self._minutes()

    def _session_record(self) -> dict[str, Any]:
        return {
            "steps": self._step - self._first,
            "minutes": round(self._minutes(), 2),
            "device": device_name(self._device.type),
            "processes": self._world.size,
            "torch": torch.__version__,
            "commit": self._session.commit,
        }

    def _measure(self) -> dict[int, Quality]:
        if self._session.measure is None:
            return {}
        ladder = RateLadder(Backbone(self._work.ladder.base.sizes), self._recipe.rates)
        ladder.load_state_dict(self._work.averaged())
        measured = evaluate(ladder.to(self._device).eval(), self._session.measure)
        record = {
            "step": self._step,
            "folder": self._session.measure.name,
            "rates": {str(rate): asdict(quality) for rate, quality in measured.items()},
        }
        self._about["measured"] = record
        with (self._folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"measured": record}) + "\n")
        self.save()
        return measured

    def _check_record(self, recipe: dict[str, Any], data: dict[str, Any]) -> None:
        """Raise BadParameter if the folder's run has another recipe or other data, or has ended."""
        for name, requested in (("recipe", recipe), ("data", data)):
            if self._about[name] != json.loads(json.dumps(requested)):
                raise BadParameter(
                    f"{self._folder} holds a run with {name} {self._about[name]}, not {requested}; "
                    "give another folder as --run, and this one as --from to start from its weights"
                )
        decay = self._about["decay"]
        if decay and self._about["step"] >= decay["start"] + decay["steps"]:
            raise BadParameter(
                f"{self._folder} holds a run that has ended with its decay: export it, or start "
                "another --run with this folder as --from"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run's folder."""
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadParameter(f"another process is training in {folder}") from None
        yield


def training_record(about: Mapping[str, Any]) -> dict[str, object]:
    """Return the part of a run's record that goes into the manifest of an exported model."""
    sessions = about["pieces"]
    return {
        "data": about["data"],
        "started_from": about["started_from"],
        "recipe": about["recipe"],
        "steps": about["step"],
        "pixels": about["pixels"],
        "skipped": about["skipped"],
        "decay": about["decay"],
        "minutes": round(sum(s["minutes"] for s in sessions), 1),
        "devices": sorted({s["device"] for s in sessions}),
        "commits": sorted({s["commit"] for s in sessions if s["commit"]}),
        "measured": about["measured"],
    }
