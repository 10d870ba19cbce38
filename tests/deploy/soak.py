"""The arrangement for many machines under load for an hour, with programs killed and stores away.

A closed loop of clients first measures the capacity. Then requests come at random times at four
fifths of it, while a job runs; every two minutes a program is killed (kill -9: a worker, a server,
the other worker, the decode-only server, ...) and started again, and twice the bucket cannot be
reached for 30 s. At the end everything that was accepted must be there. One server and the
programs' memory are watched all the time. Needs nginx, PostgreSQL and two cores:

    python tests/deploy/soak.py --minutes 60 --record service/docs/results/soak.md
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import itertools
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import httpx  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from small_model import photo_like  # noqa: E402

from deploy.arrangement import Arrangement, Program, free_port, what_is_missing  # noqa: E402
from deploy.stores import Bucket  # noqa: E402

CLIENTS = 4
"""Requests at a time while the capacity is measured."""

LOAD = 0.8
"""Requests a second, in parts of the capacity."""

KILL_S = 120.0
"""Seconds between two kills."""

AWAY_S = 30.0
"""Seconds that the bucket is away for, after a third and after two thirds of the time."""

TRIES = 12
"""Times that a client tries a request that is answered 503, or whose connection breaks."""

WAIT_FOR_JOBS_S = 900.0
SAMPLE_S = 5.0
SIZES = ((256, 192), (320, 240), (512, 384), (640, 480), (768, 512))
FORMATS = ("png", "webp", "jpeg", "avif")


class Gate:
    """A TCP proxy in front of the S3 server, which can be shut; it runs in threads of its own."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target_port = target_port
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()

    def open(self) -> None:
        """Listen."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse connections, and end those that there are."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target_port))
                self._connections |= {near, far}
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        self._connections.discard(source)


class Soaked(Arrangement):
    """The arrangement with the model that ships, and its bucket behind a `Gate`."""

    gate: Gate

    def _start_bucket(self) -> Bucket:
        bucket = super()._start_bucket()
        self.gate = Gate(int(bucket.url.rpartition(":")[2]))
        self.gate.open()
        self._closing.callback(self.gate.shut)
        bucket.url = f"http://127.0.0.1:{self.gate.port}"
        return bucket


@dataclass
class Facts:
    """What happened."""

    seconds: list[float] = field(default_factory=list)
    first_tries: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    gave_up: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    jobs: dict[str, float] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    outages: int = 0
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)


def pictures() -> list[bytes]:
    """PNG files: what looks like photographs, and drawings."""
    files = []
    for number, (width, height) in enumerate(SIZES):
        photo = Image.fromarray(photo_like(height, width, number))
        drawing = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(drawing)
        rng = random.Random(number)
        for _ in range(30):
            x, y = rng.randrange(width), rng.randrange(height)
            colour = tuple(rng.randrange(256) for _ in range(3))
            pen.rectangle((x, y, x + rng.randrange(80), y + rng.randrange(60)), fill=colour)
            pen.text((x, y), f"{x} {y}", fill="black")
        for image in (photo, drawing):
            out = io.BytesIO()
            image.save(out, "PNG")
            files.append(out.getvalue())
    return files


class Clients:
    """Well-behaved clients: they wait as long as they are told to, and try again."""

    def __init__(self, at: Soaked, facts: Facts, http: httpx.AsyncClient) -> None:
        self._at, self.facts, self._http = at, facts, http
        self._rng = random.Random(1)
        self._pictures = pictures()
        self._streams: list[bytes] = []

    async def prepare(self) -> None:
        """Streams to decompress and stored objects."""
        for number, picture in enumerate(self._pictures):
            answer = await self.call("POST", f"/compress?rate={1 + number % 8}", picture)
            assert answer is not None
            self._streams.append(answer.content)
        for stream in self._streams[:4]:
            await self._put(stream)

    async def one(self) -> None:
        """One request of the mix."""
        choice = self._rng.random()
        rate = self._rng.randint(1, 8)
        if choice < 0.45:
            picture = self._rng.choice(self._pictures)
            answer = await self.call("POST", f"/compress?rate={rate}", picture)
            if answer is not None and answer.headers["etag"].strip('"') != _hash(answer.content):
                self.facts.wrong.append("a stream differs from its ETag")
            if answer is not None:
                self._streams[self._rng.randrange(len(self._streams))] = answer.content
        elif choice < 0.75:
            stream, name = self._rng.choice(self._streams), self._rng.choice(FORMATS)
            answer = await self.call("POST", f"/decompress?format={name}", stream)
            if answer is not None:
                Image.open(io.BytesIO(answer.content)).load()
        elif choice < 0.95:
            digest = self._rng.choice(list(self.facts.objects))
            size = self._rng.randint(16, 512)
            await self.call("GET", f"/objects/{digest}?max_size={size}")
        else:
            await self._put(self._rng.choice(self._streams))

    async def post_job(self, number: int) -> str | None:
        """Post a job that no one has posted before; its id."""
        rng = np.random.default_rng(number)
        noise = rng.integers(0, 4, (192, 256, 3), np.uint8)
        pixels = photo_like(192, 256, number % 50) ^ noise
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        answer = await self.call("POST", "/adapt?rate=4&effort=1", out.getvalue())
        if answer is None:
            return None
        job = str(answer.json()["id"])
        self.facts.jobs[job] = time.monotonic()
        return job

    async def status(self, job: str) -> str:
        """State of a job, "?" if there is no answer."""
        answer = await self.call("GET", f"/jobs/{job}")
        return "?" if answer is None else str(answer.json()["status"])

    async def _put(self, stream: bytes) -> None:
        token = {"Authorization": f"Bearer {self._at.token}"}
        answer = await self.call("PUT", "/objects", stream, token)
        if answer is not None:
            self.facts.objects[answer.json()["sha256"]] = stream

    async def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> httpx.Response | None:
        """A request until it is answered with a success; None when the client gives up."""
        begun = time.monotonic()
        for attempt in range(TRIES):
            tried, wait_s = time.monotonic(), 1.0
            try:
                answer = await self._http.request(method, path, content=body, headers=headers)
            except httpx.TransportError as error:
                self.facts.statuses[type(error).__name__] += 1
            else:
                self.facts.statuses[str(answer.status_code)] += 1
                if answer.is_success:
                    self.facts.seconds.append(time.monotonic() - begun)
                    if attempt == 0:
                        self.facts.first_tries.append(time.monotonic() - tried)
                    return answer
                if answer.status_code not in (429, 503):
                    what = f"{method} {path} {answer.status_code} {answer.text[:300]}"
                    self.facts.wrong.append(what)
                    return None
                wait_s = float(answer.headers.get("retry-after", 1))
            self.facts.retried += 1
            await asyncio.sleep(wait_s + self._rng.random())
        self.facts.gave_up.append(f"{method} {path}")
        return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def capacity(clients: Clients, facts: Facts, seconds: float) -> float:
    """Requests a second that clients get who ask one after the other."""
    end = time.monotonic() + seconds
    before = len(facts.seconds)

    async def loop() -> None:
        while time.monotonic() < end:
            await clients.one()

    begun = time.monotonic()
    await asyncio.gather(*(loop() for _ in range(CLIENTS)))
    return (len(facts.seconds) - before) / (time.monotonic() - begun)


async def arrive(clients: Clients, rate: float, end: float) -> None:
    """Requests at random times, whether or not earlier ones were answered."""
    rng, running = random.Random(2), set()
    while time.monotonic() < end:
        task = asyncio.create_task(clients.one())
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(rng.expovariate(rate))
    await asyncio.gather(*running)


async def keep_a_job_running(clients: Clients, end: float) -> None:
    """Post a job whenever the one before it has ended."""
    for number in itertools.count():
        job = await clients.post_job(number)
        while job is not None and await clients.status(job) in ("queued", "running", "?"):
            if time.monotonic() > end:
                return
            await asyncio.sleep(3)
        if time.monotonic() > end:
            return


async def kill_in_turn(at: Soaked, facts: Facts, end: float) -> None:
    """Kill a program every `KILL_S` and start it again; the first server is spared."""
    server = list(at.servers.values())[1]
    for victim in itertools.cycle((at.workers[0], server, at.workers[1], at.decoder)):
        await asyncio.sleep(KILL_S)
        if time.monotonic() > end:
            return
        victim.kill()
        facts.kills[victim.name] += 1
        await asyncio.sleep(3)
        victim.start()


async def take_the_bucket_away(at: Soaked, facts: Facts, begun: float, end: float) -> None:
    """Twice, for `AWAY_S`."""
    for third in (1, 2):
        await asyncio.sleep(max(0.0, begun + third * (end - begun) / 3 - time.monotonic()))
        at.gate.shut()
        await asyncio.sleep(AWAY_S)
        at.gate.open()
        facts.outages += 1


async def watch_memory(programs: list[Program], facts: Facts, end: float) -> None:
    """Resident bytes of each program."""
    while time.monotonic() < end:
        for program in programs:
            with suppress(OSError, StopIteration, ValueError):
                lines = Path(f"/proc/{program.process.pid}/status").read_text().splitlines()
                line = next(x for x in lines if x.startswith("VmRSS"))
                sample = (time.monotonic(), int(line.split()[1]) * 1024)
                facts.memory.setdefault(program.name, []).append(sample)
        await asyncio.sleep(SAMPLE_S)


async def lost(clients: Clients, facts: Facts) -> list[str]:
    """What was accepted and is not there."""
    missing = []
    for job, posted in facts.jobs.items():
        state = await clients.status(job)
        while state in ("queued", "running", "?") and time.monotonic() - posted < WAIT_FOR_JOBS_S:
            await asyncio.sleep(3)
            state = await clients.status(job)
        result = await clients.call("GET", f"/jobs/{job}/result") if state == "succeeded" else None
        if result is None:
            missing.append(f"job {job} is {state}")
    for digest, stream in facts.objects.items():
        stored = await clients.call("GET", f"/objects/{digest}?format=png")
        fresh = await clients.call("POST", "/decompress?format=png", stream)
        if stored is None or fresh is None or stored.content != fresh.content:
            missing.append(f"object {digest}")
    return missing


def quantiles(values: list[float]) -> str:
    """Median, 95th and 99th percentile."""
    ordered = sorted(values) or [float("nan")]
    parts = (ordered[min(len(ordered) - 1, int(part * len(ordered)))] for part in (0.5, 0.95, 0.99))
    return ", ".join(f"{value:.2f}" for value in parts)


def memory_rows(facts: Facts, begun: float, end: float) -> list[str]:
    """Each program's memory in the second and in the last sixth of the time."""
    sixth = (end - begun) / 6
    rows = []
    for name, samples in sorted(facts.memory.items()):
        early = [b for t, b in samples if begun + sixth <= t < begun + 2 * sixth]
        late = [b for t, b in samples if t >= end - sixth]
        if early and late:
            mean = [statistics.mean(part) / 2**20 for part in (early, late)]
            peak = max(b for _, b in samples) / 2**20
            killed = facts.kills[name]
            rows.append(f"| {name} | {killed} | {mean[0]:.0f} | {mean[1]:.0f} | {peak:.0f} |")
    return rows


