"""One picture's instance adaptation, from the plain stream to the best one found.

First the store's ready updates of g_s are tried, and the best is named if that pays: all there is
to do without steps (effort 0), the one-step mode of "Dynamic Low-Rank Instance Adaptation".

Then two phases. An update of g_s, on top of the ready one, is fitted to the plain latents, and
pruned: where it pays it moves the decoder further than latents can, and where it does not, that is
soon known. Then the latents are annealed, and the update with them. What is optimised are floats;
what counts is measured: at fixed steps the picture is coded by the exact path, decoded, and kept if
R + lmbda·D over real bytes and real 8-bit pixels is the lowest so far. The plain stream is where it
starts, so the answer is never worse, nor worse than with no steps.

Pictures larger than a tile are worked on tile by tile, in turn, so memory beyond their latents is
bounded; each step sees its neighbours' latents as they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.adapt.decoder import NET, DecoderUpdate, LearningRates
from service.adapt.plan import Plan, decayed
from service.codec import container
from service.codec.entropy_model import Y_FRAC
from service.codec.model_stream import write_update
from service.engine.checkpoint import (
    DAMAGED,
    MOMENTS,
    Checkpoint,
    State,
    damaged,
    read_checkpoint,
    write_checkpoint,
)
from service.engine.objective import Objective
from service.engine.pipeline import LoadedModel, assemble, ready_weights
from service.engine.synthesis_torch import place_of
from service.engine.types import AdaptProgress
from service.engine.worth import Measured, code, measure, prove
from service.errors import UnknownUpdate
from service.picture import Picture
from service.stored import layer_shapes

MEASURE_STEPS = 50
"""Steps of every tile between two measurements."""

GIVE_UP, MARGIN = 0.6, 0.02
"""Share of the decoder's steps after which the update must have taken that share of the plain loss
off the distortion. What it costs is not asked for yet: pruning takes off most of that."""

EARLY, EARLY_STEPS, EARLY_MARGIN = 0.25, 150, 0.005
"""The same, sooner: but not within so many steps of a tile, of which the first sixty do harm.

At 160 steps on 256x256, rates 2 and 6, what in the end took 1.7 % or more off had taken 1.8 % off
by the sixtieth, and photographs nothing."""

LITTLE, LITTLE_FITTED, SLOW = 2e-4, 1e-3, 2
"""Where so many measurements running each gain less than that share of the plain loss (LITTLE for
latents, LITTLE_FITTED for the update), half of the phase's steps that are left are left out: the
annealing goes on, faster, for what is rounded before it has cooled is worth less. In steps, not in
seconds, so that results do not depend on the machine."""

BETAS = (0.9, 0.99)
"""Of Adam."""

UPDATE_LR = LearningRates()
"""While the update alone is fitted; half of it when latents move too."""


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        picture: to adapt to. rate16: in sixteenths, of tune PSNR. lmbda: of that rate.
        plan: how much. seed: of everything drawn.
        max_seconds: the annealing is compressed so that it ends about then, None without a limit;
            with one, results depend on the machine's speed.
    """

    picture: Picture
    rate16: int
    lmbda: float
    plan: Plan
    seed: int = 0
    max_seconds: float | None = None

    def digest(self, identity: bytes) -> str:
        """Hash of what a checkpoint must be of, with the identity of the weights."""
        p = self.picture
        words = [p.width, p.height, p.grey, self.rate16, self.seed, self.plan]
        data = hashlib.sha256(identity + repr(words).encode())
        for plane in (p.rgb, p.alpha):
            data.update(b"" if plane is None else np.ascontiguousarray(plane).data)
        return data.hexdigest()


