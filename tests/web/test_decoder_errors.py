"""What goes wrong in the decoder ends in an error of the package, and the page lives on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fuzz.mutations import MAX_PIXELS, damaged_streams
from hostile import sealed
from make_golden import V1

from service.codec import container
from web.conftest import watched_page
from web.decoding import PACKAGE, BrowserDecoder, package_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="the decoder was not built (npm run build in service/web)"
)

PHOTO = (V1 / "photo-r4.rkp").read_bytes()


@pytest.fixture
def decoder(browser: Browser, weights: Path) -> Iterator[BrowserDecoder]:
    """A page of its own, without a decoder yet. Browsers log what cannot be fetched or run."""
    with package_site(weights) as site, watched_page(browser, []) as page:
        yield BrowserDecoder(page, *site)


def test_damaged_streams_end_in_a_picture_or_an_error_of_the_package(
    decoder: BrowserDecoder,
) -> None:
    decoder.open(maxPixels=MAX_PIXELS, threads=2)
    for options in ({}, {"partial": True}):
        outcomes = decoder.attempt(damaged_streams(150), **options)
        assert outcomes.faults == []
        assert outcomes.counts.keys() >= {"BadStream", "success"}
        assert sum(outcomes.counts.values()) == 150


def test_each_kind_of_error_is_that_of_python(decoder: BrowserDecoder) -> None:
    decoder.open(threads=1)
    ready = replace(container.read_stream(PHOTO), ready=b"none")
    streams = {
        "success": PHOTO,
        "BadStream": PHOTO[:-1],
        "UnsupportedStream": sealed(PHOTO[:3] + b"\x02" + PHOTO[4:-4]),
        "UnknownModel": sealed(PHOTO[:4] + b"none" + PHOTO[8:-4]),
        "UnknownUpdate": container.write_stream(ready),
    }
    assert {kind: decoder.outcome(data) for kind, data in streams.items()} == {
        k: k for k in streams
    }


@pytest.mark.parametrize(
    "options",
    [
        {"region": {"x": 100, "y": 0, "width": 7, "height": 1}},
        {"region": {"x": 0, "y": 0, "width": 0, "height": 1}},
        {"region": {"x": 0.5, "y": 0, "width": 1, "height": 1}},
        {"maxSize": 0},
    ],
)
def test_no_view_of_the_picture_is_a_bad_parameter(
    decoder: BrowserDecoder, options: dict[str, object]
) -> None:
    decoder.open(threads=1)
    assert decoder.outcome(PHOTO, **options) == "BadParameter"


def test_a_picture_over_the_limit_is_refused(decoder: BrowserDecoder) -> None:
    """Its sides count as multiples of 16, as in Python."""
    decoder.open(threads=1, maxPixels=112 * 80)
    assert decoder.outcome(PHOTO) == "success"
    decoder.open(threads=1, maxPixels=112 * 80 - 1)
    assert decoder.outcome(PHOTO) == "TooManyPixels"


def test_damaged_weights_are_refused_and_fetched_anew(
    decoder: BrowserDecoder, weights: Path
) -> None:
    index = json.loads((weights / "index.json").read_text())
    name = index["models"][0]["decoder"]["file"]
    data = (weights / name).read_bytes()
    decoder.open(threads=1)
    for damaged in (data[:-1], bytes([data[0] ^ 1]) + data[1:], b""):
        decoder.pages[f"/weights/{name}"] = damaged
        assert decoder.outcome(PHOTO) == "StoreError"
    del decoder.pages[f"/weights/{name}"]
    assert decoder.outcome(PHOTO) == "success"


@pytest.mark.parametrize(
    "index", ["", "{}", '{"schema":2,"models":[]}', '{"schema":1,"models":[1]}']
)
def test_an_index_that_is_none_is_refused(decoder: BrowserDecoder, index: str) -> None:
    decoder.pages["/weights/index.json"] = index
    decoder.open(threads=1)
    assert decoder.outcome(PHOTO) == "StoreError"


def test_weights_that_do_not_fit_their_model_are_refused(
    decoder: BrowserDecoder, weights: Path
) -> None:
    """Whoever writes the index may write any hashes."""
    index = json.loads((weights / "index.json").read_text())
    model = index["models"][0]
    model["decoder"] = {k: model["previews"][k] for k in ("file", "sha256", "bytes")}
    decoder.pages["/weights/index.json"] = json.dumps(index)
    decoder.open(threads=1)
    assert decoder.outcome(PHOTO) == "StoreError"


def test_weights_that_are_not_there_are_an_error(decoder: BrowserDecoder) -> None:
    for url in ("/nowhere/index.json", "http://127.0.0.1:9/index.json"):
        decoder.open(threads=1, weightsUrl=url)
        assert decoder.outcome(PHOTO) == "StoreError"


DYING = """import "/decoder/worker.js";
addEventListener("message", ({ data }) => {
  if (data.kind === "task") throw new Error("a worker dies");
});"""


@pytest.mark.parametrize("script", [DYING, "throw new Error('dead from the start')", "no script"])
def test_the_death_of_a_worker_is_an_error(decoder: BrowserDecoder, script: str) -> None:
    """Nobody waits for it for ever; a decoder with other workers goes on."""
    decoder.pages["/worker.js"] = script
    decoder.open(threads=1, workerUrl="/worker.js")
    assert decoder.outcome(PHOTO) == "RankpressError"
    decoder.pages["/worker.js"] = 'import "/decoder/worker.js";'
    assert decoder.outcome(PHOTO) == "success"


def test_kernels_that_cannot_be_loaded_are_an_error(decoder: BrowserDecoder) -> None:
    decoder.pages["/kernels.wasm"] = b"none"
    opened = decoder.page.evaluate(
        "harness.kindOf(harness.open({ wasmUrl: '/kernels.wasm', threads: 1 }))"
    )
    assert opened == "RankpressError"


ABORT = """async ([bytes, ms]) => {
  const controller = new AbortController();
  const { signal } = controller;
  if (ms === 0) controller.abort(); else setTimeout(() => controller.abort(), ms);
  const name = await harness.decoder.decode(new Uint8Array(bytes), { signal }).then(
    () => "success", (error) => error.name);
  return name;
}"""


@pytest.mark.parametrize("ms", [0, 1, 60])
def test_an_abort_ends_the_decode_and_no_other(decoder: BrowserDecoder, ms: int) -> None:
    """A picture of several tiles and windows takes longer than these milliseconds."""
    data = (V1 / "segments-r2.rkp").read_bytes()
    decoder.open(threads=1)
    assert decoder.page.evaluate(ABORT, [list(data), ms]) == "AbortError"
    assert decoder.outcome(PHOTO) == "success"


CLOSE = """async (bytes) => {
  const decode = harness.decoder.decode(new Uint8Array(bytes));
  harness.decoder.close();
  return [await harness.kindOf(decode),
          await harness.kindOf(harness.decoder.decode(new Uint8Array(bytes)))];
}"""


def test_what_is_decoded_when_a_decoder_is_closed_is_rejected(decoder: BrowserDecoder) -> None:
    decoder.open(threads=1)
    assert decoder.page.evaluate(CLOSE, list(PHOTO)) == ["RankpressError"] * 2
