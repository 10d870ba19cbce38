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

from service.adapt.checkpoint import (
    DAMAGED,
    MOMENTS,
    Checkpoint,
    State,
    damaged,
    read_checkpoint,
    write_checkpoint,
)
from service.adapt.decoder import NET, DecoderUpdate, LearningRates
from service.adapt.objective import Objective
from service.adapt.pace import Pace
from service.adapt.plan import Plan, decayed
from service.adapt.types import AdaptProgress
from service.adapt.worth import Measured, code, measure, prove
from service.codec import container
from service.codec.entropy_model import Y_FRAC
from service.codec.model_stream import write_update
from service.errors import UnknownUpdate
from service.picture import Picture
from service.runtime.pipeline import LoadedModel, assemble, ready_weights
from service.runtime.synthesis_torch import place_of
from service.store.model import layer_shapes

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
    """Implements adapt.types.Adaptation. Not safe to share between threads."""

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
        self._use(State())
        self._digest = job.digest(stored.identity)
        if checkpoint is None:
            self._begin()
        else:
            self._resume(checkpoint)

    @property
    def progress(self) -> AdaptProgress:
        """How far it is."""
        s = self._state
        phase = "done" if s.done else "decoder" if self._pace.fitting else "latents"
        return AdaptProgress(
            phase,
            s.step,
            self._pace.total,
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
        if len(self._tiles) > 1 or self._pace.fitting:
            tensors["canvas"] = self._objective.canvas
        tensors["generator"] = self._generator.get_state()
        fitting = self._update is not None
        return write_checkpoint(
            self._digest, self._state, self._best, tensors, self._optimiser, fitting
        )

    def _use(self, state: State) -> None:
        self._state = state
        self._pace = Pace(self._job.plan, len(self._tiles), self._job.max_seconds, state)

    def _begin(self) -> None:
        plain = self._measure(None, settle=True)
        s, self._best = self._state, plain.data
        s.bytes_before, s.psnr_before, s.psnr_best = len(plain.data), plain.psnr_db, plain.psnr_db
        s.loss_best = s.first_loss = plain.loss
        s.done = not self._pace.planned
        if s.done or self._pace.fitted:
            self._try_ready(plain)
        if self._pace.fitted:
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
        self._use(found.state)
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
        plan, fitting = self._job.plan, self._pace.fitting
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
        s, pace = self._state, self._pace
        fitting, share = pace.fitting, pace.share
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
        if fitting:
            self._after_fitting(distortion.item(), share >= 1)
        else:
            self._after_annealing(share >= 1)

    def _after_fitting(self, distortion: float, late: bool) -> None:
        """What is due after a step of the update alone: `late` says that its time is over."""
        s, pace = self._state, self._pace
        s.trend = distortion if math.isinf(s.trend) else 0.9 * s.trend + 0.1 * distortion
        ended = late or not pace.fitting
        hopeless = not ended and pace.hopeless(self._distortion_before() - s.trend)
        if ended or hopeless:
            self._end_fitting(hopeless)
        elif pace.due:
            pace.hurry(s.trend)

    def _after_annealing(self, late: bool) -> None:
        """What is due after a step of the latents."""
        pace = self._pace
        last = pace.place >= pace.planned or late
        if last or pace.due:
            found = self._measure(self._update, settle=last)
            self._keep(found)
            pace.hurry(found.loss)
        if last:
            self._end()

    def _distortion_before(self) -> float:
        """lmbda·D of the best stream: while an update is fitted, one without."""
        return self._state.loss_best - 8 * len(self._best) / self._pixels

    def _end_fitting(self, hopeless: bool) -> None:
        """Prune what was fitted, and drop it if nothing is left."""
        update = self._update
        assert update is not None
        self._pace.end_fitting()
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
        self._pace.end()

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
