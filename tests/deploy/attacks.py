"""What hostile clients and files do to a server that runs with its defaults, by one command.

Each attack prints and records what was asked, what was answered, and what another client got
meanwhile. It takes about ten minutes and two cores; times are of the machine that it runs on.

    python tests/deploy/attacks.py --record service/docs/results/attacks.md
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import httpx  # noqa: E402
from hostile import sealed  # noqa: E402
from hostile_images import SMALL_PARTS  # noqa: E402
from PIL import Image  # noqa: E402
from small_model import photo_like  # noqa: E402

from deploy.arrangement import free_port  # noqa: E402
from service.codec import container  # noqa: E402
from service.codec.tiles import piece_count, tiles  # noqa: E402

SMALL, PHOTO, MOST = (64, 64), (768, 512), (10_000, 10_000)
LOOKS = 40
"""Requests of another client, whose median is taken."""


class Server:
    """`rankpress serve` with its defaults, without jobs."""

    def __init__(self, folder: Path, *arguments: str, files: int | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{self.port}.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RANKPRESS_")}
        variables = kept | {"RANKPRESS_JOBS": "false", "RANKPRESS_PORT": str(self.port)}

        def limit() -> None:
            if files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", *arguments],
                env=variables,
                stdout=log,
                stderr=log,
                preexec_fn=limit,
            )
        self.client = httpx.Client(base_url=self.url, timeout=300)
        while not self._is_ready():
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return self.client.get("/readyz").status_code == 200
        return False

    def forget_peak(self) -> None:
        """Begin to watch for the most memory from now on."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def memory_mib(self, what: str = "VmHWM") -> float:
        """Resident memory, the most (VmHWM) or now (VmRSS)."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith(what)).split()[1]) / 1024

    def stop(self) -> None:
        """End it."""
        self.client.close()
        self._process.terminate()
        self._process.wait()

    def send(self, path: str, body: bytes, headers: str = "") -> socket.socket:
        """A connection on which a request was begun with this body, or with its first part."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        length = "" if "ransfer-" in headers or "ength" in headers else len(body)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}"
        head += f"Content-Length: {length}\r\n" if length != "" else ""
        with suppress(OSError):
            client.sendall(head.encode() + b"\r\n" + body)
        return client


@dataclass
class Page:
    """Rows of the table."""

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, attack: str, result: str) -> None:
        """Take and print a row."""
        self.rows.append((attack, result))
        print(f"{attack}: {result}", flush=True)  # noqa: T201


def png(size: tuple[int, int], bits: int = 8) -> bytes:
    """A PNG file, of one colour and bit where `bits` is 1."""
    out = io.BytesIO()
    image = Image.new("1", size, 1) if bits == 1 else Image.fromarray(photo_like(*size[::-1]))
    image.save(out, "PNG")
    return out.getvalue()


def empty_stream(example: bytes, width: int, height: int) -> bytes:
    """A stream of that size whose tiles have no bytes, by the model of another."""
    stream = container.read_stream(example)
    header = container.Header(stream.header.model, 64, stream.header.flags, width, height)
    coded = tuple((b"",) * piece_count(tile) for tile in tiles(header.latents))
    return container.write_stream(container.Stream(header, coded))


def timed(call: Callable[[], httpx.Response]) -> tuple[httpx.Response | None, float]:
    """An answer, None where the connection broke, and the seconds that it took."""
    begun = time.perf_counter()
    try:
        answer = call()
    except httpx.TransportError:
        return None, time.perf_counter() - begun
    return answer, time.perf_counter() - begun


def median_ms(call: Callable[[], httpx.Response], looks: int = LOOKS) -> float:
    """Median of the milliseconds that a request takes one after the other."""
    times = []
    for _ in range(looks):
        answer, seconds = timed(call)
        assert answer is not None and answer.status_code == 200, answer
        times.append(1000 * seconds)
    return statistics.median(times)


