"""An adapter for tests of jobs: a chain of hashes, slow enough to be killed in its middle.

Each step hashes the state of the one before, so a result shows that no step was left out or done
twice on the way to it. Every step done is a line in a log, with the process that did it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from service.adapt.task import AdaptProgress
from service.engine.types import AutoencoderInfo, ModelInfo, RateInfo
from service.errors import BadParameter
from service.picture import Picture

FIRST_BYTES = 10_000


def model_info(sha256: str = "ab" * 32) -> ModelInfo:
    rates = (
        RateInfo(4.0, "psnr", 0.013, 0.35, 32.5, None),
        RateInfo(2.0, "psnr", 0.0035, None, None, None, "cd" * 32, 99),
        RateInfo(3.0, "ms-ssim", 0.1, None, None, None, "ef" * 32, 99),
    )
    return ModelInfo("fake", sha256, 10, 40, rates, {"steps": 3}, "conv")


class FakeAdaptation:
    """`steps` steps of `step_s` seconds each."""

    def __init__(self, adapter: FakeAdapter, state: str, steps: int, pixels: int) -> None:
        self.adapter, self.state, self.steps, self.pixels = adapter, state, steps, pixels
        self.name = state[:8]
        self.step = 0

    @property
    def progress(self) -> AdaptProgress:
        size = FIRST_BYTES - 10 * self.step
        phase = "done" if self.done else "latents"
        bpp, first = 8 * size / self.pixels, 8 * FIRST_BYTES / self.pixels
        db = 30 + 0.01 * self.step
        return AdaptProgress(phase, self.step, self.steps, size, bpp, db, FIRST_BYTES, first, 30.0)

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def advance(self, seconds: float) -> AdaptProgress:
        until = time.monotonic() + seconds
        while not self.done:
            self.adapter.before_step(self)
            time.sleep(self.adapter.step_s)
            self.state = hashlib.sha256(self.state.encode()).hexdigest()
            self.step += 1
            self.adapter.log(f"{os.getpid()} {self.name} {self.step}")
            if time.monotonic() >= until:
                break
        return self.progress

    def best(self) -> bytes:
        return f"rkp {self.step} {self.state}".encode()

    def checkpoint(self) -> bytes:
        return json.dumps({"step": self.step, "state": self.state}).encode()


class FakeAdapter:
    """Attributes:
    poison: "raise" or "kill", what happens at step 3 of a job; "" for nothing.
    poisoned: how the name of such a job begins.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps: int = 20,
        step_s: float = 0.02,
        poison: str = "",
        poisoned: str = "",
        model: str = "ab" * 32,
    ) -> None:
        self.folder, self.steps, self.step_s, self.poison = folder, steps, step_s, poison
        self.poisoned, self.model = poisoned, model

    def models(self) -> tuple[ModelInfo, ...]:
        return (model_info(self.model),)

    def autoencoders(self) -> tuple[AutoencoderInfo, ...]:
        """As the fake codec of the server has them, with another identity for another model."""
        other = self.model.replace("ab", "")
        return tuple(
            AutoencoderInfo(name, other or 32 * name[0].encode().hex()) for name in ("kl", "own")
        )

    def fit_latents(
        self, picture: Picture, quality: float, *, autoencoder: str | None, **options: Any
    ) -> FakeAdaptation:
        """`adapt`, which goes on from a start of its own."""
        adaptation = self.adapt(picture, quality, **options)
        if adaptation.step == 0:
            adaptation.state = f"{adaptation.state} {autoencoder}"
        return adaptation

    def adapt(
        self,
        picture: Picture,
        rate: float,
        *,
        effort: int,
        seed: int = 0,
        max_seconds: float | None = None,
        checkpoint: bytes | None = None,
    ) -> FakeAdaptation:
        assert max_seconds is not None and max_seconds > 0
        digest = hashlib.sha256(picture.rgb.tobytes()).hexdigest()
        start = f"{digest} {rate} {effort} {seed}"
        adaptation = FakeAdaptation(self, start, self.steps * effort, picture.rgb.size // 3)
        self.log(f"{os.getpid()} {start[:8]} {'again' if checkpoint else 'new'}")
        if checkpoint is not None:
            try:
                values = json.loads(checkpoint)
            except ValueError:
                raise BadParameter("not a checkpoint") from None
            adaptation.step, adaptation.state = values["step"], values["state"]
        return adaptation

    def before_step(self, adaptation: FakeAdaptation) -> None:
        if self.poison and adaptation.step == 3 and adaptation.name.startswith(self.poisoned):
            self.log(f"{os.getpid()} {adaptation.name} poison")
            if self.poison == "kill":
                os.kill(os.getpid(), 9)
            raise RuntimeError("secret detail of a bug")

    def log(self, line: str) -> None:
        with (self.folder / "log").open("a") as file:
            file.write(line + "\n")


def name_of(picture: Picture) -> str:
    """The name of the picture's job in the log."""
    return hashlib.sha256(picture.rgb.tobytes()).hexdigest()[:8]


def expected_result(
    picture: Picture, rate: float, effort: int, steps: int = 20, autoencoder: str = ""
) -> bytes:
    """The result that the job must have, however often it was interrupted."""
    state = f"{hashlib.sha256(picture.rgb.tobytes()).hexdigest()} {rate} {effort} 0"
    state += f" {autoencoder}" * bool(autoencoder)
    for _ in range(steps * effort):
        state = hashlib.sha256(state.encode()).hexdigest()
    return f"rkp {steps * effort} {state}".encode()
