"""What must hold of the arrangement, in this order: later checks kill what earlier ones need."""

from __future__ import annotations

import http.client
import io
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import numpy as np
from PIL import Image
from small_model import photo_like

from deploy.arrangement import Arrangement

WIDTH, HEIGHT = 106, 75
PIXELS = photo_like(HEIGHT, WIDTH, 3)
FORMATS = {
    "image/avif": "AVIF",
    "image/webp": "WEBP",
    "image/jpeg": "JPEG",
    "image/png": "PNG",
}
CHROME = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
SAFARI_13 = "image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5"
NO_AVIF = "image/avif;q=0, image/webp"


class Walk:
    """What checks share.

    Attributes:
        at: the arrangement. client: of its nginx. photo: a PNG file.
        stream: of it, as a server made it. adapted: as a worker did. digest: of the stored one.
    """

    def __init__(self, at: Arrangement) -> None:
        self.at = at
        self.client = httpx.Client(base_url=at.url, timeout=90)
        out = io.BytesIO()
        Image.fromarray(PIXELS).save(out, "PNG")
        self.photo = out.getvalue()
        self.stream = self.adapted = b""
        self.digest = ""

    def picture(self, accept: str, query: str = "", **headers: str) -> httpx.Response:
        """The stored stream as nginx gives it to a client of that Accept."""
        path = f"/objects/{self.digest}{query}"
        return self.client.get(path, headers={"Accept": accept, **headers})

    def served_by(self, path: str) -> set[str]:
        """Addresses of the last upstreams of all requests of a path and query."""
        found = (x for x in self.at.nginx.lines() if x["uri"] == path and x["upstream"])
        return {re.split(", | : ", x["upstream"])[-1] for x in found}


def cache(answer: httpx.Response) -> str:
    return str(answer.headers.get("x-cache-status"))


def pixels_of(answer: httpx.Response) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)


