"""The page at / for everyone: keyboard, screen readers, dark and light, narrow screens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from web.visitor import Visitor, photograph, violations

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")


def test_axe_finds_nothing(page: Page, server: str, problems: list[str]) -> None:
    def check() -> None:
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == []

    visitor = Visitor(page, server)
    visitor.skip_others()
    visitor.open("mode=difference")
    check()
    visitor.choose(("cup.png", photograph(64, 64)))
    visitor.wait()
    page.check("#heat")
    page.wait_for_selector("#legend:visible")
    page.click("summary")
    check()
    visitor.choose(("cup.png", photograph(64, 64)), ("notes.png", b"no picture"))
    page.wait_for_selector('#status:has-text("All files are done")')
    check()
    visitor.choose(("notes.png", b"no picture"))
    page.wait_for_selector("#error:visible")
    check()
    problems.clear()  # the browser notes the refusals


def test_narrow_screens_do_not_scroll_sideways(page: Page, server: str) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    visitor = Visitor(page, server)
    visitor.skip_others()
    visitor.open()
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    visitor.choose(("cup.png", photograph()))
    visitor.wait()
    assert page.evaluate(width) == 360
    assert page.evaluate("document.querySelector('.panel').scrollWidth") == 360
    visitor.choose(*[(f"a long name of a file {i}.png", photograph(64, 64)) for i in range(2)])
    page.wait_for_selector('#status:has-text("All files are done")')
    assert page.evaluate(width) == 360


def test_everything_can_be_reached_by_keys(page: Page, server: str) -> None:
    visitor = Visitor(page, server)
    visitor.skip_others()
    visitor.open()
    visitor.choose(("cup.png", photograph(64, 64)))
    visitor.wait()
    page.keyboard.press("Tab")
    focused: list[str] = []
    for _ in range(40):
        name = page.evaluate("document.activeElement.id || document.activeElement.name")
        if name in focused[:1]:
            break
        focused.append(name)
        page.keyboard.press("Tab")
    expected = ["choose", "stage", "split", "mode", "heat", "zoom", "rate", "tune", "match"]
    places = [focused.index(name) for name in expected]
    assert places == sorted(places)
    assert {"a-original", "b-rankpress", "local", "save-stream", "save-picture"} <= set(focused)


def test_changes_are_announced(page: Page, server: str) -> None:
    visitor = Visitor(page, server)
    visitor.skip_others()
    visitor.open()
    visitor.choose(("cup.png", photograph(64, 64)))
    visitor.wait()
    assert page.get_attribute("#status", "aria-live") == "polite"
    label = page.get_attribute("#canvas", "aria-label")
    assert label == "Original on the left of the slider, Rankpress on the right"
    page.keyboard.press("d")
    label = page.get_attribute("#canvas", "aria-label")
    assert label == "Difference of Original and Rankpress"
