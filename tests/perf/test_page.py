"""The tables of README.md and docs/performance.md are those of perf/results."""

import pytest
from click import ClickException
from click.testing import CliRunner

from perf import page


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_page_agrees_with_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert page.TABLE.search(text)
    assert page.filled(text) == text, "run `python -m perf page`"


def test_no_table_stands_on_the_pages_twice():
    shown = page.shown()
    assert len(shown) == len(set(shown))


def test_every_result_is_shown():
    assert {file for _, file in page.shown()} == {path.name for path in page.RESULTS.iterdir()}


def test_unknown_table_is_refused():
    with pytest.raises(ClickException, match="there is no table 'nothing'; expected one of speed, "):
        page.filled("<!-- table: nothing socket_hop.json -->\n<!-- end of table -->\n")


def test_result_of_a_stopped_measurement_is_refused(tmp_path, monkeypatch):
    (tmp_path / "socket_hop.json").write_text('{"rounds": 300}')
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    with pytest.raises(ClickException, match=r"socket_hop\.json has no 'requests' for socket_hop"):
        page.filled("<!-- table: socket_hop socket_hop.json -->\n<!-- end of table -->\n")


def test_result_that_does_not_exist_is_refused():
    with pytest.raises(ClickException, match=r"^the table socket_hop is of other\.json, which perf/results"):
        page.filled("<!-- table: socket_hop other.json -->\n<!-- end of table -->\n")


@pytest.fixture
def outdated(tmp_path, monkeypatch):
    """A page that shows another number than the results, in place of the real ones."""
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- table: socket_hop socket_hop.json -->\n\n| 1 ms |\n\n<!-- end of table -->\nafter\n")
    monkeypatch.setattr(page, "PAGES", (path,))
    monkeypatch.setattr(page, "ROOT", tmp_path)
    return path


def test_check_fails_for_a_page_that_differs_and_changes_nothing(outdated):
    before = outdated.read_text()
    done = CliRunner().invoke(page.page, ["--check"])
    assert done.exit_code == 1
    assert done.output == "Error: page.md differs from perf/results; run `python -m perf page`\n"
    assert outdated.read_text() == before


def test_page_is_written_between_its_marks(outdated):
    assert CliRunner().invoke(page.page, []).exit_code == 0
    text = outdated.read_text()
    assert text.startswith("before\n<!-- table: socket_hop socket_hop.json -->\n\n")
    assert text.endswith("\n\n<!-- end of table -->\nafter\n")
    assert "| text, cached " in text and "1 ms" not in text
    assert CliRunner().invoke(page.page, ["--check"]).exit_code == 0