def post(url: str, body: bytes, answers: list[tuple[httpx.Response | None, float]]) -> None:
    """Send one request, and add its answer and seconds to `answers`."""
    answers.append(timed(lambda: httpx.post(url, content=body, timeout=300)))


def output_costs(page: Page, server: Server, example: bytes) -> None:
    """Large pictures out of a few bytes."""
    for width, height in (MOST, (262_143, 380)):
        stream = empty_stream(example, width, height)
        for name in ("avif", "webp", "jpeg", "png"):
            server.forget_peak()
            before = server.memory_mib("VmRSS")
            path = f"/decompress?format={name}"
            answer, seconds = timed(lambda p=path, s=stream: server.client.post(p, content=s))
            assert answer is not None
            page.add(
                f"{len(stream)} bytes that say {width}x{height}, as {name}",
                f"{answer.status_code} in {seconds:.1f} s, {len(answer.content):,} bytes, peak "
                f"{server.memory_mib():.0f} MiB (before {before:.0f})",
            )


def beside(page: Page, server: Server, path: str, maximal: bytes, small: dict[str, bytes]) -> None:
    """Small requests alone, beside one maximal request, and after ten abandoned ones."""
    for name, body in small.items():

        def call(body: bytes = body) -> httpx.Response:
            return server.client.post(path, content=body)

        median_ms(call, 5)
        alone = median_ms(call)
        answers: list[tuple[httpx.Response | None, float]] = []
        thread = threading.Thread(target=post, args=(server.url + path, maximal, answers))
        thread.start()
        time.sleep(2)
        with_one = median_ms(call)
        thread.join()
        (answer, seconds) = answers[0]
        status = answer.status_code if answer is not None else "broken"
        abandoned = [server.send(path, maximal) for _ in range(10)]
        time.sleep(0.5)
        for connection in abandoned:
            connection.close()
        with_ten = median_ms(call)
        page.add(
            f"{path}: median of {name} alone, beside one maximal request, after ten abandoned ones",
            f"{alone:.0f}, {with_one:.0f} ({with_one / alone:.2f}), {with_ten:.0f} ms "
            f"({with_ten / alone:.2f}); the maximal one {status} in {seconds:.0f} s",
        )


def tiny_chunks(page: Page, server: Server, small: bytes) -> None:
    """Bodies in chunks of one byte."""
    block = b"1\r\nx\r\n" * 20_000

    def feed(stop: threading.Event) -> None:
        while not stop.is_set():
            chunked = "Transfer-Encoding: chunked\r\n"
            with suppress(OSError), server.send("/decompress", b"", chunked) as connection:
                while not stop.is_set():
                    connection.sendall(block)
                    time.sleep(0.02)

    def livez() -> httpx.Response:
        return server.client.get("/livez")

    def compress() -> httpx.Response:
        return server.client.post("/compress?rate=4", content=small)

    page.add(
        "no attack: median of /livez, of a small compress",
        f"{median_ms(livez):.1f}, {median_ms(compress):.0f} ms",
    )
    for clients in (1, 4):
        stop = threading.Event()
        threads = [threading.Thread(target=feed, args=(stop,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        result = f"{median_ms(livez):.1f}, {median_ms(compress, 20):.0f} ms"
        stop.set()
        for thread in threads:
            thread.join()
        page.add(f"chunks of one byte at 1 MB/s each from {clients} client(s): the same", result)


def begin_body(server: Server, size: int, stack: ExitStack) -> None:
    """Send a body without its last byte, and keep the connection open."""
    length = f"Content-Length: {size}\r\n"
    stack.enter_context(server.send("/decompress", b"x" * (size - 1), length))


def stuck_bodies(page: Page, server: Server, small: bytes) -> None:
    """Bodies that lack their last byte."""
    size = 64 << 20
    with ExitStack() as stack:
        for _ in range(8):
            begun = threading.Thread(target=begin_body, args=(server, size, stack))
            begun.start()
        time.sleep(5)
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, base_url=server.url, timeout=300) as other:
            answers = [
                timed(lambda: other.post("/compress?rate=4", content=small)) for _ in range(20)
            ]
    statuses = sorted({a.status_code if a is not None else 0 for a, _ in answers})
    worst = max(seconds for _, seconds in answers)
    page.add(
        "eight bodies of 64 MiB without their last byte: 20 compressions of another client",
        f"statuses {statuses}, slowest {1000 * worst:.0f} ms",
    )


def many_connections(page: Page, folder: Path) -> None:
    """More connections than there are descriptors."""
    server = Server(folder, files=256)
    with ExitStack() as stack:
        lines = len(server.log.read_text().splitlines())
        for _ in range(600):
            with suppress(OSError):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 1))
        times = []
        for _ in range(20):
            with httpx.Client(base_url=server.url, timeout=30) as client:
                answer, seconds = timed(lambda c=client: c.get("/livez"))
            times.append(seconds if answer is not None else float("inf"))
        time.sleep(5)
        more = len(server.log.read_text().splitlines()) - lines
    server.stop()
    page.add(
        "600 connections where 256 files may be open: /livez on new ones, lines of log",
        f"median {1000 * statistics.median(times):.0f} ms, slowest {1000 * max(times):.0f} ms; "
        f"{more} lines",
    )


