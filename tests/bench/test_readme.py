"""README tables agree with the committed results, and are replaced only between their markers."""

from __future__ import annotations

import pytest

from service.bench import readme
from service.errors import BadParameter
from service.eval.tables import table

TEXT = "before\n<!-- table:kodak -->\nold\n<!-- /table -->\nafter\n"


def test_the_readme_agrees_with_the_results() -> None:
    if not readme.README.is_file():
        pytest.skip("there is no README yet")
    text = readme.README.read_text()
    assert text == readme.filled(text, readme.tables()), "run python -m service.bench.readme"


def test_a_table_replaces_what_stands_between_its_markers_and_nothing_else() -> None:
    filled = readme.filled(TEXT, {"kodak": "| new |"})
    assert filled == ("before\n<!-- table:kodak -->\n\n| new |\n\n<!-- /table -->\nafter\n")
    assert readme.filled(filled, {"kodak": "| new |"}) == filled


def test_every_documented_table_can_be_asked_for_whatever_was_measured() -> None:
    assert set(readme.tables()) == set(readme.NAMES)
    assert all(name in (readme.__doc__ or "") for name in readme.NAMES)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("kodak", "nothing"),
        TEXT.replace("<!-- /table -->", ""),
        TEXT + "<!-- table:kodak -->\n",
        TEXT.replace("\nold", " old"),
    ],
)
def test_markers_that_are_wrong_are_refused(text: str) -> None:
    with pytest.raises(BadParameter):
        readme.filled(text, {"kodak": "| new |"})


def test_a_column_of_single_digits_is_still_a_table() -> None:
    """Markdown wants a dash in every rule."""
    assert table(["what", "s"], [["one", "2"]]).splitlines()[1] == "| ---- | -: |"
