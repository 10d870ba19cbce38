"""How far an adaptation is, and when less is enough.

A plan says how many steps of each phase there may be. Steps are left out where they hardly gain,
and the fitting of an update ends where it cannot pay. All of it goes by steps and by what they
gained, never by the clock, so that results do not depend on the machine; `max_seconds` alone does.
"""

from __future__ import annotations

import math

from service.adapt.checkpoint import State
from service.adapt.plan import Plan

MEASURE_STEPS = 50
"""Steps of every tile between two measurements."""

GIVE_UP, MARGIN = 0.6, 0.02
"""Share of the decoder's steps after which the update must have taken that share of the plain loss
off the distortion. What it costs is not asked for yet: pruning takes off most of that."""

EARLY, EARLY_STEPS, EARLY_MARGIN = 0.25, 150, 0.005
"""The same, sooner: but not within so many steps of a tile, of which the first sixty do harm.

At 160 steps on 256x256, rates 2 and 6, what in the end took 1.7 % or more off had taken 1.8 % off
by the sixtieth, and photographs nothing (with factors A still in steps of 1/8)."""

LITTLE, LITTLE_FITTED, SLOW = 2e-4, 1e-3, 2
"""Where so many measurements running each gain less than that share of the plain loss (LITTLE for
latents, LITTLE_FITTED for the update), half of the phase's steps that are left are left out: the
annealing goes on, faster, for what is rounded before it has cooled is worth less."""


class Pace:
    """Reads and moves the part of a run's state that says where it is.

    Attributes:
        state: of the run. fitted: steps of fitting the update, of all tiles. planned: of all.
    """

    def __init__(self, plan: Plan, tiles: int, max_seconds: float | None, state: State) -> None:
        """Of a picture of so many tiles; `max_seconds` is engine.adaptation.Job's."""
        self.state = state
        self._between, self._early = MEASURE_STEPS * tiles, EARLY_STEPS * tiles
        self.fitted, self.planned = plan.decoder_steps * tiles, plan.total * tiles
        self._limit = max_seconds

    @property
    def place(self) -> int:
        """Where in the plan it is, in steps: those that were left out lie behind it too."""
        return self.state.step + self.state.spared

    @property
    def total(self) -> int:
        """Steps that there are to take, as far as is known."""
        return self.planned - self.state.spared

    @property
    def fitting(self) -> bool:
        """Whether the update is being fitted to the plain latents."""
        return self.place < self.fitted

    @property
    def due(self) -> bool:
        """Whether it is time to measure."""
        return self.state.step % self._between == 0

    @property
    def share(self) -> float:
        """How much of the present phase is done, 0–1, by steps or by time."""
        fitting, fitted = self.fitting, self.fitted
        by_steps = (
            self.place / fitted if fitting else (self.place - fitted) / (self.planned - fitted)
        )
        if self._limit is None:
            return by_steps
        third, spent = self._limit / 3 if fitted else 0.0, self.state.elapsed_s
        by_time = spent / third if fitting else (spent - third) / (self._limit - third)
        return max(by_steps, min(1.0, by_time))

    def hurry(self, loss: float) -> None:
        """Leave out half of the rest of the phase where measurements hardly gain.

        Args:
            loss: measured now.
        """
        s = self.state
        little, end = (LITTLE_FITTED, self.fitted) if self.fitting else (LITTLE, self.planned)
        s.slow = s.slow + 1 if s.last_loss - loss < little * s.first_loss else 0
        s.last_loss = loss
        left = end - self.place
        if s.slow >= SLOW and left > 2 * self._between:
            s.spared += left // 2
            s.slow = 0

    def hopeless(self, saved: float) -> bool:
        """Whether an update cannot pay that has by now taken so much off lmbda·D."""
        share, bar = self.share, -math.inf
        if share >= GIVE_UP:
            bar = MARGIN
        elif share >= EARLY and self.state.step >= self._early:
            bar = EARLY_MARGIN
        return saved < bar * self.state.first_loss

    def end_fitting(self) -> None:
        """Go on to the latents."""
        s = self.state
        s.spared = self.fitted - s.step
        s.last_loss, s.slow = math.inf, 0

    def end(self) -> None:
        """There is nothing left to do."""
        self.state.spared = self.planned - self.state.step
        self.state.done = True
