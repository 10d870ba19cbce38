"""The files that a decoder needs of some models, and an index that names them by their hash.

They are for decoders that read them over HTTP, such as those of web pages, which know the family
`conv` alone: models of other families are left out. Nothing of them is stored with a model: each
follows from the model's own files, and its bytes are always the same.
The page format.md of the documentation describes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from safetensors.numpy import save as save_safetensors

from service.codec.container import TUNES
from service.codec.sizes import ConvSizes
from service.files import smaller_gzip
from service.store.model import (
    ENTROPY,
    StoredModel,
    StoredRate,
    StoredUpdate,
    Tensors,
    layer_shapes,
)

SCHEMA: Final = 1
_NOT_FOR_DECODERS: Final = ("in_frac", "out_frac", "z.mean")
"""Last parts of the names of entropy tensors that only training and encoders read."""


@dataclass(frozen=True, eq=False)
class DecoderFiles:
    """Files for decoders; by default those of no model.

    Attributes:
        index: of the files, as JSON.
        files: by name.
        gzipped: those that gzip makes smaller (files.smaller_gzip), by name.
    """

    index: bytes = b'{"schema":1,"models":[]}'
    files: Mapping[str, bytes] = field(default_factory=dict)
    gzipped: Mapping[str, bytes] = field(default_factory=dict)


def decoder_files(models: Iterable[StoredModel]) -> DecoderFiles:
    """The decode-only files of models, with all their rates, previews and ready updates.

    Models that are not of the family `conv` are left out.
    """
    folder = _Folder()
    known = (model for model in models if isinstance(model.sizes, ConvSizes))
    entries = [folder.add_model(model) for model in known]
    index = json.dumps({"schema": SCHEMA, "models": entries}, separators=(",", ":"))
    packed = {name: smaller_gzip(data) for name, data in folder.files.items()}
    gzipped = {name: data for name, data in packed.items() if data is not None}
    return DecoderFiles(index.encode(), folder.files, gzipped)


def decoder_tensors(model: StoredModel) -> Tensors:
    """The tensors of the base that a decoder reads: g_s, and the entropy networks with tables."""
    entropy = {
        f"{ENTROPY}{name}": tensor
        for name, tensor in model.entropy.items()
        if not name.endswith(_NOT_FOR_DECODERS)
    }
    return model.synthesis | entropy


@dataclass(eq=False)
class _Folder:
    """Files that are named by their hash, so that equal ones are kept once."""

    files: dict[str, bytes] = field(default_factory=dict)

    def add_model(self, model: StoredModel) -> dict[str, object]:
        """Add the files of a model; returns its entry in the index."""
        rates = sorted(model.rates, key=lambda rate: (TUNES.index(rate.tune), rate.rate))
        served = [self._add_rate(rate, superseded=False) for rate in rates]
        older = [self._add_rate(rate, superseded=True) for rate in model.superseded]
        return {
            "name": model.name,
            "sha256": model.sha256,
            "sizes": asdict(model.sizes),
            "layers": dict(sorted(layer_shapes(model.transforms, model.entropy).items())),
            "decoder": self._add_tensors(decoder_tensors(model)),
            "previews": self._add_tensors(model.previews) if model.previews else None,
            "rates": served + older,
            "updates": [self._add_update(update) for update in model.updates],
        }

    def _add_tensors(self, tensors: Tensors) -> dict[str, Any]:
        return self._add(save_safetensors(tensors), "safetensors")

    def _add_rate(self, rate: StoredRate, *, superseded: bool) -> dict[str, object]:
        file = self._add(rate.data, "safetensors") if rate.data else _NO_FILE
        place = {"rate": int(rate.rate), "tune": rate.tune, "superseded": superseded}
        return place | file

    def _add_update(self, update: StoredUpdate) -> dict[str, object]:
        return {"name": update.name} | self._add(update.data, "rku")

    def _add(self, data: bytes, suffix: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        name = f"{digest}.{suffix}"
        self.files[name] = data
        return {"file": name, "sha256": digest, "bytes": len(data)}


_NO_FILE: Final[dict[str, Any]] = {"file": None, "sha256": None, "bytes": 0}
"""Entry of the base's own rate."""