def sections(page: Page, server: Server, example: bytes) -> None:
    """A stream of nothing but empty sections."""
    optional = b"\x09\x00"  # a type that readers may skip, and no bytes
    data = sealed(example[:-4] + optional * ((60 << 20) // len(optional)))
    server.forget_peak()
    answer, seconds = timed(lambda: server.client.post("/decompress", content=data))
    assert answer is not None
    page.add(
        "a stream of 60 MiB of empty sections",
        f"{answer.status_code} in {seconds:.1f} s, peak {server.memory_mib():.0f} MiB",
    )


def files(page: Page, server: Server) -> None:
    """Image files that cost much before their first pixel."""
    for name, build in SMALL_PARTS.items():
        data = build(60_000_000)
        answer, seconds = timed(lambda d=data: server.client.post("/compress", content=d))
        status = answer.status_code if answer is not None else "broken"
        page.add(f"{name}, {len(data):,} bytes", f"{status} in {seconds:.2f} s")


def write(page: Page) -> str:
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines()
         if x.startswith("model name")), platform.machine())  # fmt: skip
    lines = [
        "# Attacks on a server with its defaults",
        "",
        f"`python tests/deploy/attacks.py --record PAGE` on {os.cpu_count()} cores of {cpu}.",
        "",
        "| attack | result |",
        "|---|---|",
        *(f"| {attack} | {result} |" for attack, result in page.rows),
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Server]:
    server = Server(folder, *arguments)
    try:
        yield server
    finally:
        server.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, help="file that the page is written to")
    options = parser.parse_args(arguments)
    page, small, photo = Page(), png(SMALL), png(PHOTO)
    with tempfile.TemporaryDirectory(prefix="rankpress-attacks-") as name:
        folder = Path(name)
        with running(folder) as server:
            streams = {
                f"{size[0]}x{size[1]}": server.client.post("/compress?rate=4", content=body).content
                for size, body in ((SMALL, small), (PHOTO, photo))
            }
            beside(
                page, server, "/compress?rate=4", png(MOST, 1), {"64x64": small, "768x512": photo}
            )
            stuck_bodies(page, server, small)
            files(page, server)
            tiny_chunks(page, server, small)  # last: their sender is slow to be read afterwards
        with running(folder, "--decode-only") as server:
            example = streams["64x64"]
            output_costs(page, server, example)
            beside(page, server, "/decompress", empty_stream(example, *MOST), streams)
            sections(page, server, example)
        many_connections(page, folder)
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(write(page))


if __name__ == "__main__":
    main()
