"""/docs: what it is made of, and the page in a real browser."""

import asyncio
import hashlib
import json
import re
from dataclasses import replace
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from medimage_server.endpoint import body
from medimage_server.endpoint.keys import digest
from medimage_server.endpoint.worker_pool import bound, endpoint_services
from medimage_server.supervisor import running as running_services
from tests.browser import PAGE_S, chromium
from tests.paths import ROOT
from tests.server.endpoint.asgi import DOCUMENT, SETTINGS, running

FOLDER = ROOT / "server/medimage_server/endpoint/swagger_ui"
KEY = "key-of-the-endpoint"
SHOWN_ROUTES = """
    return Array.from(document.querySelectorAll(".opblock-summary"), route => [
        route.querySelector(".opblock-summary-method").innerText,
        route.querySelector(".opblock-summary-path").innerText.replaceAll("\u200b", ""),  // where a line may break
    ]);
"""


def test_renderer_is_the_package_that_is_said_with_its_licence():
    said, *lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    (version,) = re.findall(r"^SWAGGER_UI_VERSION := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert said == f"# swagger-ui-dist {version} of npm; written by `make swagger-ui`"
    sums = {name: sha256 for sha256, name in (line.split("  ") for line in lines)}
    assert {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in sums} == sums
    assert {path.name for path in FOLDER.iterdir()} == {*sums, "SHA256SUMS", "page.html", "start.js"}
    assert "Apache License" in (FOLDER / "LICENSE").read_text()
    assert version in (FOLDER / "swagger-ui-bundle.js").read_text()


def test_wheel_has_the_files_and_their_licences(tmp_path):
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    endpoint = "medimage_server/endpoint"
    assert {f"{endpoint}/openapi.yaml", *(f"{endpoint}/swagger_ui/{path.name}" for path in FOLDER.iterdir())} <= names
    licences = {name.partition("/swagger_ui/")[2] for name in names if ".dist-info/licenses/server" in name}
    assert licences == {"LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"}


@pytest.fixture
async def caller(monkeypatch):
    async with running(monkeypatch) as caller:
        yield caller


async def test_page_may_load_scripts_and_styles_of_this_server_alone(caller):
    page = await caller.ask("GET", "/docs", headers={})
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["cache-control"] == "no-store"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.body.decode())
    assert sorted(addresses) == [
        "data:,", "docs/start.js", "docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "openapi.yaml"
    ]  # fmt: skip
    assert "<script>" not in page.body.decode()


@pytest.mark.parametrize(
    "name, kind",
    [("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css"), ("start.js", "text/javascript")],
)
async def test_files_of_the_page_are_cached(caller, name, kind):
    answer = await caller.ask("GET", f"/docs/{name}", headers={})
    assert (answer.status, answer.body) == (200, (FOLDER / name).read_bytes())
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=86400"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await caller.ask("POST", f"/docs/{name}")).status == 405


async def test_file_is_sent_in_parts_to_those_who_read_them(caller, monkeypatch):
    monkeypatch.setattr(body, "GRACE_S", 0.05)
    monkeypatch.setattr(body, "MIN_BYTES_S", 2**20)  # a part in 1/16 s
    seconds, sizes = 0.0, []

    async def on_part(part):
        sizes.append(len(part))
        await asyncio.sleep(seconds)

    whole = await caller.ask("GET", "/docs/swagger-ui.css", headers={}, on_part=on_part)
    assert sizes == [65_536, 65_536, len(whole.body) - 2 * 65_536]
    seconds = 0.5
    given_up = await caller.ask("GET", "/docs/swagger-ui.css", headers={}, on_part=on_part)
    assert len(given_up.body) < len(whole.body)
    assert caller.log.entries[-1].reason == "the client reads the answer too slowly"


async def test_head_tells_of_a_file_without_sending_it(caller):
    answer = await caller.ask("HEAD", "/docs/start.js", headers={})
    assert (answer.status, answer.headers["content-length"]) == (200, str((FOLDER / "start.js").stat().st_size))


