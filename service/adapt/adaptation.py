"""Instance adaptation of one picture: from the plain stream to the best one that is found.

First the store's ready updates of g_s are tried, and the stream names the best one if that lowers
the loss. Effort 0 does only this: the one-step mode of "Dynamic Low-Rank Instance Adaptation".

Two phases follow. First an update of g_s, added to the ready one, is fitted to the plain latents
and pruned: where it pays, it improves the decoder more than latents can, and where it does not,
that shows soon. Then the latents are annealed, together with the update. The optimiser moves
floats, but a stream is judged by measurement: at fixed steps the picture is coded by the exact
path, decoded, and kept if R + lmbda·D over real bytes and real 8-bit pixels is the lowest so far.
The plain stream is the first, so the answer is never worse, nor worse than with no steps.

A graphics layer is chosen once, as `Engine.compress` chooses it, and coded with more effort; what
it does not hold is adapted.

Pictures larger than a tile are worked on tile by tile, in turn, so memory beyond their latents is
bounded; each step takes the latents of neighbouring tiles as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.adapt.checkpoint import (
    DAMAGED,
    AdaptationState,
    Checkpoint,
    damaged,
    read_checkpoint,
    write_checkpoint,
)
from service.adapt.decoder_update import NET, DecoderUpdate
from service.adapt.measurement import MeasuredStream, code_latents, measure_stream
from service.adapt.objective import Objective
from service.adapt.optimiser import AdaptationOptimiser
from service.adapt.schedule import StepSchedule
from service.adapt.task import Adaptation, AdaptationTask
from service.codec import container, webp
from service.codec.entropy_model import Y_FRAC
from service.codec.graphics import GraphicsLayer, make_layer
from service.codec.model_stream import write_update
from service.errors import BadStream, UnknownUpdate
from service.picture import U8
from service.runtime.check import block_errors, check_latents, check_layer
from service.runtime.graphics_search import (
    EncodedPicture,
    GraphicsSearch,
    SearchRate,
    encode_best,
)
from service.runtime.pipeline import (
    LoadedModel,
    assemble,
    encode,
    lossless_stream,
    ready_weights,
)
from service.store.model import layer_shapes
from service.transforms.synthesis_torch import device_and_dtype


class PictureAdaptation(Adaptation):
    """An adaptation of the latents and of g_s in progress."""

    def __init__(
        self, model: LoadedModel, task: AdaptationTask, checkpoint: bytes | None = None
    ) -> None:
        """Analyse the picture and code it plainly, or go on from a checkpoint.

        Args:
            model: merged for the task's rate, with analysis. task: what to do.
            checkpoint: from `checkpoint()` of the same task.

        Raises:
            BadParameter: the checkpoint is damaged or of another task.
        """
        assert model.analysis is not None
        super().__init__(task.pixels)
        self._model, self._task = model, task
        self._device, _ = device_and_dtype(model.analysis)
        self._digest = task.digest(model.stored.identity)
        saved = None if checkpoint is None else read_checkpoint(checkpoint, self._digest)
        under: U8 | None = None
        self._layer: GraphicsLayer | None = None
        if saved is not None:
            self._layer = _layer_of(saved)
        elif (first := self._first_stream()) is not None:
            self._layer, under = first.layer, first.under
        marked = None if self._layer is None else self._layer.marked
        self._objective = Objective(model, task.picture, task.lmbda, marked, under)
        self._tiles = self._objective.tiles
        self._optimiser = AdaptationOptimiser(self._objective, task.plan, task.seed, self._device)
        self._set_state(AdaptationState())
        if saved is not None:
            self._resume(saved)
        elif self._layer is not None and self._layer.is_complete:
            self._begin_lossless(self._layer)
        else:
            self._begin()

    def checkpoint(self) -> bytes:
        """Everything that is needed to go on, as safetensors."""
        with_canvas = len(self._tiles) > 1 or self._schedule.fitting
        tensors = self._optimiser.tensors(with_canvas)
        has_update = self._optimiser.update is not None
        return write_checkpoint(
            self._digest, self._state, self._best, tensors, self._optimiser.adam, has_update
        )

    @property
    def _phase(self) -> str:
        return "decoder" if self._schedule.fitting else "latents"

    @property
    def _planned(self) -> int:
        return self._schedule.total

    def _set_state(self, state: AdaptationState) -> None:
        task = self._task
        self._state = state
        self._schedule = StepSchedule(task.plan, len(self._tiles), task.max_seconds, state)

    def _first_stream(self) -> EncodedPicture | None:
        """The stream that `Engine.compress` makes; None where it cannot have a graphics layer."""
        model, task = self._model, self._task
        if not task.graphics:
            return None
        data, latents = encode(model, task.picture, task.rate16)
        errors = block_errors(model, task.picture, latents)
        plain = EncodedPicture(data, latents, errors=errors)
        rate = SearchRate(task.rate16, container.PSNR, task.lmbda, check=False)
        return encode_best(model, plain, GraphicsSearch(task.picture), rate)

    def _begin_lossless(self, layer: GraphicsLayer) -> None:
        """Code every pixel exactly, with more effort than `Engine.compress` makes; that is all."""
        picture, s = self._task.picture, self._state
        plain = container.write_stream(lossless_stream(picture, layer))
        layer = make_layer(picture, layer.marked, webp.BEST)
        self._best = min(plain, container.write_stream(lossless_stream(picture, layer)), key=len)
        check_layer(self._best, picture)
        s.bytes_before, s.psnr_before, s.psnr_best = len(plain), math.inf, math.inf
        s.first_loss = 8 * len(plain) / self._task.pixels
        s.loss_best = 8 * len(self._best) / self._task.pixels
        s.done = True
        self._optimiser.begin_phase(fitting=False)

    def _begin(self) -> None:
        plain = self._measure(None, settle=True)
        s, self._best = self._state, plain.data
        s.bytes_before, s.psnr_before, s.psnr_best = len(plain.data), plain.psnr_db, plain.psnr_db
        s.loss_best = s.first_loss = plain.loss
        if self._layer is not None:
            self._layer = make_layer(self._task.picture, self._layer.marked, webp.BEST)
            plain = self._measure(None)
            self._keep_if_best(plain)
        s.done = not self._schedule.planned
        if s.done or self._schedule.fitted:
            self._try_ready(plain)
        if self._schedule.fitted:
            self._add_update()
        self._optimiser.begin_phase(self._schedule.fitting)

    def _resume(self, checkpoint: Checkpoint) -> None:
        self._set_state(checkpoint.state)
        try:
            if checkpoint.with_update:
                self._add_update()
            else:
                self._use_ready_weights()
            fitting = self._schedule.fitting and not checkpoint.state.done
            self._optimiser.begin_phase(fitting)
            self._best = checkpoint.best
            self._optimiser.load(checkpoint)
        except (UnknownUpdate, *DAMAGED) as error:
            raise damaged(error) from error

    def _try_ready(self, plain: MeasuredStream) -> None:
        """Keep the ready update of the store that lowers the loss most, if one does."""
        model, task, stream = self._model, self._task, container.read_stream(plain.data)
        named = [replace(stream, ready=update.reference) for update in model.stored.updates]
        candidates = [
            measure_stream(model, task.picture, task.lmbda, one, plain.latents) for one in named
        ]
        best = min(candidates, key=lambda candidate: candidate.loss, default=plain)
        if best.loss < self._state.loss_best:
            self._keep_if_best(best)
            self._state.ready = container.describe(best.data).ready or ""

    def _add_update(self) -> None:
        """Begin to fit an update, added to the ready one if there is one."""
        self._optimiser.add_update(self._model.stored.transforms, self._ready_weights())

    def _ready_weights(self) -> Mapping[str, NDArray[Any]] | None:
        """Weights of g_s with the ready update that the stream names, None where it names none."""
        if not self._state.ready:
            return None
        return ready_weights(self._model, bytes.fromhex(self._state.ready))

    def _use_ready_weights(self) -> None:
        """Let the loss use the ready update, if there is one, and no other update."""
        merged = self._ready_weights() or {}
        self._objective.weights = {
            name.removeprefix(NET): torch.from_numpy(tensor).to(self._device)
            for name, tensor in merged.items()
        }

    def _advance_one(self) -> None:
        """One step on one tile, and what is due after it."""
        s, fitting, share = self._state, self._schedule.fitting, self._schedule.share
        tile = self._tiles[s.step % len(self._tiles)]
        tau = None if fitting else self._task.plan.temperature(share)
        rate, distortion = self._objective.loss(
            tile, self._optimiser.update, tau, self._optimiser.generator
        )
        self._optimiser.step(rate + distortion, share)
        s.step += 1
        if fitting:
            self._after_fitting(distortion.item(), share >= 1)
        else:
            self._after_annealing(share >= 1)

    def _after_fitting(self, distortion: float, time_is_over: bool) -> None:
        """What is due after a step of the update alone."""
        s, schedule = self._state, self._schedule
        s.trend = distortion if math.isinf(s.trend) else 0.9 * s.trend + 0.1 * distortion
        ended = time_is_over or not schedule.fitting
        hopeless = not ended and schedule.cannot_pay(self._distortion_before() - s.trend)
        if ended or hopeless:
            self._end_fitting(hopeless)
        elif schedule.due:
            schedule.shorten_if_slow(s.trend)

    def _after_annealing(self, time_is_over: bool) -> None:
        """What is due after a step of the latents."""
        schedule = self._schedule
        is_last = schedule.position >= schedule.planned or time_is_over
        if is_last or schedule.due:
            measured = self._measure(self._optimiser.update, settle=is_last)
            self._keep_if_best(measured)
            schedule.shorten_if_slow(measured.loss)
        if is_last:
            self._end()

    def _distortion_before(self) -> float:
        """lmbda·D of the best stream, which has no fitted update while one is being fitted."""
        return self._state.loss_best - 8 * len(self._best) / self._task.pixels

    def _end_fitting(self, hopeless: bool) -> None:
        """Prune the fitted update, and drop it if it cannot pay or nothing is left of it."""
        update = self._optimiser.update
        assert update is not None
        self._schedule.end_fitting()
        if not hopeless:
            self._prune(update)
        if hopeless or not update.update().layers:
            self._optimiser.update = None
            self._use_ready_weights()
        else:
            self._keep_if_best(self._measure(update))
        self._optimiser.begin_phase(self._schedule.fitting)

    def _end(self) -> None:
        """Prune the update once more for the latents as they are now."""
        update = self._optimiser.update
        if update is not None:
            self._prune(update)
            self._keep_if_best(self._measure(update))
        self._schedule.end()

    def _prune(self, update: DecoderUpdate) -> None:
        """Close the gates that do not pay."""
        distortion = partial(self._objective.distortion, update)
        update.prune(distortion, self._model.coder.tables)

    @torch.no_grad()
    def _measure(self, update: DecoderUpdate | None, settle: bool = False) -> MeasuredStream:
        """Code the picture with its present latents, decode it and measure its loss.

        With `settle`, the loss sees the coded latents in windows from now on.
        """
        model, task = self._model, self._task
        variables = ((t.box, *t.latents) for t in self._tiles)
        coded, latents = code_latents(model, task.picture, variables, self._layer)
        if settle:
            y_hat = torch.from_numpy(latents.y_hat.astype(np.float32)) / 2**Y_FRAC
            self._objective.canvas.copy_(y_hat)
        stream = assemble(model, task.picture, task.rate16, container.PSNR, coded, self._layer)
        fitted = None if update is None else update.update()
        if fitted is not None and fitted.layers:
            shapes = layer_shapes(model.stored.synthesis)
            stream = replace(stream, update=write_update(fitted, shapes, model.coder.tables))
        if self._state.ready:
            stream = replace(stream, ready=bytes.fromhex(self._state.ready))
        return measure_stream(model, task.picture, task.lmbda, stream, latents)

    def _keep_if_best(self, measured: MeasuredStream) -> None:
        """Make a stream the best one if its loss is the lowest and it decodes from its bytes."""
        if measured.loss >= self._state.loss_best:
            return
        check_latents(self._model, measured.data, measured.latents, "the adapted stream")
        if self._layer is not None:
            check_layer(measured.data, self._task.picture)
        self._best = measured.data
        self._state.loss_best, self._state.psnr_best = measured.loss, measured.psnr_db


def _layer_of(checkpoint: Checkpoint) -> GraphicsLayer | None:
    """The graphics layer of a checkpoint's stream. Raises BadParameter: it is damaged."""
    try:
        return container.read_stream(checkpoint.best).graphics
    except (BadStream, *DAMAGED) as error:
        raise damaged(error) from error
