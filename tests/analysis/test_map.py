"""Maps: points against NumPy's own decomposition, colours, and the page in a real browser without a network."""

import json
from io import BytesIO

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.wait import WebDriverWait

from medimage_analysis.projection import project
from medimage_analysis.scatter import GREY, MOST_VALUES, NONE, OTHER, colours_of, draw_png
from medimage_client import InvalidInput
from medimage_client.cli.group import medimage
from tests.analysis.tables import make_table
from tests.browser import PAGE_S, chromium

SCRIPT = "<script>document.title = 'run'</script>"
# Of the first point of the first group: where it is in the window; null before it is drawn.
PLACE = """
    const view = window.Bokeh?.index?.roots?.[0];
    if (!view?.frame?.x_scale) return null;
    const renderer = view.model.renderers[0], data = renderer.data_source.data;
    const box = view.canvas_view.el.getBoundingClientRect(), frame = view.frame;
    return [box.left + frame.x_scale.compute(data.x[0]), box.top + frame.y_scale.compute(data.y[0])];
"""
SHOWN = """
    const found = [];
    const look = node => {
        if (node.tagName === "IMG" && node.src.startsWith("data:image/jpeg"))
            found.push([node.naturalWidth, node.naturalHeight, node.parentElement.innerText]);
        for (const child of node.children) look(child);
        if (node.shadowRoot) look(node.shadowRoot);
    };
    look(document.body);
    return found;
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command beside a table of six rows in two groups far from each other."""
    monkeypatch.chdir(tmp_path)
    kinds = ["chest", "chest", SCRIPT, "hand", "hand", None]
    make_table(
        tmp_path / "some", [0, 3, 6, 120, 123, 126], pictures=tmp_path / "pictures", kind=kinds, age=[3, 1, 4, 1, 5, 9]
    )
    return lambda *args: CliRunner().invoke(medimage, ["map", *map(str, args)])


def test_pca_is_the_projection_on_the_first_two_singular_vectors():
    vectors = np.random.default_rng(0).normal(size=(50, 30)) * np.linspace(3, 1, 30)
    points = project(vectors.astype(np.float32), "pca")
    centred = vectors - vectors.mean(axis=0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    expected *= np.sign((expected * points).sum(axis=0))  # a singular vector has no sign of its own
    np.testing.assert_allclose(points, expected, atol=1e-4)


@pytest.mark.soak  # compiles for half a minute
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")  # which Python hides by itself
def test_umap_keeps_groups_together_and_is_the_same_in_each_run():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 20)
    vectors = (5 * np.eye(64)[groups] + rng.normal(size=(60, 64))).astype(np.float32)
    points = project(vectors, "umap")
    assert np.array_equal(points, project(vectors, "umap"))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (groups[distances.argmin(axis=1)] == groups).mean() > 0.95


@pytest.mark.parametrize(
    ("vectors", "method", "message"),
    [
        (np.eye(2), "pca", "2 rows make no map; pca needs at least 3"),
        (np.eye(9), "umap", "9 rows make no map; umap needs at least 10"),
        (np.diag([1, 2, np.nan]), "pca", "row 2 has numbers that are not finite; embed it anew"),
    ],
)
def test_vectors_that_make_no_map_are_refused(vectors, method, message):
    with pytest.raises(InvalidInput) as refused:
        project(vectors, method)
    assert str(refused.value) == message


def test_frequent_values_have_colours_and_the_others_are_grey():
    values = [str(value) for value in range(40)]
    column = ["often"] * 3 + values + [None, "", float("nan")]
    colours = colours_of("kind", column)
    assert next(iter(colours.groups)) == "often"
    assert len(colours.groups) == MOST_VALUES + 2
    assert len({*colours.groups.values()}) == MOST_VALUES + 1
    assert colours.groups[OTHER] == colours.groups[NONE] == GREY
    assert colours.group_of[:4] == ["often"] * 3 + ["0"]
    assert colours.group_of[-4:] == [OTHER, NONE, NONE, NONE]
    assert colours.numbers is None


def test_many_numbers_have_a_scale_and_few_are_groups():
    assert colours_of("age", [1, 2, 2]).groups.keys() == {"1", "2"}
    many = colours_of("age", [*range(MOST_VALUES + 1), None])
    assert many.groups == {}
    assert many.numbers[:2].tolist() == [0, 1] and np.isnan(many.numbers[-1])


def test_points_are_drawn_in_the_colours_of_their_groups():
    points = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    colours = colours_of("kind", ["a", "a", "b", "b"])
    with Image.open(BytesIO(draw_png(points, colours))) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for group, below in (("a", True), ("b", False)):
        colour = [int(colours.groups[group][i : i + 2], 16) for i in (1, 3, 5)]
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        left = columns < pixels.shape[1] / 2  # the legend is on the right
        assert left.any() and ((rows[left] > pixels.shape[0] / 2) == below).all()


def test_equal_vectors_and_long_values_are_drawn_without_a_warning():
    points = project(np.ones((4, 8), np.float32), "pca")
    assert (points == 0).all()
    assert draw_png(points, colours_of("id", [f"{n}/{'folder/' * 60}" for n in range(4)]))


def test_scale_of_numbers_is_drawn_on_picture_and_page(run, tmp_path):
    vectors = {"age": [float(i) for i in range(MOST_VALUES + 1)] + [None]}
    make_table(tmp_path / "many", range(MOST_VALUES + 2), **vectors)
    result = run("many", "--color", "age", "--to", "a.png", "--to", "a.html")
    assert result.exit_code == 0
    assert result.stdout == "32 of 32 rows by pca: a.png, a.html\n"
    assert result.stderr == "32 of 32 images cannot be read where the table says\n"  # it names none
    assert "Viridis" in (tmp_path / "a.html").read_text() or "#440154" in (tmp_path / "a.html").read_text()


def test_sample_of_a_larger_table_is_drawn(run):
    assert run("some", "--color", "kind", "--to", "a.png", "--sample", 4).stdout == "4 of 6 rows by pca: a.png\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--color", "sex", "--to", "a.png"], "some: no column 'sex'; it has id, source, study_uid"),
        (["--color", "kind", "--to", "a.svg"], "a.svg is not one of .html, .png"),
        (["--color", "kind", "--to", "none/a.png"], "folder none does not exist"),
        (["--color", "kind"], "Missing option '--to'"),
        (["--color", "kind", "--to", "a.png", "--sample", "2"], "2 rows make no map; pca needs at least 3"),
        (["--color", "kind", "--to", "a.png", "--column", "kind"], "some: column 'kind' is of string"),
    ],
)
def test_bad_options_end_with_one_line(run, args, message):
    result = run("some", *args)
    assert result.exit_code in (1, 2)
    assert message in result.stderr.splitlines()[-1]


def test_page_shows_the_image_of_a_point_and_asks_for_nothing(run, tmp_path):
    assert run("some", "--color", "kind", "--to", "map.html").exit_code == 0
    with chromium() as browser:
        browser.get((tmp_path / "map.html").as_uri())
        wait = WebDriverWait(browser, PAGE_S)
        x, y = wait.until(lambda driver: driver.execute_script(PLACE))
        ActionChains(browser).move_by_offset(round(x), round(y)).perform()
        width, height, text = wait.until(lambda driver: driver.execute_script(SHOWN))[0]
        title = browser.title
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        complaints = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
    assert (width, height) == (8, 4)
    assert text.split() == ["chest", "0"]
    assert title == "some: 6 of 6 rows, pca"  # a script among the values is text
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert urls and {url.partition(":")[0] for url in urls} <= {"file", "data"}
    assert complaints == []