def problem_of(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json()["status"] == answer.status_code
    return str(answer.json()["type"]).rpartition(":")[2]


def each_rate_has_one_server(walk: Walk) -> None:
    # The small model has rate 4 alone: the others are refused, by the server of that rate.
    rates = [f"{rate:g}" for rate in np.arange(1, 8.25, 0.25)]
    for _ in range(2):
        for rate in rates:
            answer = walk.client.post(f"/compress?rate={rate}", content=walk.photo)
            assert answer.status_code == (200 if rate == "4" else 422), answer.text
    homes = [walk.served_by(f"/compress?rate={rate}") for rate in rates]
    assert all(len(home) == 1 for home in homes)
    assert set().union(*homes) == set(walk.at.servers)


def a_stream_of_one_server_is_adapted_by_a_worker(walk: Walk) -> None:
    walk.stream = walk.client.post("/compress?rate=4", content=walk.photo).content
    posted = walk.client.post("/adapt?rate=4&effort=1", content=walk.photo)
    assert posted.status_code == 202, posted.text
    seen: list[dict[str, Any]] = []
    with walk.client.stream("GET", f"{posted.headers['location']}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        for line in events.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
    assert seen[-1]["status"] == "succeeded", seen[-1]
    result = walk.client.get(f"{posted.headers['location']}/result")
    walk.adapted = result.content
    assert len(walk.adapted) == seen[-1]["bytes"]
    assert walk.adapted != walk.stream
    begun = [x for w in walk.at.workers for x in w.lines() if x["event"] == "job begun"]
    # Twice, where one worker was so slow that another took the job over.
    assert {x["job"] for x in begun} == {seen[-1]["id"]}, (begun, seen[-1])


def both_workers_take_jobs(walk: Walk) -> None:
    posted = []
    for turn in range(1, 4):
        out = io.BytesIO()
        Image.fromarray(np.rot90(PIXELS, turn)).save(out, "PNG")
        posted.append(walk.client.post("/adapt?rate=4&effort=0", content=out.getvalue()))
    for answer in posted:
        with walk.client.stream("GET", f"{answer.headers['location']}/events") as events:
            last = [line for line in events.iter_lines() if line.startswith("data: ")][-1]
        assert json.loads(last.removeprefix("data: "))["status"] == "succeeded"
    for worker in walk.at.workers:
        assert any(x["event"] == "job done" for x in worker.lines()), worker.name


def only_who_has_the_token_may_store(walk: Walk) -> None:
    refused = walk.client.put("/objects", content=walk.adapted)
    assert (refused.status_code, problem_of(refused)) == (403, "forbidden")
    wrong = walk.client.put(
        "/objects", content=walk.adapted, headers={"Authorization": "Bearer " + "0" * 32}
    )
    assert wrong.status_code == 403
    right = {"Authorization": f"Bearer {walk.at.token}"}
    stored = walk.client.put("/objects", content=walk.adapted, headers=right)
    assert stored.status_code == 201, stored.text
    again = walk.client.put("/objects", content=walk.adapted, headers=right)
    assert again.status_code == 200
    walk.digest = stored.json()["sha256"]


def accept_chooses_the_picture_and_the_cache_keeps_it(walk: Walk) -> None:
    for accept, name in FORMATS.items():
        first, second = walk.picture(accept), walk.picture(accept)
        assert (cache(first), cache(second)) == ("MISS", "HIT"), accept
        assert first.headers["content-type"] == accept
        assert Image.open(io.BytesIO(first.content)).format == name
        assert first.content == second.content
        assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert first.headers["vary"] == "Accept"
    assert walk.served_by(f"/objects/{walk.digest}") == {walk.at.decoder_at}
    exact = pixels_of(walk.picture("image/png"))
    assert exact.shape == PIXELS.shape
    posted = walk.client.post("/decompress?format=png", content=walk.adapted)
    assert np.array_equal(exact, pixels_of(posted))
    for accept in ("image/avif", "image/webp", "image/jpeg"):
        difference = np.square(exact - pixels_of(walk.picture(accept))).mean()
        assert 0 < difference < 200, (accept, difference)


def headers_that_mean_the_same_share_an_entry(walk: Walk) -> None:
    same = {
        "image/avif": (CHROME, "image/avif;q=0.9, image/webp;q=.5, text/html, */*;q=0.1"),
        "image/webp": (f"{NO_AVIF}, image/*", "text/html, image/webp, image/png;q=0.000, */*"),
        "image/jpeg": ("*/*", "image/*", "", "text/html,*/*;q=0.8"),
        "image/png": (SAFARI_13, "image/png,*/*"),
    }
    for media_type, headers in same.items():
        for accept in headers:
            answer = walk.picture(accept)
            assert answer.headers["content-type"] == media_type, accept
            assert cache(answer) == ("MISS" if accept == headers[0] else "HIT"), accept
    named = walk.picture("image/avif", "?format=jpeg&max_size=50")
    assert (cache(named), named.headers["content-type"]) == ("MISS", "image/jpeg")
    assert max(Image.open(io.BytesIO(named.content)).size) == 50
    assert cache(walk.picture("image/webp", "?format=jpeg&max_size=50")) == "HIT"
    none = walk.picture("text/html")
    assert (none.status_code, problem_of(none)) == (406, "not-acceptable")


def the_cache_answers_conditions_and_ranges(walk: Walk) -> None:
    whole = walk.picture("image/avif")
    known = walk.picture("image/avif", **{"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content, cache(known)) == (304, b"", "HIT")
    other = walk.picture("image/webp", **{"If-None-Match": whole.headers["etag"]})
    assert other.status_code == 200
    part = walk.picture("image/avif", Range="bytes=10-29")
    assert (part.status_code, cache(part)) == (206, "HIT")
    assert part.content == whole.content[10:30]
    assert part.headers["x-request-id"] != whole.headers["x-request-id"]


def many_clients_at_once_are_all_answered(walk: Walk) -> None:
    """A load over loopback; however many want a picture at once, it is made once."""
    wanted = [(a, f"?max_size={size}") for a in FORMATS for size in (24, 32, 48)]

    def client(n: int) -> list[tuple[int, str]]:
        found = []
        for i in range(n, n + 60):
            if i % 20 == 0:
                answer = walk.client.post("/compress?rate=4", content=walk.photo)
                assert answer.content == walk.stream
            else:
                answer = walk.picture(*wanted[i // 2 % len(wanted)])
            found.append((answer.status_code, cache(answer)))
        return found

    with ThreadPoolExecutor(8) as clients:
        found = [one for each in clients.map(client, range(8)) for one in each]
    assert {status for status, _ in found} == {200}
    counts = Counter(told for _, told in found)
    assert counts == {"MISS": 12, "HIT": 444, "None": 24}, counts


def errors_are_worded_as_the_service_does(walk: Walk) -> None:
    nothing = walk.client.get(f"/objects/{'0' * 64}")
    assert (nothing.status_code, problem_of(nothing)) == (404, "no-such-object")
    for path in ("/metrics", "/adapters"):
        hidden = walk.client.get(path)
        assert (hidden.status_code, problem_of(hidden)) == (404, "not-found")
    address = walk.client.base_url
    with closing(http.client.HTTPConnection(address.host, address.port)) as connection:
        connection.putrequest("POST", "/compress?rate=4")
        connection.putheader("Content-Length", str((64 << 20) + 1))
        connection.endheaders()
        large = connection.getresponse()
        assert (large.status, large.headers["content-type"]) == (413, "application/problem+json")
        assert json.load(large)["type"] == "urn:rankpress:problem:too-many-bytes"


def a_dead_server_is_not_missed(walk: Walk) -> None:
    (home,) = walk.served_by("/compress?rate=4")
    walk.at.servers[home].kill()
    (left,) = set(walk.at.servers) - {home}
    for _ in range(4):
        answer = walk.client.post("/compress?rate=4&metadata=none", content=walk.photo)
        assert answer.status_code == 200, answer.text
    assert walk.served_by("/compress?rate=4&metadata=none") == {left}
    assert walk.client.get("/rates").status_code == 200
    assert walk.client.get("/readyz").status_code == 200


def without_the_decoder_servers_decode(walk: Walk) -> None:
    walk.at.decoder.kill()
    assert cache(walk.picture(CHROME)) == "HIT"
    fresh = walk.picture(CHROME, "?max_size=40")
    assert (fresh.status_code, cache(fresh)) == (200, "MISS")


def without_any_server_the_cache_answers(walk: Walk) -> None:
    for server in walk.at.servers.values():
        server.kill()
    assert cache(walk.picture(CHROME)) == "HIT"
    gone = walk.client.post("/compress?rate=4", content=walk.photo)
    assert (gone.status_code, problem_of(gone)) == (503, "saturated")
    assert int(gone.headers["retry-after"]) > 0


def no_role_asked_for_what_it_may_not(walk: Walk) -> None:
    answers = re.findall(r'HTTP/1\.1\S*" (\d+) -', walk.at.s3.log.read_text())
    assert answers.count("200") > 10 and answers.count("403") == 0, Counter(answers)


CHECKS = (
    each_rate_has_one_server,
    a_stream_of_one_server_is_adapted_by_a_worker,
    both_workers_take_jobs,
    only_who_has_the_token_may_store,
    accept_chooses_the_picture_and_the_cache_keeps_it,
    headers_that_mean_the_same_share_an_entry,
    the_cache_answers_conditions_and_ranges,
    many_clients_at_once_are_all_answered,
    errors_are_worded_as_the_service_does,
    a_dead_server_is_not_missed,
    without_the_decoder_servers_decode,
    without_any_server_the_cache_answers,
    no_role_asked_for_what_it_may_not,
)
