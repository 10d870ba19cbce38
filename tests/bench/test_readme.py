"""Tables of README and pages agree with the results, and change only between their markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.bench import readme
from service.bench.readme import settings_table
from service.errors import BadParameter
from service.eval.report import ladder_table, table
from service.settings import Settings

TEXT = "before\n<!-- table:kodak -->\nold\n<!-- /table -->\nafter\n"


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_a_page_agrees_with_the_results(page: Path) -> None:
    text = page.read_text()
    assert text == readme.fill(text, readme.tables()), "run python -m service.bench.readme"


def test_every_table_is_shown_on_some_page() -> None:
    texts = "".join(page.read_text() for page in readme.pages())
    assert [name for name in readme.NAMES if f"<!-- table:{name} -->" not in texts] == []


def test_a_table_replaces_what_stands_between_its_markers_and_nothing_else() -> None:
    filled = readme.fill(TEXT, {"kodak": "| new |"})
    assert filled == ("before\n<!-- table:kodak -->\n\n| new |\n\n<!-- /table -->\nafter\n")
    assert readme.fill(filled, {"kodak": "| new |"}) == filled


def test_every_documented_table_exists_whatever_was_measured(tmp_path: Path) -> None:
    assert set(readme.tables()) == set(readme.NAMES)
    assert set(readme.tables(tmp_path)) == set(readme.NAMES)
    assert readme.tables(tmp_path)["ladder"] == readme.NOT_MEASURED


def test_the_ladder_has_eight_rows_and_says_how_many_images_were_compared() -> None:
    points = [
        {"setting": f"rate {rate}", "bpp": rate / 4, "psnr_db": 30.0 + rate, "ms_ssim": 0.97}
        for rate in range(1, 9)
    ]
    entry = {"codec": "rankpress", "setting": "rate 3", "images": 24}
    kodak = {
        "curves": [
            {"name": "rankpress-ms-ssim", "points": []},
            {"name": "rankpress", "points": points},
        ],
        "at_equal": {
            "psnr_db": [
                entry | {"peer": "avif-s6-420", "percent": -1.25, "compared": 24},
                entry | {"peer": "webp-m6", "percent": 2.0, "compared": 9},
            ],
        },
    }
    rows = ladder_table(kodak).splitlines()[2:]
    assert len(rows) == 8
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert cells == ["rate 3", "0.750", "33.00", "0.9700", "-1.2 %", "+2.0 % (9 images)", "-"]


def test_the_table_of_settings_names_every_variable() -> None:
    lines = settings_table().splitlines()[2:]
    assert [line.split("`")[1].removeprefix("RANKPRESS_").lower() for line in lines] == list(
        Settings.model_fields
    )
    assert "| `RANKPRESS_CHECK` | `true` |" in settings_table()


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("kodak", "nothing"),
        TEXT.replace("<!-- /table -->", ""),
        TEXT + "<!-- table:kodak -->\n",
        TEXT.replace("\nold", " old"),
    ],
)
def test_wrong_markers_are_refused(text: str) -> None:
    with pytest.raises(BadParameter):
        readme.fill(text, {"kodak": "| new |"})


def test_a_column_of_single_digits_is_still_a_table() -> None:
    """Markdown needs a dash beside the colon of every rule."""
    assert table(["what", "s"], [["one", "2"]]).splitlines()[1] == "| ---- | -: |"