@pytest.mark.parametrize(
    "path",
    [
        "/docs/", "/docs/page.html", "/docs/SHA256SUMS", "/docs/LICENSE", "/docs/start.js/", "/docs//start.js",
        "/docs/../openapi.yaml", "/docs/%2e%2e/openapi.yaml", "/docs/..%2fopenapi.py", "/docs/start%2ejs",
        "/docs/start.js%0a", "/docs/start.js%00", "/docs/..\\app.py", "/docs/%5c..%5capp.py",
    ],
)  # fmt: skip
async def test_no_other_file_is_there(caller, path):
    answer = await caller.ask("GET", path, headers={})
    assert (answer.status, answer.json["status"]) == (404, 404)


# In a browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a worker that asks for a key."""
    folder = tmp_path_factory.mktemp("worker")
    settings = replace(SETTINGS, tritons=("grpc://127.0.0.1:1",), key_digests=(digest(KEY),))
    with (
        bound("127.0.0.1", 0) as listener,
        running_services(endpoint_services(settings, listener, folder)),
    ):
        host, port = listener.getsockname()
        yield f"{host}:{port}"


@pytest.fixture
def wait(browser, address):
    browser.get(f"http://{address}/docs")
    wait = WebDriverWait(browser, PAGE_S)
    wait.until(lambda browser: browser.find_elements(By.CSS_SELECTOR, ".opblock"))
    return wait


def open_route(browser, wait, operation_id, css):
    """Open one route, and return what it then shows."""
    route = browser.find_element(By.CSS_SELECTOR, f"[id$='-{operation_id}']")
    if "is-open" not in route.get_attribute("class"):
        route.find_element(By.CSS_SELECTOR, ".opblock-summary-control").click()
    wait.until(lambda browser: route.find_elements(By.CSS_SELECTOR, css))
    return route.find_element(By.CSS_SELECTOR, css)


def logged(browser):
    """What the console has, and the address of every request."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [entry["message"] for entry in browser.get_log("browser")], sent


def test_page_shows_every_route_and_the_example_of_a_request(browser, wait, address):
    shown = browser.execute_script(SHOWN_ROUTES)
    assert {(method.lower(), path) for method, path in shown} == {
        (method, path) for path, item in DOCUMENT["paths"].items() for method in item.keys() - {"parameters"}
    }
    example = open_route(browser, wait, "score", ".body-param__example")
    assert json.loads(example.text) == DOCUMENT["components"]["examples"]["image-and-text"]["value"]
    answers = browser.find_element(By.CSS_SELECTOR, "[id$='-score'] .responses-table").text
    assert all(status in answers for status in DOCUMENT["paths"]["/score"]["post"]["responses"])
    console, sent = logged(browser)
    assert console == []
    assert {url.partition("?")[0] for url in sent if not url.startswith("data:")} == {
        f"http://{address}{path}"
        for path in ("/docs", "/docs/start.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/openapi.json")
    }


def test_page_sends_a_request_with_the_key(browser, wait, address):
    browser.find_element(By.CSS_SELECTOR, ".btn.authorize").click()
    wait.until(lambda browser: browser.find_elements(By.CSS_SELECTOR, ".auth-container input"))
    browser.find_element(By.CSS_SELECTOR, ".auth-container input").send_keys(KEY)
    browser.find_element(By.CSS_SELECTOR, ".auth-btn-wrapper .authorize").click()
    browser.find_element(By.CSS_SELECTOR, ".auth-btn-wrapper .btn-done").click()
    open_route(browser, wait, "status", ".try-out__btn").click()
    open_route(browser, wait, "status", ".execute").click()
    answer = open_route(browser, wait, "status", ".live-responses-table .response-col_description pre")
    assert json.loads(answer.text)["deployments"].keys() == {"medimageinsight", "cxrreportgen"}
    console, sent = logged(browser)
    assert console == []
    assert f"http://{address}/status" in sent
