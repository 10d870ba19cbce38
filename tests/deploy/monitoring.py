"""The dashboard and the alerts on live metrics: a server and its worker under a little of all load.

Run alone, where Debian's `prometheus` is installed, it says what each expression returned:

    python tests/deploy/monitoring.py
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from PIL import Image

TESTS = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from served import serving  # noqa: E402

from deploy.arrangement import Program, answers, free_port  # noqa: E402

DOCKER = TESTS.parent / "docker"
DASHBOARD = DOCKER / "grafana" / "rankpress.json"
ALERTS = DOCKER / "prometheus" / "alerts.yml"

SCRAPE_S = 2
LOAD_S = 20.0
MAX_LOAD_S = 120.0
VARIABLES = {"$__rate_interval": "30s", "$job": ".*"}
"""What Grafana would put in, for metrics that are read so often."""


def dashboard_expressions() -> list[str]:
    """Every expression of the dashboard, with its variables put in."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression
            found.append(expression)
    return found


def alert_expressions() -> list[str]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def send_load(client: httpx.Client) -> None:
    """Requests of all kinds, good and bad, and three jobs, until one of these has succeeded."""
    rng = np.random.default_rng(0)
    begun_s = time.monotonic()
    for number in range(10**6):
        pixels = rng.integers(0, 256, (48, 64, 3), np.uint8) // 8 + 96
        pixels[:24] = 255 if number % 2 else pixels[:24]
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        data = file.getvalue()
        for query in ("rate=2", "rate=5.5", "rate=lossless", "target_bpp=1"):
            stream = client.post(f"/compress?{query}", content=data)
            assert stream.status_code == 200, stream.text
        assert client.post("/decompress?format=webp", content=stream.content).status_code == 200
        assert client.post("/compress", content=b"no picture").status_code == 415
        assert client.get("/nothing").status_code == 404
        if number < 3:
            job = client.post(f"/adapt?effort=1&priority={number + 1}", content=data)
            assert job.status_code == 202, job.text
        if number == 2:
            assert client.delete(job.headers["location"]).status_code == 200
        seconds = time.monotonic() - begun_s
        if seconds > LOAD_S and 'ended_total{state="succeeded"}' in client.get("/metrics").text:
            return
        assert seconds < MAX_LOAD_S, "no job succeeded"


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A client of a Prometheus that reads the metrics of one server."""
    program = shutil.which("prometheus")
    assert program is not None
    address = f"127.0.0.1:{free_port()}"
    scrape = {"job_name": "rankpress", "static_configs": [{"targets": [target]}]}
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "scrape_configs": [scrape],
        "rule_files": [str(ALERTS)],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [program, f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    server = Program("prometheus", command, folder, dict(os.environ))
    try:
        server.wait_for(lambda: answers(f"http://{address}/-/ready"))
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            yield client
    finally:
        server.stop()


def values_of(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """What an expression returns now; an error or a warning of Prometheus fails."""
    document = client.get("/api/v1/query", params={"query": expression}).json()
    assert document["status"] == "success", (expression, document)
    assert not document.get("warnings"), (expression, document["warnings"])
    return list(document["data"]["result"])


def check_live(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each expression returned under load; every one of the dashboard returned something."""
    settings = {
        "RANKPRESS_JOBS": "true",
        "RANKPRESS_STATE": str(folder / "state"),
        "RANKPRESS_JOB_STEP_S": "0.5",
        "RANKPRESS_JOB_MAX_S": "4",
        "RANKPRESS_THREADS": "1",
        "RANKPRESS_WARM": "false",
        "OMP_NUM_THREADS": "1",
    }
    with (
        serving(folder, **settings) as url,
        prometheus(url.removeprefix("http://"), folder) as client,
        httpx.Client(base_url=url, timeout=60) as server,
    ):
        send_load(server)
        last_s = time.monotonic() + MAX_LOAD_S
        while not values_of(client, 'rankpress_jobs_ended_total{state="succeeded"} > 0'):
            assert time.monotonic() < last_s, "Prometheus does not read the metrics"
            time.sleep(SCRAPE_S)
        results = {e: values_of(client, e) for e in dashboard_expressions()}
        for expression, result in results.items():
            assert result, f"nothing came of {expression}"
        for expression in alert_expressions():
            values_of(client, expression)
        rules = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
        assert len(rules) == len(alert_expressions())
        assert {rule["health"] for rule in rules} == {"ok"}, rules
    return results


def what_is_missing() -> str | None:
    """Why it cannot be tried here, None if it can."""
    return None if shutil.which("prometheus") else "prometheus is not installed (apt-get install)"


if __name__ == "__main__":
    reason = what_is_missing()
    if reason is not None:
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="rankpress-metrics-") as name:
        for expression, result in check_live(Path(name)).items():
            shown = ", ".join(
                f"{'/'.join(v for k, v in each['metric'].items() if k != 'job') or 'all'}"
                f"={float(each['value'][1]):.4g}"
                for each in result[:4]
            )
            print(f"{len(result):3} {expression}\n    {shown}", flush=True)  # noqa: T201
