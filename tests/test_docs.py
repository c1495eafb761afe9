"""README.md and the pages of docs/: what can be checked of them without a server."""

import pkgutil
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click import Context

import medimage_client
from medimage_client.cli.group import medimage
from tests.examples import CODE, NOT_RUN, RUN, blocks_of
from tests.paths import ROOT

PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FUNCTION = re.compile(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`")  # or a class, as `module.Class.method`
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 200


def test_every_example_is_run_or_has_a_reason_not_to_be():
    found = Counter((page, block.heading) for page in PAGES for block in blocks_of(page) if block.language in CODE)
    assert not RUN.keys() & NOT_RUN.keys()
    assert {place: count for place, count in found.items() if place not in NOT_RUN} == RUN
    assert NOT_RUN.keys() <= found.keys()


def test_readme_shows_lines_that_the_whole_output_of_the_demo_has():
    (excerpt,) = [block.text for block in blocks_of("README.md") if block.language == "text"]
    (whole,) = [block.text for block in blocks_of("docs/quickstart.md") if block.language == "text"]
    lines = iter(whole.splitlines())
    assert all(line in lines for line in excerpt.splitlines())  # in this order


def test_quick_start_exports_as_readme_does():
    """So that running README's commands is running these."""
    (readme,) = [b.text for b in blocks_of("README.md") if b.heading == "## Your own checkpoint"]
    commands, _ = [b.text for b in blocks_of("docs/quickstart.md") if b.heading == "## Serve the phantom checkpoints"]
    phantoms = readme.replace("/data/medimageinsight", "checkpoints/medimageinsight-phantom")
    phantoms = phantoms.replace("/data/maira-2", "checkpoints/cxrreportgen-phantom")
    assert commands == f"source .venv/bin/activate\n{phantoms}"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_to_files_and_headings(page):
    for link in LINK.findall(text_of(page)):
        path, _, anchor = link.partition("#")
        if "://" in link or path.startswith("mailto:"):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_ways_of_an_image_and_of_a_report_name_functions_that_exist():
    rooms = ("", "medimage_client.", "medimage_server.endpoint.", "medimage_server.")
    names = [name for name in FUNCTION.findall(text_of("docs/architecture.md")) if not name.endswith(".py")]
    assert len(names) > 40
    assert [name for name in names if not any(exists(room + name) for room in rooms)] == []


def exists(name: str) -> bool:
    try:
        return pkgutil.resolve_name(name) is not None
    except (AttributeError, ImportError):
        return False


def test_api_reference_has_every_public_name():
    documented = re.findall(r"^\.\. auto(?:class|exception|function):: (\w+)$", text_of("docs/api.md"), re.MULTILINE)
    assert sorted(documented) == medimage_client.__all__


class Fetched(HTMLParser):
    """What a browser fetches to show a page; links that a reader follows are not among it."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value for name, value in attrs if name == FETCHED.get(tag) and value]


def test_site_fetches_nothing_from_elsewhere_and_has_every_command():
    """Of the site as `make docs` has built it, which fails at any warning."""
    site = ROOT / "build/docs"
    pages = list(site.glob("*.html"))
    if not pages:
        pytest.skip("there is no site in build/docs; `make docs` builds it")
    assert {path.stem for path in pages} >= {Path(page).stem for page in PAGES if page != "README.md"}
    for page in pages:
        fetched = Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        assert fetched.urls and not [url for url in fetched.urls if "//" in url], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name
    reference = (site / "cli.html").read_text(encoding="utf-8")
    commands = [*medimage.list_commands(Context(medimage)), "export-medimageinsight", "export-cxrreportgen"]
    assert [command for command in commands if f'id="medimage-{command}"' not in reference] == []
