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


class CheckState:
    """The state that the checks share.

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


def each_rate_has_one_server(state: CheckState) -> None:
    # The small model has rate 4 alone: the others are refused, by the server of that rate.
    rates = [f"{rate:g}" for rate in np.arange(1, 8.25, 0.25)]
    for _ in range(2):
        for rate in rates:
            answer = state.client.post(f"/compress?rate={rate}", content=state.photo)
            assert answer.status_code == (200 if rate == "4" else 422), answer.text
    homes = [state.served_by(f"/compress?rate={rate}") for rate in rates]
    assert all(len(home) == 1 for home in homes)
    assert set().union(*homes) == set(state.at.servers)
    for _ in range(16):
        answer = state.client.post("/compress?rate=lossless", content=state.photo)
        assert answer.status_code == 200, answer.text
    assert state.served_by("/compress?rate=lossless") == set(state.at.servers)


def a_stream_of_one_server_is_adapted_by_a_worker(state: CheckState) -> None:
    state.stream = state.client.post("/compress?rate=4", content=state.photo).content
    posted = state.client.post("/adapt?rate=4&effort=1", content=state.photo)
    assert posted.status_code == 202, posted.text
    documents: list[dict[str, Any]] = []
    with state.client.stream("GET", f"{posted.headers['location']}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        for line in events.iter_lines():
            if line.startswith("data: "):
                documents.append(json.loads(line.removeprefix("data: ")))
    assert documents[-1]["status"] == "succeeded", documents[-1]
    result = state.client.get(f"{posted.headers['location']}/result")
    state.adapted = result.content
    assert len(state.adapted) == documents[-1]["bytes"]
    assert state.adapted != state.stream
    begun = [x for w in state.at.workers for x in w.lines() if x["event"] == "job begun"]
    # Twice, where one worker was so slow that another took the job over.
    assert {x["job"] for x in begun} == {documents[-1]["id"]}, (begun, documents[-1])


def both_workers_take_jobs(state: CheckState) -> None:
    posted = []
    for turn in range(1, 4):
        out = io.BytesIO()
        Image.fromarray(np.rot90(PIXELS, turn)).save(out, "PNG")
        posted.append(state.client.post("/adapt?rate=4&effort=0", content=out.getvalue()))
    for answer in posted:
        with state.client.stream("GET", f"{answer.headers['location']}/events") as events:
            last = [line for line in events.iter_lines() if line.startswith("data: ")][-1]
        assert json.loads(last.removeprefix("data: "))["status"] == "succeeded"
    for worker in state.at.workers:
        assert any(x["event"] == "job done" for x in worker.lines()), worker.name


def only_who_has_the_token_may_store(state: CheckState) -> None:
    refused = state.client.put("/objects", content=state.adapted)
    assert (refused.status_code, problem_of(refused)) == (403, "forbidden")
    wrong = state.client.put(
        "/objects", content=state.adapted, headers={"Authorization": "Bearer " + "0" * 32}
    )
    assert wrong.status_code == 403
    right = {"Authorization": f"Bearer {state.at.token}"}
    stored = state.client.put("/objects", content=state.adapted, headers=right)
    assert stored.status_code == 201, stored.text
    again = state.client.put("/objects", content=state.adapted, headers=right)
    assert again.status_code == 200
    state.digest = stored.json()["sha256"]


def accept_chooses_the_picture_and_the_cache_keeps_it(state: CheckState) -> None:
    for accept, name in FORMATS.items():
        first, second = state.picture(accept), state.picture(accept)
        assert (cache(first), cache(second)) == ("MISS", "HIT"), accept
        assert first.headers["content-type"] == accept
        assert Image.open(io.BytesIO(first.content)).format == name
        assert first.content == second.content
        assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert first.headers["vary"] == "Accept"
    assert state.served_by(f"/objects/{state.digest}") == {state.at.decoder_at}
    exact = pixels_of(state.picture("image/png"))
    assert exact.shape == PIXELS.shape
    posted = state.client.post("/decompress?format=png", content=state.adapted)
    assert np.array_equal(exact, pixels_of(posted))
    for accept in ("image/avif", "image/webp", "image/jpeg"):
        difference = np.square(exact - pixels_of(state.picture(accept))).mean()
        assert 0 < difference < 200, (accept, difference)


def headers_that_mean_the_same_share_an_entry(state: CheckState) -> None:
    same = {
        "image/avif": (CHROME, "image/avif;q=0.9, image/webp;q=.5, text/html, */*;q=0.1"),
        "image/webp": (f"{NO_AVIF}, image/*", "text/html, image/webp, image/png;q=0.000, */*"),
        "image/jpeg": ("*/*", "image/*", "", "text/html,*/*;q=0.8"),
        "image/png": (SAFARI_13, "image/png,*/*"),
    }
    for media_type, headers in same.items():
        for accept in headers:
            answer = state.picture(accept)
            assert answer.headers["content-type"] == media_type, accept
            assert cache(answer) == ("MISS" if accept == headers[0] else "HIT"), accept
    named = state.picture("image/avif", "?format=jpeg&max_size=50")
    assert (cache(named), named.headers["content-type"]) == ("MISS", "image/jpeg")
    assert max(Image.open(io.BytesIO(named.content)).size) == 50
    assert cache(state.picture("image/webp", "?format=jpeg&max_size=50")) == "HIT"
    none = state.picture("text/html")
    assert (none.status_code, problem_of(none)) == (406, "not-acceptable")


def the_cache_answers_conditions_and_ranges(state: CheckState) -> None:
    whole = state.picture("image/avif")
    known = state.picture("image/avif", **{"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content, cache(known)) == (304, b"", "HIT")
    other = state.picture("image/webp", **{"If-None-Match": whole.headers["etag"]})
    assert other.status_code == 200
    part = state.picture("image/avif", Range="bytes=10-29")
    assert (part.status_code, cache(part)) == (206, "HIT")
    assert part.content == whole.content[10:30]
    assert part.headers["x-request-id"] != whole.headers["x-request-id"]


def many_clients_at_once_are_all_answered(state: CheckState) -> None:
    """Under load, a picture is made once, however many clients request it at the same time."""
    requests = [(a, f"?max_size={size}") for a in FORMATS for size in (24, 32, 48)]

    def client(n: int) -> list[tuple[int, str]]:
        results = []
        for i in range(n, n + 60):
            if i % 20 == 0:
                answer = state.client.post("/compress?rate=4", content=state.photo)
                assert answer.content == state.stream
            else:
                answer = state.picture(*requests[i // 2 % len(requests)])
            results.append((answer.status_code, cache(answer)))
        return results

    with ThreadPoolExecutor(8) as clients:
        results = [one for each in clients.map(client, range(8)) for one in each]
    assert {status for status, _ in results} == {200}
    counts = Counter(status for _, status in results)
    assert counts == {"MISS": 12, "HIT": 444, "None": 24}, counts


def errors_are_worded_as_the_service_does(state: CheckState) -> None:
    nothing = state.client.get(f"/objects/{'0' * 64}")
    assert (nothing.status_code, problem_of(nothing)) == (404, "no-such-object")
    for path in ("/metrics", "/adapters"):
        hidden = state.client.get(path)
        assert (hidden.status_code, problem_of(hidden)) == (404, "not-found")
    address = state.client.base_url
    with closing(http.client.HTTPConnection(address.host, address.port)) as connection:
        connection.putrequest("POST", "/compress?rate=4")
        connection.putheader("Content-Length", str((64 << 20) + 1))
        connection.endheaders()
        large = connection.getresponse()
        assert (large.status, large.headers["content-type"]) == (413, "application/problem+json")
        assert json.load(large)["type"] == "urn:rankpress:problem:too-many-bytes"


def a_dead_server_is_not_missed(state: CheckState) -> None:
    (home,) = state.served_by("/compress?rate=4")
    state.at.servers[home].kill()
    (left,) = set(state.at.servers) - {home}
    for _ in range(4):
        answer = state.client.post("/compress?rate=4&metadata=none", content=state.photo)
        assert answer.status_code == 200, answer.text
    assert state.served_by("/compress?rate=4&metadata=none") == {left}
    assert state.client.get("/rates").status_code == 200
    assert state.client.get("/readyz").status_code == 200


def without_the_decoder_servers_decode(state: CheckState) -> None:
    state.at.decoder.kill()
    assert cache(state.picture(CHROME)) == "HIT"
    fresh = state.picture(CHROME, "?max_size=40")
    assert (fresh.status_code, cache(fresh)) == (200, "MISS")


def without_any_server_the_cache_answers(state: CheckState) -> None:
    for server in state.at.servers.values():
        server.kill()
    assert cache(state.picture(CHROME)) == "HIT"
    gone = state.client.post("/compress?rate=4", content=state.photo)
    assert (gone.status_code, problem_of(gone)) == (503, "saturated")
    assert int(gone.headers["retry-after"]) > 0


def no_role_asked_for_what_it_may_not(state: CheckState) -> None:
    answers = re.findall(r'HTTP/1\.1\S*" (\d+) -', state.at.s3.log.read_text())
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
