"""Where an adaptation is in its plan, and when fewer steps are enough.

A plan says how many steps of each phase there may be. Steps are skipped where they hardly lower
the loss, and the fitting of an update ends where it cannot pay. All of this depends on steps and
on measured losses, never on the clock, so results do not depend on the machine; only `max_seconds`
does.
"""

from __future__ import annotations

import math

from service.adapt.checkpoint import AdaptationState
from service.adapt.plan import AdaptationPlan

MEASURE_STEPS = 50
"""Steps of every tile between two measurements."""

GIVE_UP, MARGIN = 0.6, 0.02
"""After the first share of the decoder's steps, fitting ends unless the update has lowered the
distortion by the second share of the plain loss. The update's own bits do not count yet, because
pruning removes most of them."""

EARLY, EARLY_STEPS, EARLY_MARGIN = 0.25, 150, 0.005
"""An earlier test like GIVE_UP and MARGIN, but not within the first EARLY_STEPS steps of a tile, of
which the first sixty raise the loss.

At 160 steps on 256x256, rates 2 and 6, updates that in the end lowered the loss by 1.7 % or more
had lowered the distortion by 1.8 % at the sixtieth step, and photographs by nothing (measured with
factors A in steps of 1/8)."""

LITTLE, LITTLE_FITTED, SLOW = 2e-4, 1e-3, 2
"""Where SLOW measurements in a row each lower the loss by less than this share of the plain loss
(LITTLE for latents, LITTLE_FITTED for the update), skip half of the remaining steps of this phase.
The annealing goes on, faster: latents that are rounded before it has cooled are worse."""


class StepSchedule:
    """Reads and changes the part of an adaptation's state that says where it is.

    Attributes:
        state: of the adaptation. fitted: steps of fitting the update, for all tiles together.
        planned: steps of both phases, likewise.
    """

    def __init__(
        self, plan: AdaptationPlan, tiles: int, max_seconds: float | None, state: AdaptationState
    ) -> None:
        """Follow a plan for a picture of `tiles` tiles; `state` is changed in place."""
        self.state = state
        self._between, self._early = MEASURE_STEPS * tiles, EARLY_STEPS * tiles
        self.fitted, self.planned = plan.decoder_steps * tiles, plan.total * tiles
        self._limit = max_seconds

    @property
    def position(self) -> int:
        """Steps of the plan that are behind: done or skipped."""
        return self.state.step + self.state.spared

    @property
    def total(self) -> int:
        """Steps that will be done in all, as far as is known."""
        return self.planned - self.state.spared

    @property
    def fitting(self) -> bool:
        """Whether the update is being fitted to the plain latents."""
        return self.position < self.fitted

    @property
    def due(self) -> bool:
        """Whether to measure after this step."""
        return self.state.step % self._between == 0

    @property
    def share(self) -> float:
        """Share of the present phase that is done, 0–1, by steps or by time."""
        fitting, fitted, limit = self.fitting, self.fitted, self._limit
        begin, end = (0, fitted) if fitting else (fitted, self.planned)
        by_steps = (self.position - begin) / (end - begin)
        if limit is None:
            return by_steps
        third, spent = limit / 3 if fitted else 0.0, self.state.elapsed_s
        by_time = spent / third if fitting else (spent - third) / (limit - third)
        return max(by_steps, min(1.0, by_time))

    def shorten_if_slow(self, loss: float) -> None:
        """Skip half of the remaining steps of the phase if measured losses hardly fall."""
        s = self.state
        little, end = (LITTLE_FITTED, self.fitted) if self.fitting else (LITTLE, self.planned)
        s.slow = s.slow + 1 if s.last_loss - loss < little * s.first_loss else 0
        s.last_loss = loss
        left = end - self.position
        if s.slow >= SLOW and left > 2 * self._between:
            s.spared += left // 2
            s.slow = 0

    def cannot_pay(self, saved: float) -> bool:
        """Whether an update that has saved so little lmbda·D (bits per pixel) will hardly pay."""
        share, required = self.share, -math.inf
        if share >= GIVE_UP:
            required = MARGIN
        elif share >= EARLY and self.state.step >= self._early:
            required = EARLY_MARGIN
        return saved < required * self.state.first_loss

    def end_fitting(self) -> None:
        """Go on to the latents."""
        s = self.state
        s.spared = self.fitted - s.step
        s.last_loss, s.slow = math.inf, 0

    def end(self) -> None:
        """Skip the steps that are left: the adaptation is done."""
        self.state.spared = self.planned - self.state.step
        self.state.done = True
