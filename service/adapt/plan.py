"""How much an effort level does, and how it anneals: numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.errors import BadParameter

STEPS = (0, 100, 500, 1000, 2000)
"""Steps of each phase by effort, as published for "Dynamic Low-Rank Instance Adaptation".

Effort 0 optimises nothing: it picks one of the store's ready updates, if one pays."""

RANK = 8
"""Rank-1 pieces of a layer that are tried; gates close those that do not pay. Eight take
12.5 % off a screenshot's loss at rate 4 in 100 steps of fitting and 21.6 off pixel art's, four 9.7
and 21.3 %; 2 are published."""


@dataclass(frozen=True)
class Plan:
    """What is done for one picture.

    Attributes:
        decoder_steps: of fitting the update of g_s to the plain latents.
        latent_steps: of refining the latents, and the update with them.
        rank: of the update.
        latent_lr: of latents, in Adam steps of that much of about a quantiser step.
        update_lr: factor of the update's learning rates (decoder.LearningRates).
        tau, tau_end: temperature of the annealing at its start and end.
        hold: share of the steps at the first temperature.
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
        """Of the annealing, after that share (0–1) of the latents' steps."""
        late = max(0.0, done - self.hold) / (1 - self.hold)
        return self.tau * math.exp(late * math.log(self.tau_end / self.tau))


def plan_of(effort: int) -> Plan:
    """The plan of an effort level.

    Raises:
        BadParameter: not a whole number from 0 to 4.
    """
    if type(effort) is not int or not 0 <= effort < len(STEPS):
        raise BadParameter(f"effort is {effort!r}, expected a whole number from 0 to 4")
    steps = STEPS[effort]
    if steps <= STEPS[1]:  # few steps need large ones
        return Plan(steps, steps, latent_lr=2e-2, update_lr=2.0)
    return Plan(steps, steps, latent_lr=1.4e-2 if steps <= STEPS[2] else 1e-2)


def decayed(done: float) -> float:
    """Factor of the learning rates after that share (0–1) of a phase: half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
