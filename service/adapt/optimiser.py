"""The variables of an adaptation, and Adam that moves those of the present phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from service.adapt.checkpoint import MOMENTS, Checkpoint
from service.adapt.decoder_update import DecoderUpdate, UpdateLearningRates
from service.adapt.objective import Objective
from service.adapt.plan import AdaptationPlan, decayed
from service.store.model import Tensors

BETAS = (0.9, 0.99)
"""Decay of Adam's first and second moments."""

UPDATE_LR = UpdateLearningRates()
"""Learning rates while the update alone is fitted; half of them when latents move too."""


class AdaptationOptimiser:
    """Latents of every tile, an update of g_s where there is one, and Adam over them.

    Attributes:
        generator: of the random numbers that the loss draws.
        adam: over the variables of the present phase.
    """

    adam: torch.optim.Adam

    def __init__(
        self, objective: Objective, plan: AdaptationPlan, seed: int, device: torch.device
    ) -> None:
        """Hold the latents of the objective's tiles, on `device`; `begin_phase` must follow."""
        self._objective, self._plan = objective, plan
        self._seed, self._device = seed, device
        self.update: DecoderUpdate | None = None
        self.generator = torch.Generator(device).manual_seed(seed)

    def add_update(self, transforms: Tensors, ready: Mapping[str, NDArray[Any]] | None) -> None:
        """Begin with an update of g_s that changes nothing yet, added to `ready` weights if any."""
        on_cpu = torch.Generator().manual_seed(self._seed)
        self.update = DecoderUpdate(transforms, self._plan.rank, on_cpu, self._device, ready)

    def begin_phase(self, fitting: bool) -> None:
        """Start Adam anew, over the update alone or over the latents and any update."""
        plan = self._plan
        groups = [] if self.update is None else self.update.groups(UPDATE_LR)
        for group in groups:
            group["lr"] *= plan.update_lr if fitting else plan.update_lr / 2
        if not fitting:
            latents = [t for tile in self._objective.tiles for t in (tile.y, tile.z)]
            groups.append({"params": latents, "lr": plan.latent_lr})
        for group in groups:
            group["peak"] = group["lr"]
        self.adam = torch.optim.Adam(groups, betas=BETAS, fused=self._device.type == "cpu")

    def step(self, loss: Tensor, share: float) -> None:
        """Move the variables down a loss's gradient; `share` of the phase is done, 0–1."""
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * decayed(share)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()

    def tensors(self, with_canvas: bool) -> dict[str, Tensor]:
        """What a checkpoint needs to go on, besides Adam's moments, by name."""
        tensors = self._variables() | {"generator": self.generator.get_state()}
        return tensors | ({"canvas": self._objective.canvas} if with_canvas else {})

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this phase. Raises KeyError, ValueError: it does not fit."""
        self.generator.set_state(checkpoint.tensors["generator"])
        if "canvas" in checkpoint.tensors:
            self._objective.canvas.copy_(checkpoint.tensors["canvas"])
        for name, variable in self._variables().items():
            tensor = checkpoint.tensors[name]
            if tensor.shape != variable.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(variable.shape)}")
            variable.copy_(tensor)
            moments = checkpoint.moments.get(name)
            if moments:
                self.adam.state[variable] = {
                    part: moments[part].clone().to("cpu" if part == "step" else self._device)
                    for part in MOMENTS
                }

    def _variables(self) -> dict[str, Tensor]:
        """Every tensor that is optimised in some phase, by name."""
        out: dict[str, Tensor] = {}
        for i, tile in enumerate(self._objective.tiles):
            out |= {f"y.{i}": tile.y, f"z.{i}": tile.z}
        if self.update is not None:
            out |= {f"update.{name}": t for name, t in self.update.tensors.items()}
        return out