def report(facts: Facts, rate: float, begun: float, end: float, missing: list[str]) -> str:
    """The page."""
    statuses = ", ".join(f"{name}: {count}" for name, count in sorted(facts.statuses.items()))
    first, all_s = facts.first_tries, facts.seconds
    minutes = (end - begun) / 60
    command = f"python tests/deploy/soak.py --minutes {minutes:.0f} --record PAGE"
    lines = [
        f"# {minutes:.0f} minutes at four fifths of the capacity",
        "",
        f"`{command}`: {__doc__.splitlines()[0] if __doc__ else ''}",
        "nginx, PostgreSQL, an S3 server (moto), two servers, two workers and a decode-only server",
        f"on {os.cpu_count()} cores, one thread each, with the model that ships.",
        "",
        "| | |",
        "|---|---|",
        f"| capacity ({CLIENTS} clients in a closed loop, a job running) | {rate:.2f} requests/s |",
        f"| requests answered with a success | {len(all_s)} |",
        f"| answers and broken connections of all tries | {statuses} |",
        f"| tries again after 503, 429 or a broken connection | {facts.retried} |",
        f"| requests given up after {TRIES} tries | {len(facts.gave_up)} |",
        f"| other answers than success, 429 and 503 | {len(facts.wrong)} |",
        f"| seconds where the first try succeeds: median, p95, p99 | {quantiles(first)} |",
        f"| seconds with all tries: median, p95, p99 | {quantiles(all_s)} |",
        f"| kill -9 | {sum(facts.kills.values())} |",
        f"| bucket away for {AWAY_S:.0f} s | {facts.outages} times |",
        f"| jobs accepted | {len(facts.jobs)} |",
        f"| objects accepted | {len(facts.objects)} |",
        f"| accepted and lost | {len(missing)} |",
        "",
        "Memory in MiB, mean of the second and of the last sixth of the time, and peak:",
        "",
        "| program | killed | second sixth | last sixth | peak |",
        "|---|---:|---:|---:|---:|",
        *memory_rows(facts, begun, end),
    ]
    for title, items in (("Lost", missing), ("Wrong", facts.wrong), ("Given up", facts.gave_up)):
        if items:
            lines += ["", f"{title}:", "", *(f"* {item}" for item in items[:20])]
    return "\n".join(lines) + "\n"


