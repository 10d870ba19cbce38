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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from service.codec.sizes import read_sizes
from service.errors import BadParameter
from service.eval.machine import device_name
from service.nets.compiling import Compile
from service.nets.model import Backbone
from service.train.checkpoint import as_type, has_state, read_about, read_tensors, write_state
from service.train.evaluate import Quality, evaluate
from service.train.ladder import RateLadder
from service.train.progress import BackboneProgress, Meter
from service.train.recipe import BackboneRecipe, Decay, learning_rate
from service.train.sampler import Sampler, TrainingData
from service.train.step import TrainingStep
from service.train.world import ALONE, World

SYNC_STEPS: Final = 16
"""Steps that the host queues before it waits for the device and reads the clock."""


@dataclass(frozen=True)
class TrainingSession:
    """Settings of one session of a run, which may differ from one session to the next."""

    minutes: float  # length of the session
    decay: float = 0.0  # how many of these minutes, at the end, are the run's final decay
    report_s: float = 10.0  # seconds between progress reports
    checkpoint_s: float = 300.0  # seconds between checkpoints
    # folder of pictures to measure on at the end; None to measure nothing
    measure: Path | None = None
    compiled: Compile = "off"  # what to compile
    graph: bool = True  # replay CUDA graphs on CUDA
    # type of Adam's moments in checkpoints; only float32 resumes exactly
    moments: torch.dtype = torch.float32
    commit: str = ""  # of the code, for the record


class TrainingRun:
    """A run in its folder: the state of training, and the record of all sessions.

    Attributes:
        step: number of steps done in all sessions.
        shards: number of files of the last state that was saved.
    """

    def __init__(
        self,
        folder: Path,
        data: TrainingData,
        recipe: BackboneRecipe,
        start: Callable[[], RateLadder],
        session: TrainingSession,
        started_from: str,
        world: World = ALONE,
    ) -> None:
        """Begin a run with the model that `start` returns, or resume the one in the folder.

        Args:
            data: tiles on the device that trains.
            started_from: name of the initial model, for the record.

        Raises:
            BadParameter: the run in the folder has another recipe or other tiles, or is finished.
        """
        self._folder, self._recipe, self._session = folder, recipe, session
        self._world, self._device = world, data.sources[0].tiles.device
        if has_state(folder):
            self._about = read_about(folder)
            self._check_record(asdict(recipe), dict(data.record))
            sizes = read_sizes(self._about["family"], self._about["sizes"])
            ladder = RateLadder(Backbone(sizes), recipe.rates)
        else:
            ladder = start()
            self._about = {
                "family": ladder.base.sizes.family,
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
        sampler = Sampler(data.sources, recipe, world)
        self._work = TrainingStep(ladder, sampler, recipe, session.compiled, session.graph, world)
        if has_state(folder):
            self._work.load(as_type(read_tensors(folder), torch.float32))
        self.step: int = self._about["step"]
        decay = self._about["decay"]
        self._decay = Decay(**decay) if decay else None
        self._first, self._began = self.step, time.monotonic()
        self._compiled_at = self._first, 0.0
        self.shards = 0
        self._earlier = list(self._about["pieces"])

    @property
    def finished(self) -> bool:
        """Whether the final decay is done."""
        return self._decay is not None and self.step >= self._decay.end

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
        meter = Meter(self.step)
        try:
            while self._must_continue():
                for _ in range(self._steps_until_sync()):
                    lr = learning_rate(self._recipe, self.step, self._decay)
                    self._work.run(self.step, lr)
                    self.step += 1
                self._work.wait()
                if self._compiled_at[0] == self._first:
                    self._compiled_at = self.step, self._minutes()
                if meter.due(self._session.report_s):
                    report(self._progress(meter))
                if time.monotonic() - saved > self._session.checkpoint_s:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()
        if self.step > meter.step:
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
            "step": self.step,
            "pixels": self.step * self._recipe.pixels,
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
        return SYNC_STEPS if self._decay is None else min(SYNC_STEPS, self._decay.end - self.step)

    def _begin_decay(self) -> None:
        """Begin the decay when it is due, with the steps that fit in the rest of the session."""
        minutes = self._minutes()
        left = self._session.minutes - minutes
        if self._decay is not None or not self._session.decay or left > self._session.decay:
            return
        # the speed is measured without the first steps, which compile
        step, compiled_minutes = self._compiled_at
        if self.step > step > self._first:
            speed = (self.step - step) / (minutes - compiled_minutes)
            self._decay = Decay(self.step, max(1, int(0.98 * speed * left)))

    def _progress(self, meter: Meter) -> BackboneProgress:
        steps, seconds = meter.lap(self.step)
        progress = BackboneProgress(
            step=self.step,
            minutes=sum(session["minutes"] for session in self._earlier) + self._minutes(),
            rates=self._work.means(),
            pixels_per_s=steps * self._recipe.pixels / seconds,
            lr=learning_rate(self._recipe, self.step - 1, self._decay),
            skipped=self._work.skipped,
        )
        if self._world.first:
            self._log(asdict(progress))
        return progress

    def _log(self, entry: dict[str, Any]) -> None:
        with (self._folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _session_record(self) -> dict[str, Any]:
        return {
            "steps": self.step - self._first,
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
            "step": self.step,
            "folder": self._session.measure.name,
            "rates": {str(rate): asdict(quality) for rate, quality in measured.items()},
        }
        self._about["measured"] = record
        self._log({"measured": record})
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
        if decay and self._about["step"] >= Decay(**decay).end:
            raise BadParameter(
                f"{self._folder} holds a run that has ended with its decay: export it, or start "
                "another --run with this folder as --from"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run's folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadParameter(f"another process is training in {folder}") from None
        yield
