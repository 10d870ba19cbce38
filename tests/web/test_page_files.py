"""The page at /: several files, jobs, and a service that refuses or is away."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import httpx
import pytest

from web.visitor import Visitor, photograph, violations

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

PHOTOGRAPHS = [(f"cup{i}.png", photograph(64 + 8 * i, 96)) for i in range(9)]


def test_ten_files_become_a_table_and_one_zip(
    page: Page, job_server: str, problems: list[str]
) -> None:
    visitor = Visitor(page, job_server)
    visitor.open("rate=3")
    visitor.choose(*PHOTOGRAPHS[:4], ("notes.png", b"no picture"), *PHOTOGRAPHS[4:])
    page.wait_for_selector('#status:has-text("All files are done")')
    assert "10 files, 9 compressed" in visitor.text("#batch caption")
    row = visitor.text('#batch tr:has-text("notes.png")')
    assert "This file is not a picture that the service can read." in row
    problems.clear()  # the browser notes the refusal
    streams = [
        httpx.post(f"{job_server}/compress?rate=3", content=data).content for _, data in PHOTOGRAPHS
    ]
    assert f"{sum(map(len, streams)):,}" in visitor.text("#batch tfoot")
    with zipfile.ZipFile(io.BytesIO(visitor.save("#save-zip"))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"cup{i}.rkp": stream for i, stream in enumerate(streams)
        }


def test_a_file_of_several_can_be_looked_at(page: Page, job_server: str) -> None:
    visitor = Visitor(page, job_server)
    visitor.skip_others()
    visitor.open()
    visitor.choose(*PHOTOGRAPHS[:2])
    page.wait_for_selector('#status:has-text("All files are done")')
    page.click('#batch button:has-text("cup1.png")')
    visitor.wait()
    assert visitor.row("original").bytes == len(PHOTOGRAPHS[1][1])
    page.click("#all-files")
    page.wait_for_selector('#status:has-text("All files are done")')
    assert page.locator("#batch tbody tr").count() == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again(
    page: Page, job_server: str, problems: list[str], status: int
) -> None:
    answers = iter([status])

    def refuse_once(route: Route) -> None:
        if next(answers, None) is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={})

    visitor = Visitor(page, job_server)
    visitor.skip_others()
    page.route("**/compress?*", refuse_once)
    visitor.open()
    visitor.choose(PHOTOGRAPHS[0])
    visitor.wait("The service is busy; it is asked again in 1 s")
    visitor.wait()
    problems.clear()


def test_refusals_are_told_and_can_be_tried_again(
    page: Page, job_server: str, problems: list[str]
) -> None:
    visitor = Visitor(page, job_server)
    visitor.skip_others()
    visitor.open("aim=max_bytes&max_bytes=10")
    visitor.choose(PHOTOGRAPHS[0])
    page.wait_for_selector("#error:visible")
    assert "No rate or quality meets the target" in visitor.text("#error")
    page.select_option("#aim", "rate")
    visitor.wait()
    assert not page.is_visible("#error")
    page.route("**/compress?*", lambda route: route.abort())
    page.click('input[value="ms-ssim"]')
    page.wait_for_selector('#error:has-text("The service does not answer")')
    page.unroute("**/compress?*")
    page.click("#again")
    visitor.wait()
    assert not page.is_visible("#error")
    problems.clear()


def test_a_picture_is_adapted_to_its_end(page: Page, job_server: str) -> None:
    visitor = Visitor(page, job_server)
    visitor.skip_others()
    visitor.shrink_example(photograph(96, 128))
    visitor.open("example=photograph&rate=2")
    visitor.wait()
    page.select_option("#effort", "0")
    page.click("#adapt-start")
    page.wait_for_selector('#job-state:has-text("The job is done")', timeout=120_000)
    visitor.wait()
    assert page.locator("svg.curve").count() == 2
    job = visitor.state()["job"]
    result = httpx.get(f"{job_server}/jobs/{job}/result").content
    assert visitor.stream() == result
    assert violations(page) == []
    assert visitor.row("rankpress").bytes == len(result)
    assert f"jobs/{job}/stream" in visitor.text('pre[aria-label="curl"]')
    page.reload()
    page.wait_for_selector('#job-state:has-text("The job is done")')
    visitor.wait()
    assert visitor.stream() == result


def test_a_job_can_be_cancelled(page: Page, job_server: str) -> None:
    visitor = Visitor(page, job_server)
    visitor.skip_others()
    visitor.open("rate=2&effort=4")
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    with page.expect_response("**/adapt?*") as posted:
        page.click("#adapt-start")
    page.wait_for_selector("#adapt-cancel:visible")
    page.click("#adapt-cancel")
    page.wait_for_selector('#job-state:has-text("cancelled")')
    job = httpx.get(f"{job_server}/jobs/{posted.value.json()['id']}").json()
    assert job["status"] == "cancelled"
    page.wait_for_selector("#adapt-start:visible")


def test_going_on_cancels_only_jobs_that_the_page_began(page: Page, job_server: str) -> None:
    """A program may have asked for the same job: it has the same id."""
    visitor = Visitor(page, job_server)
    visitor.skip_others()
    pictures = {"program": photograph(100, 90), "page": photograph(90, 100)}
    url = f"{job_server}/adapt?rate=2&effort=4"
    ids = {"program": httpx.post(url, content=pictures["program"]).json()["id"]}
    visitor.open("rate=2&effort=4")
    for name, picture in pictures.items():
        visitor.choose((f"{name}.png", picture))
        visitor.wait()
        with page.expect_response("**/adapt?*") as posted:
            page.click("#adapt-start")
        ids[name] = posted.value.json()["id"]
        page.wait_for_selector("#job-state:visible")
        page.check('input[name="tune"][value="ms-ssim"]')
        visitor.wait()
        page.check('input[name="tune"][value="psnr"]')
    states = {name: httpx.get(f"{job_server}/jobs/{job}").json() for name, job in ids.items()}
    assert states["program"]["id"] != states["page"]["id"]
    assert states["program"]["status"] in ("queued", "running")
    assert states["page"]["status"] == "cancelled"
    assert (states["program"]["priority"], states["page"]["priority"]) == (5, 9)
    httpx.delete(f"{job_server}/jobs/{ids['program']}")