class PictureAdaptation:
    """Implements engine.types.Adaptation. Not safe to share between threads."""

    def __init__(self, model: LoadedModel, job: Job, checkpoint: bytes | None = None) -> None:
        """Analyse the picture and code it plainly, or take up where a checkpoint left off.

        Args:
            model: merged for the job's rate, with analysis. job: what to do.
            checkpoint: from `checkpoint()` of the same job.

        Raises:
            BadParameter: the checkpoint is damaged or of another job.
        """
        assert model.analysis is not None
        self._model, self._job = model, job
        self._device, _ = place_of(model.analysis)
        stored = model.stored
        self._objective = Objective(model, job.picture, job.lmbda)
        self._tiles = self._objective.tiles
        self._pixels = job.picture.width * job.picture.height
        self._shapes = layer_shapes(stored.synthesis)
        self._generator = torch.Generator(self._device).manual_seed(job.seed)
        self._update: DecoderUpdate | None = None
        self._state = State()
        self._decoder_steps = job.plan.decoder_steps * len(self._tiles)
        self._total = job.plan.total * len(self._tiles)
        self._digest = job.digest(stored.identity)
        if checkpoint is None:
            self._begin()
        else:
            self._resume(checkpoint)

    @property
    def progress(self) -> AdaptProgress:
        """How far it is."""
        s = self._state
        phase = "done" if s.done else "decoder" if self._fitting else "latents"
        return AdaptProgress(
            phase,
            s.step,
            self._total - s.spared,
            len(self._best),
            8 * len(self._best) / self._pixels,
            s.psnr_best,
            s.bytes_before,
            8 * s.bytes_before / self._pixels,
            s.psnr_before,
        )

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self._state.done

    @property
    def _place(self) -> int:
        """Where in the plan it is, in steps: those that were left out lie behind it too."""
        return self._state.step + self._state.spared

    @property
    def _fitting(self) -> bool:
        """Whether the update is being fitted to the plain latents."""
        return self._place < self._decoder_steps

    def best(self) -> bytes:
        """The best stream so far."""
        return self._best

    def advance(self, seconds: float) -> AdaptProgress:
        """Optimise for about that long: at least one step, and to the end of a phase's last."""
        start = last = perf_counter()
        while not self._state.done:
            self._advance_one()
            now = perf_counter()
            self._state.elapsed_s += now - last
            last = now
            if now - start >= seconds:
                break
        return self.progress

    def checkpoint(self) -> bytes:
        """Everything needed to go on, as safetensors."""
        tensors = self._variables()
        if len(self._tiles) > 1 or self._fitting:
            tensors["canvas"] = self._objective.canvas
        tensors["generator"] = self._generator.get_state()
        fitting = self._update is not None
        return write_checkpoint(
            self._digest, self._state, self._best, tensors, self._optimiser, fitting
        )

    def _begin(self) -> None:
        plain = self._measure(None, settle=True)
        s, self._best = self._state, plain.data
        s.bytes_before, s.psnr_before, s.psnr_best = len(plain.data), plain.psnr_db, plain.psnr_db
        s.loss_best = s.first_loss = plain.loss
        s.done = self._total == 0
        if s.done or self._decoder_steps:
            self._try_ready(plain)
        if self._decoder_steps:
            self._update = self._new_update()
        self._optimiser = self._new_optimiser()

    def _try_ready(self, plain: Measured) -> None:
        """Keep the store's ready update that gains most, if one pays for being named."""
        stream, job, s = container.read_stream(plain.data), self._job, self._state
        found = [
            measure(
                self._model, job.picture, job.lmbda, replace(stream, ready=u.reference), plain.y_hat
            )
            for u in self._model.stored.updates
        ]
        best = min(found, key=lambda one: one.loss, default=plain)
        if best.loss < s.loss_best:
            self._keep(best)
            s.ready = container.describe(best.data).ready or ""

    def _resume(self, data: bytes) -> None:
        found = read_checkpoint(data, self._digest)
        self._state = found.state
        try:
            if found.with_update:
                self._update = self._new_update()
            else:
                self._use_ready()
            self._optimiser = self._new_optimiser()
            self._load(found)
        except (UnknownUpdate, *DAMAGED) as error:
            raise damaged(error) from error

    @torch.no_grad()
    def _load(self, found: Checkpoint) -> None:
        self._best = found.best
        self._generator.set_state(found.tensors["generator"])
        if "canvas" in found.tensors:
            self._objective.canvas.copy_(found.tensors["canvas"])
        for name, variable in self._variables().items():
            tensor = found.tensors[name]
            if tensor.shape != variable.shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}")
            variable.copy_(tensor)
            moments = found.moments.get(name)
            if moments:
                self._optimiser.state[variable] = {
                    part: moments[part].clone().to("cpu" if part == "step" else self._device)
                    for part in MOMENTS
                }

    def _variables(self) -> dict[str, Tensor]:
        """Every tensor that is optimised, by name."""
        out: dict[str, Tensor] = {}
        for i, tile in enumerate(self._tiles):
            out |= {f"y.{i}": tile.y, f"z.{i}": tile.z}
        if self._update is not None:
            out |= {f"update.{name}": t for name, t in self._update.tensors.items()}
        return out

    def _new_update(self) -> DecoderUpdate:
        """No update yet, to be added to the ready one if there is one."""
        on_cpu = torch.Generator().manual_seed(self._job.seed)
        transforms, rank = self._model.stored.transforms, self._job.plan.rank
        return DecoderUpdate(transforms, rank, on_cpu, self._device, self._with_ready())

    def _with_ready(self) -> Mapping[str, NDArray[Any]] | None:
        """Weights of g_s with the ready update that the stream names, None where it names none."""
        if not self._state.ready:
            return None
        return ready_weights(self._model, bytes.fromhex(self._state.ready))

    def _new_optimiser(self) -> torch.optim.Adam:
        """Adam over what the present phase moves."""
        plan, fitting = self._job.plan, self._fitting
        groups = [] if self._update is None else self._update.groups(UPDATE_LR)
        for group in groups:
            group["lr"] *= plan.update_lr if fitting else plan.update_lr / 2
        if not fitting:
            latents = [t for tile in self._tiles for t in (tile.y, tile.z)]
            groups.append({"params": latents, "lr": plan.latent_lr})
        for group in groups:
            group["peak"] = group["lr"]
        return torch.optim.Adam(groups, betas=BETAS, fused=self._device.type == "cpu")

    def _advance_one(self) -> None:
        """One step of one tile, and what is due after it."""
        s, fitting, share = self._state, self._fitting, self._share()
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * decayed(share)
        tile = self._tiles[s.step % len(self._tiles)]
        tau = None if fitting else self._job.plan.temperature(share)
        rate, distortion = self._objective.loss(tile, self._update, tau, self._generator)
        loss = rate + distortion
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        s.step += 1
        due = s.step % (MEASURE_STEPS * len(self._tiles)) == 0
        if fitting:
            now = distortion.item()
            s.trend = now if math.isinf(s.trend) else 0.9 * s.trend + 0.1 * now
            hopeless = self._hopeless(share)
            if not self._fitting or share >= 1 or hopeless:
                self._end_fitting(hopeless)
            elif due:
                self._hurry(s.trend, LITTLE_FITTED, self._decoder_steps)
            return
        last = self._place >= self._total or share >= 1
        if last or due:
            found = self._measure(self._update, settle=last)
            self._keep(found)
            self._hurry(found.loss, LITTLE, self._total)
        if last:
            self._end()

    def _hurry(self, loss: float, little: float, end: int) -> None:
        """Leave out half of the rest of a phase where measurements hardly gain.

        Args:
            loss: measured now. little: LITTLE of the phase. end: of the phase, in steps.
        """
        s = self._state
        s.slow = s.slow + 1 if s.last_loss - loss < little * s.first_loss else 0
        s.last_loss = loss
        left = end - self._place
        if s.slow >= SLOW and left > 2 * MEASURE_STEPS * len(self._tiles):
            s.spared += left // 2
            s.slow = 0

    def _share(self) -> float:
        """How much of the present phase is done, 0–1, by steps or by time."""
        s, limit, fitting = self._state, self._job.max_seconds, self._fitting
        if fitting:
            by_steps = self._place / self._decoder_steps
        else:
            by_steps = (self._place - self._decoder_steps) / (self._total - self._decoder_steps)
        if limit is None:
            return by_steps
        third = limit / 3 if self._decoder_steps else 0.0
        by_time = s.elapsed_s / third if fitting else (s.elapsed_s - third) / (limit - third)
        return max(by_steps, min(1.0, by_time))

    def _hopeless(self, share: float) -> bool:
        """Whether an update that stands where it does at that share of the steps cannot pay."""
        s = self._state
        bar = -math.inf
        if share >= GIVE_UP:
            bar = MARGIN * s.first_loss
        elif share >= EARLY and s.step >= EARLY_STEPS * len(self._tiles):
            bar = EARLY_MARGIN * s.first_loss
        return self._distortion_before() - s.trend < bar

    def _distortion_before(self) -> float:
        """lmbda·D of the best stream: while an update is fitted, one without."""
        return self._state.loss_best - 8 * len(self._best) / self._pixels

    def _end_fitting(self, hopeless: bool) -> None:
        """Prune what was fitted, and drop it if nothing is left."""
        s, update = self._state, self._update
        s.spared = self._decoder_steps - s.step
        s.last_loss, s.slow = math.inf, 0
        assert update is not None
        if not hopeless:
            self._prune(update)
        if hopeless or not update.update().layers:
            self._update = None
            self._use_ready()
        else:
            self._keep(self._measure(update))
        self._optimiser = self._new_optimiser()

    def _end(self) -> None:
        """Prune once more for the latents as they are now."""
        if self._update is not None:
            self._prune(self._update)
            self._keep(self._measure(self._update))
        self._state.spared = self._total - self._state.step
        self._state.done = True

    def _use_ready(self) -> None:
        """See latents through the ready update, if there is one, and no other."""
        merged = self._with_ready() or {}
        self._objective.weights = {
            name.removeprefix(NET): torch.from_numpy(tensor).to(self._device)
            for name, tensor in merged.items()
        }

    def _prune(self, update: DecoderUpdate) -> None:
        """Close the gates that do not pay."""
        distortion = partial(self._objective.distortion, update)
        update.prune(distortion, self._model.coder.tables)

    @torch.no_grad()
    def _measure(self, update: DecoderUpdate | None, settle: bool = False) -> Measured:
        """Code the picture as it is now, decode it, and say what that is worth.

        Args:
            update: to send. settle: take the coded latents for what windows see of them.
        """
        model, job = self._model, self._job
        coded = code(model, job.picture, ((t.box, *t.latents) for t in self._tiles))
        if settle:
            y_hat = torch.from_numpy(coded.y_hat.astype(np.float32)) / 2**Y_FRAC
            self._objective.canvas.copy_(y_hat)
        stream = assemble(model, job.picture, job.rate16, container.PSNR, coded.tiles)
        found = None if update is None else update.update()
        if found is not None and found.layers:
            payload = write_update(found, self._shapes, model.coder.tables)
            stream = replace(stream, update=payload)
        if self._state.ready:
            stream = replace(stream, ready=bytes.fromhex(self._state.ready))
        return measure(model, job.picture, job.lmbda, stream, coded.y_hat)

    def _keep(self, found: Measured) -> None:
        """Make it the best if it is, once it has been decoded from its bytes."""
        if found.loss >= self._state.loss_best:
            return
        prove(self._model, found)
        self._best = found.data
        self._state.loss_best, self._state.psnr_best = found.loss, found.psnr_db
