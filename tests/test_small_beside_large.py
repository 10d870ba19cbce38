"""Small requests beside the largest, of a real server: their median at most doubles.

Times are compared within a round, and one quiet round suffices: other programs on the machine may
spoil a round, but a server that makes small requests wait for large ones fails them all.
"""

from __future__ import annotations

import io
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest
from conftest import Small
from PIL import Image
from served import serving
from small_model import photo_like

from service.store.write import write_model

ROUNDS = 4
LOOKS = 15
LARGE_SIDE = 4096


def png_of(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


LARGE = png_of(Image.new("1", (LARGE_SIDE, LARGE_SIDE), 1))
SMALL = png_of(Image.fromarray(photo_like(64, 64)))


@pytest.fixture(scope="module")
def url(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server with the small model, one thread to a network."""
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "store" / "small", small.stored, small.base)
    variables = {"RANKPRESS_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with serving(folder, "--store", str(folder / "store"), **variables) as url:
        yield url


def median_s(client: httpx.Client) -> float:
    """Median of the seconds of small requests, one after the other."""
    times = []
    for _ in range(LOOKS):
        begun = time.perf_counter()
        assert client.post("/compress?rate=4", content=SMALL).status_code == 200
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


@contextmanager
def one_maximal_request(url: str) -> Iterator[None]:
    """A large picture that is worked on all the time, by a client that waits for it."""
    stop, done = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answer = httpx.post(f"{url}/compress?rate=4", content=LARGE, timeout=300)
            done.append(answer.status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert set(done) == {200}


@contextmanager
def ten_abandoned_requests(url: str) -> Iterator[None]:
    """Ten large pictures whose senders have gone after half a second."""
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /compress?rate=4 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LARGE)}\r\n\r\n"
    clients = []
    for _ in range(10):
        clients.append(socket.create_connection((host, int(port))))
        clients[-1].sendall(head.encode() + LARGE)
    time.sleep(0.5)
    for client in clients:
        client.close()
    yield


@pytest.mark.parametrize("load", [one_maximal_request, ten_abandoned_requests])
def test_the_median_of_small_requests_at_most_doubles(
    url: str, load: Callable[[str], AbstractContextManager[None]]
) -> None:
    ratios = []
    with httpx.Client(base_url=url, timeout=300) as client:
        median_s(client)
        for _ in range(ROUNDS):
            alone = median_s(client)
            with load(url):
                ratios.append(median_s(client) / alone)
            if ratios[-1] <= 2:
                return
    raise AssertionError(f"beside large work small requests take {ratios} times as long")
