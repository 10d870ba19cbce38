"""The engine turns pictures into streams and back, with every model of the store resident.

A model is loaded once and never changes; a request names its rate. Rate adapters can be loaded and
unloaded while the engine runs (registry.py): a request keeps the adapters that were there when it
began. Pictures are worked on tile by tile, so memory beyond the picture itself is bounded by a
tile's window. Without torch the engine still decompresses (runtime/decode_only.py), and `compress`
says what to install.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from service.adapt.plan import AdaptationPlan, plan_of
from service.adapt.task import AdaptationTask
from service.codec import container
from service.codec.container import LOSSLESS, PSNR
from service.codec.lowrank import PARTS
from service.codec.sizes import conv_sizes
from service.codec.tiles import Box, latent_box, work_pixels
from service.engine.admission_queue import RequestGroup
from service.engine.coding import PictureCoder, by_group
from service.engine.registry import ModelRegistry, RegisteredModel
from service.engine.requests import (
    DecodeRequest,
    batch_of,
    check_adaptable,
    check_pixels,
    check_seconds,
    check_tune,
    decode_scale,
    decode_work,
    model_index,
    rate_key,
    requested_pixels,
)
from service.engine.self_test import check_golden_stream
from service.engine.target import Target, rate16_of
from service.engine.target_search import USUAL_ENCODES, goal_of, search
from service.engine.types import (
    LEAST_WORK,
    NO_MODEL,
    AdapterInfo,
    AutoencoderInfo,
    Compressed,
    Decompressed,
    Load,
    ModelInfo,
    StreamBits,
    StreamPreview,
    StreamShape,
)
from service.engine.weight_cache import RateKey, WeightCache
from service.errors import (
    BadParameter,
    ModelUnavailable,
    RankpressError,
    UnknownModel,
    UnsupportedStream,
)
from service.picture import WHOLE, Picture, View
from service.runtime.graphics_search import GraphicsSearch
from service.runtime.pipeline import LoadedModel
from service.store.adapters import AdapterFiles, StoredAdapter
from service.store.decoder_files import DecoderFiles
from service.store.model import StoredModel
from service.transforms.fork_safety import check_process

if TYPE_CHECKING:
    from service.adapt.adaptation import PictureAdaptation
    from service.adapt.overfit import LatentAdaptation
    from service.autoencoders.interfaces import Autoencoder
    from service.autoencoders.registry import Autoencoders


LOSSLESS_SPEED = 16
"""How many times as fast as the networks libwebp is, at least, counted in pixels decoded."""


class Engine:
    """Implements `Codec` of engine.types, which documents the methods without a docstring here."""

    def __init__(
        self,
        models: tuple[LoadedModel, ...],
        *,
        check: bool = True,
        measure: bool = True,
        max_pixels: int = 10**8,
        cache_bytes: int = 2**30,
        max_batch: int = 1,
        adapters: Path | None = None,
        graphics: bool = False,
        autoencoders: Autoencoders | None = None,
    ) -> None:
        """Serve loaded models.

        Args:
            models: at least one; the first compresses where a request names none.
            check: decode every fresh stream and compare its latents.
            measure: decode the pixels of checked streams too, for their PSNR.
            max_pixels: larger pictures are refused, in both directions; see `check_pixels`.
            cache_bytes: bytes of merged weights that are kept besides the bases.
            adapters: folder that keeps the adapters loaded at run time; None forgets them.
            graphics: give streams a graphics layer where that pays.
            autoencoders: of latent streams; None knows none.

        Raises:
            StoreError: a kept adapter is damaged or does not fit.
        """
        files = None if adapters is None else AdapterFiles(adapters)
        self._registry = ModelRegistry(models, files)
        self._check, self._max_pixels, self.max_batch = check, max_pixels, max_batch
        self._graphics = graphics
        self._weights = WeightCache(cache_bytes)
        self._coder = PictureCoder(self._weights, check, check and measure, graphics)
        self._autoencoders = autoencoders
        self._process = os.getpid()

    @property
    def _entries(self) -> tuple[RegisteredModel, ...]:
        """The models that new requests get, the default one first. A request reads it once.

        Raises ForkedProcess: this process was forked from the one that loaded them.
        """
        check_process(self._process)
        return self._registry.entries

    @property
    def _base(self) -> LoadedModel:
        """The model that compresses where a request names none, as `_entries` has it."""
        return self._entries[0].current

    def _model(self, name: str | None) -> LoadedModel:
        """The model that a request names, None for none. Raises ModelUnavailable: see `Codec`."""
        entries = self._entries
        return entries[model_index(name, [e.base.stored.name for e in entries])].current

    def models(self) -> tuple[ModelInfo, ...]:
        return tuple(entry.info() for entry in self._entries)

    def autoencoders(self) -> tuple[AutoencoderInfo, ...]:
        check_process(self._process)
        known = self._autoencoders
        if known is None:
            return ()
        loaded = [known.named(name) for name in known.names()]
        return tuple(AutoencoderInfo(one.name, one.identity.hex()) for one in loaded)

    def autoencoder(self, name: str | None) -> Autoencoder:
        """An autoencoder by its name, None for the first.

        Raises:
            ModelUnavailable: no autoencoder of that name is loaded. StoreError: it is damaged.
        """
        if self._autoencoders is None:
            raise ModelUnavailable("no autoencoder is loaded")
        return self._autoencoders.named(name)

    def warm(self) -> int:
        """Merge whole rates of the first model until the cache is full, one ladder after the other.

        Returns how many were merged and kept.
        """
        base, before = self._base, self._weights.size_bytes
        rates = [r for tune in base.stored.tunes for r in base.stored.ladder(tune)]
        merged = [r for r in rates if r.update is not None]
        for count, rate in enumerate(merged):
            key = RateKey.of(base.stored, round(PARTS * rate.rate), rate.tune)
            with self._weights.lease(base, key):
                pass
            if self._weights.size_bytes <= before:  # it evicted another, or was too large to keep
                return count
            before = self._weights.size_bytes
        return len(merged)

    def compress(
        self,
        picture: Picture,
        rate: float | Target,
        tune: str = PSNR,
        model: str | None = None,
    ) -> Compressed:
        base, layers = self._model(model), GraphicsSearch(picture)
        if isinstance(rate, Target):
            return self._compress_to(base, layers, rate, tune)
        if rate == LOSSLESS:
            check_pixels(self._max_pixels, picture.width, picture.height)
            return self._coder.compress_lossless(layers)
        key = rate_key(rate, tune, base.stored)
        check_pixels(self._max_pixels, picture.width, picture.height)
        return self._coder.compress(base, key, layers)

    def _compress_to(
        self,
        base: LoadedModel,
        layers: GraphicsSearch,
        target: Target,
        tune: str,
    ) -> Compressed:
        picture = layers.picture
        check_tune(tune, base.stored)
        check_pixels(self._max_pixels, picture.width, picture.height)
        goal = goal_of(target, picture.width * picture.height)

        def attempt(rate16: int) -> Compressed:
            key = RateKey.of(base.stored, rate16, tune)
            return self._coder.compress(base, key, layers, goal)

        lossless = None
        if target.psnr_db is not None and self._graphics:
            lossless = partial(self._coder.compress_lossless, layers)
        return search(goal, base.stored, attempt, tune, lossless)

    def compress_batch(
        self,
        pictures: Sequence[Picture],
        rate: float,
        tune: str = PSNR,
        model: str | None = None,
    ) -> list[Compressed | RankpressError]:
        base = self._model(model)
        key = rate_key(rate, tune, base.stored)

        def prepare(picture: Picture) -> tuple[Box, Picture]:
            check_pixels(self._max_pixels, picture.width, picture.height)
            return latent_box(picture.width, picture.height), picture

        return by_group(pictures, prepare, partial(self._coder.compress_group, base, key))

    def adapt(
        self,
        picture: Picture,
        rate: float,
        *,
        effort: int | AdaptationPlan,
        seed: int = 0,
        max_seconds: float | None = None,
        checkpoint: bytes | None = None,
    ) -> PictureAdaptation:
        """Begin to adapt a stream to a picture, or go on from a checkpoint.

        Args:
            picture: to adapt to. rate: 1–8, of tune PSNR. seed: of the random numbers.
            effort: 0–4, see adapt/plan.py, or a plan. max_seconds: see AdaptationTask.
            checkpoint: of an adaptation that was begun with the same arguments; None begins.

        Raises:
            RateUnavailable, BadParameter, TooManyPixels: as `compress`.
            BadParameter: the model is not of the family `conv`.
            MissingExtra: torch is not installed.
        """
        base = self._base
        check_seconds(max_seconds)
        rate16 = rate_key(rate, PSNR, base.stored).rate16
        check_pixels(self._max_pixels, picture.width, picture.height)
        conv_sizes(base.stored.sizes)
        check_adaptable(base)
        from service.adapt.adaptation import PictureAdaptation

        lmbda = base.stored.lmbda_at(rate16)
        if lmbda is None:
            raise BadParameter(f"the adapter of rate {rate:g} does not say its lmbda")
        at_rate = base.stored.at_rate(rate16)
        assert base.build is not None
        model = base if at_rate is base.stored else base.build(at_rate)
        plan = effort if isinstance(effort, AdaptationPlan) else plan_of(effort)
        task = AdaptationTask(picture, rate16, lmbda, plan, seed, max_seconds, self._graphics)
        return PictureAdaptation(model, task, checkpoint)

    def fit_latents(
        self,
        picture: Picture,
        quality: float,
        *,
        effort: int,
        autoencoder: str | None = None,
        seed: int = 0,
        max_seconds: float | None = None,
        checkpoint: bytes | None = None,
    ) -> LatentAdaptation:
        """Begin to fit networks and grids to the latents of a picture, or go on from a checkpoint.

        Args:
            picture: to fit to. quality: 1–8, which weighs bytes against errors.
            effort: 0–4, see adapt/overfit.py. autoencoder: its name, None for the first.
            seed, max_seconds, checkpoint: as of `adapt`.

        Raises:
            BadParameter, TooManyPixels, MissingExtra: as `adapt`.
            ModelUnavailable: no autoencoder of that name is loaded.
            StoreError: it is damaged.
        """
        base = self._base
        check_seconds(max_seconds)
        quality16 = rate16_of(quality, "quality")
        check_pixels(self._max_pixels, picture.width, picture.height)
        chosen = self.autoencoder(autoencoder)
        check_pixels(self._max_pixels, picture.width, picture.height, chosen.cell)
        check_adaptable(base)
        from service.adapt.overfit import STEPS, LatentAdaptation, LatentTask

        if effort not in STEPS:
            raise BadParameter(f"effort is {effort}, expected one of {', '.join(map(str, STEPS))}")
        task = LatentTask(picture, quality16, STEPS[effort], seed, max_seconds)
        return LatentAdaptation(chosen, task, checkpoint)

    def decompress(self, data: bytes, view: View = WHOLE) -> Decompressed:
        return self._coder.decompress(self._request(data, view))

    def stream_bits(self, data: bytes) -> StreamBits:
        request = self._request(data)
        if request.autoencoder is not None:
            raise BadParameter("a latent stream does not tell which part of a picture its bits are")
        return self._coder.stream_bits(request)

    def stored_at(self, rate: float, model: str | None = None) -> StoredModel:
        base = self._model(model)
        return base.stored.at_rate(rate_key(rate, PSNR, base.stored).rate16)

    def decompress_batch(self, streams: Sequence[bytes]) -> list[Decompressed | RankpressError]:
        def prepare(data: bytes) -> tuple[Hashable, DecodeRequest]:
            request = self._request(data)
            return request.group, request

        return by_group(streams, prepare, self._coder.decompress_group)

    def _request(self, data: bytes, view: View = WHOLE) -> DecodeRequest:
        """A stream that has been read and checked, with the model that made it."""
        check_process(self._process)
        stream = container.read_stream(
            data, partial(self._check_header, view=view), partial=view.partial
        )
        header = stream.header
        pixels = requested_pixels(header.width, header.height, view)
        if stream.is_lossless:
            return DecodeRequest(None, NO_MODEL, stream, pixels, view)
        if stream.overfit is not None:
            autoencoder = self._autoencoder_of(header)
            return DecodeRequest(
                None, autoencoder.name, stream, pixels, view, autoencoder=autoencoder
            )
        base, key = self._registry.model_of(header)
        covered = stream.graphics is not None and stream.graphics.covers(pixels)
        if covered:
            return DecodeRequest(None, base.stored.name, stream, pixels, view)
        has_layer = stream.graphics is not None
        scale = decode_scale(base, view, pixels, has_layer=has_layer, has_alpha=stream.has_alpha)
        return DecodeRequest((base, key), base.stored.name, stream, pixels, view, scale)

    def _autoencoder_of(self, header: container.Header) -> Autoencoder:
        """The autoencoder that a latent stream names; its cells may be larger than those of models.

        Raises:
            UnknownModel: it is not loaded. TooManyPixels: over the limit, in its cells.
        """
        if self._autoencoders is None:
            raise UnknownModel(f"autoencoder {header.model.hex()} is not loaded, nor any other")
        autoencoder = self._autoencoders.of_stream(header.model)
        check_pixels(self._max_pixels, header.width, header.height, autoencoder.cell)
        return autoencoder

    def _check_header(self, header: container.Header, view: View) -> None:
        """Refuse a stream that this decoder does not take, before more of it is read."""
        if header.flags & container.Flags.SAME_MACHINE:
            raise UnsupportedStream(
                "the stream was made by a CompressAI model: only the machine that made it, serving "
                "that model, can decode it"
            )
        check_pixels(self._max_pixels, header.width, header.height)
        view.part(header.width, header.height)

    def picture_load(
        self,
        size: tuple[int, int] | None,
        rate: float | Target,
        tune: str = PSNR,
        model: str | None = None,
    ) -> Load:
        base, pixels = self._model(model), LEAST_WORK
        if size is not None:
            check_pixels(self._max_pixels, *size)
            box = latent_box(*size)
            pixels = work_pixels(box, box, base.stored.sizes.halo) * (2 if self._check else 1)
        if isinstance(rate, Target):
            return Load(USUAL_ENCODES * pixels)
        try:
            key = rate_key(rate, tune, base.stored)
        except BadParameter:  # compressing will tell
            return Load(pixels)
        batch = None if size is None else batch_of(("compress", base.stored.name), *size)
        return Load(pixels, RequestGroup((key.identity[:4].hex(), key.rate16), batch))

    def preview_stream(self, data: bytes, view: View = WHOLE) -> StreamPreview:
        info = container.describe(
            data, partial(self._check_header, view=view), partial=view.partial
        )
        shape = StreamShape(info.width, info.height, info.has_alpha)
        if info.rate == LOSSLESS:
            pixels = info.width * info.height // LOSSLESS_SPEED
            return StreamPreview(shape, Load(LEAST_WORK + pixels))
        need = requested_pixels(info.width, info.height, view)
        alone = view != WHOLE or info.method == container.LATENT
        batch = None if alone else batch_of("decompress", info.width, info.height)
        work = decode_work([e.current for e in self._entries], info, view, need)
        return StreamPreview(
            shape, Load(work, RequestGroup((info.model, round(PARTS * info.rate)), batch))
        )

    def decoder_files(self) -> DecoderFiles:
        check_process(self._process)
        return self._registry.decoder_files()

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return self._registry.adapters()

    def add_adapter(
        self, data: bytes, base_sha256: str, rate: int, tune: str = PSNR
    ) -> AdapterInfo:

        def prove(model: LoadedModel) -> None:
            """Merge it, which fails where it does not fit and saves the first request the merge."""
            with self._weights.lease(model, RateKey.of(model.stored, PARTS * rate, tune)):
                pass

        return self._registry.add(StoredAdapter(data, base_sha256, rate, tune), prove)

    def remove_adapter(self, sha256: str) -> None:
        self._registry.remove(sha256)

    def self_test(self) -> None:
        for entry in self._entries:
            check_golden_stream(entry.current)
