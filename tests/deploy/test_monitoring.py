"""What the dashboard and the alerts ask for is what a server has; and what the pages document."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs.conftest import MakePlace, _numbers, make_place  # noqa: F401  (fixtures)
from jobs.machines import png
from jobs.test_http import served
from prometheus_client.parser import text_string_to_metric_families

from deploy.monitoring import (
    ALERTS,
    alert_expressions,
    check_live,
    dashboard_expressions,
    what_is_missing,
)

PAGE = Path(__file__).parent.parent.parent / "service" / "docs" / "operations.md"
CASES = Path(__file__).parent / "alerts-test.yml"
NAME = re.compile(r"\b(?:rankpress|process)_\w+")
OF_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus adds to everything it reads."""


@pytest.fixture
def text(make_place: MakePlace) -> Iterator[str]:  # noqa: F811
    """The metrics of a server that has done a little of everything."""
    with served(make_place(port=0, drain_s=2.0)) as client:
        client.post("/compress", content=png())
        client.post("/compress", content=b"no picture")
        path = client.post("/adapt?effort=1", content=png()).headers["location"]
        client.delete(path)
        yield client.get("/metrics").text


def labels_of(text: str) -> dict[str, set[str]]:
    """The labels of every series, by the series' name."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("make_place", ["sqlite"], indirect=True)
def test_every_metric_and_label_that_is_asked_for_exists_and_every_metric_is_documented(
    text: str,
) -> None:
    labels = labels_of(text)
    for expression in dashboard_expressions() + alert_expressions():
        names = set(NAME.findall(expression))
        assert names and names <= labels.keys(), expression
        asked = set(re.findall(r"(\w+)=~?\"", expression))
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            asked |= {label.strip() for label in group.split(",")}
        assert asked <= set().union(OF_PROMETHEUS, *(labels[n] for n in names)), expression
    families = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if family.name.startswith("rankpress_") and not family.name.endswith("_created")
    }
    documented = set(re.findall(r"`(rankpress_\w+)`", PAGE.read_text()))
    assert documented == families


@pytest.mark.platform
def test_each_alert_is_raised_by_what_it_is_for() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    command = [promtool, "test", "rules", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = re.findall(r"alertname: (\w+)", CASES.read_text())
    assert set(tested) == set(re.findall(r"alert: (\w+)", ALERTS.read_text()))


@pytest.mark.platform
@pytest.mark.timeout(300)
def test_every_expression_of_the_dashboard_returns_something_under_load(tmp_path: Path) -> None:
    if "1" not in {os.environ.get(f"RANKPRESS_{name}") for name in ("ARRANGEMENT", "FULL")}:
        pytest.skip("runs with RANKPRESS_ARRANGEMENT=1 or RANKPRESS_FULL=1")
    reason = what_is_missing()
    if reason is not None:
        pytest.skip(reason)
    check_live(tmp_path)