async def soak(at: Soaked, minutes: float) -> tuple[str, bool]:
    """The page, and whether all went well."""
    warm, facts = Facts(), Facts()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=at.url, timeout=150, limits=limits) as http:
        clients = Clients(at, warm, http)
        await clients.prepare()
        await clients.post_job(10**6)
        rate = await capacity(clients, warm, min(60.0, minutes * 6))
        print(f"capacity {rate:.2f} requests/s", flush=True)  # noqa: T201
        clients.facts = facts
        facts.objects, facts.jobs = warm.objects, warm.jobs
        begun = time.monotonic()
        end = begun + 60 * minutes
        programs = [*at.servers.values(), *at.workers, at.decoder]
        await asyncio.gather(
            arrive(clients, LOAD * rate, end),
            keep_a_job_running(clients, end),
            kill_in_turn(at, facts, end),
            take_the_bucket_away(at, facts, begun, end),
            watch_memory(programs, facts, end),
        )
        missing = await lost(clients, facts)
    page = report(facts, rate, begun, end, missing)
    return page, not (missing or facts.wrong or facts.gave_up)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--record", type=Path, help="file that the page is written to")
    arguments = parser.parse_args()
    if (reason := what_is_missing()) is not None:
        sys.exit(f"cannot start: {reason}")
    with tempfile.TemporaryDirectory(prefix="rankpress-soak-") as name, ExitStack() as closing:
        os.chmod(name, 0o755)
        page, well = asyncio.run(soak(Soaked(Path(name), closing, {}), arguments.minutes))
    print(page)  # noqa: T201
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(page)
    sys.exit(not well)


if __name__ == "__main__":
    main()
