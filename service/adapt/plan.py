"""Plans of an adaptation: how many steps an effort level takes, and how they anneal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.errors import BadParameter

STEPS = (0, 100, 500, 1000, 2000)
"""Steps of each phase by effort, as published for "Dynamic Low-Rank Instance Adaptation".

Effort 0 optimises nothing: it names the best ready update of the store, if one lowers the loss."""

RANK = 8
"""Rank-1 terms of a layer that are tried; gates close those that do not pay. At rate 4, in 100
steps of fitting, eight lower the loss of a screenshot by 12.5 % and of pixel art by 21.6 %, four by
9.7 % and 21.3 %. The paper has two."""


@dataclass(frozen=True)
class AdaptationPlan:
    """The steps for one tile of a picture, and their constants.

    Attributes:
        decoder_steps: steps that fit the update of g_s to the plain latents.
        latent_steps: steps that refine the latents, and the update with them.
        rank: of the update.
        latent_lr: learning rate of the latents, in about a quantiser step for each step of Adam.
        update_lr: factor of the update's learning rates (decoder_update.UpdateLearningRates).
        tau, tau_end: temperature of the annealing at its start and end.
        hold: share of the annealing's steps at the first temperature.
    """

    decoder_steps: int
    latent_steps: int
    rank: int = RANK
    latent_lr: float = 1.4e-2
    update_lr: float = 1.0
    tau: float = 0.5
    tau_end: float = 0.1
    hold: float = 0.3

    @property
    def total(self) -> int:
        """Steps of both phases."""
        return self.decoder_steps + self.latent_steps

    def temperature(self, done: float) -> float:
        """Temperature of the annealing by the share of the latents' steps that is done, 0–1."""
        late = max(0.0, done - self.hold) / (1 - self.hold)
        return self.tau * math.exp(late * math.log(self.tau_end / self.tau))


def plan_of(effort: int) -> AdaptationPlan:
    """The plan of an effort level. Raises BadParameter: it is no whole number from 0 to 4."""
    if type(effort) is not int or not 0 <= effort < len(STEPS):
        raise BadParameter(f"effort is {effort!r}, expected a whole number from 0 to 4")
    steps = STEPS[effort]
    if steps <= STEPS[1]:  # few steps need large ones
        return AdaptationPlan(steps, steps, latent_lr=2e-2, update_lr=2.0)
    return AdaptationPlan(steps, steps, latent_lr=1.4e-2 if steps <= STEPS[2] else 1e-2)


def decayed(done: float) -> float:
    """Factor of the learning rates by the share of a phase that is done: half a cosine, 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
