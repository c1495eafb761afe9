"""deploy/container: what can be seen of the images without building them, and the programs that are run in them."""

import fnmatch
import re
import ssl
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from medimage_server.cli import serve
from tests.paths import ROOT

CONTAINER = ROOT / "deploy" / "container"
DOCKERFILES = sorted(CONTAINER.glob("Dockerfile.*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(name, rest) for name, rest in re.findall(r"^([A-Z]+) (.*)$", text.replace("\\\n", " "), re.MULTILINE)]


def is_sent(path: str) -> bool:
    """Whether a file gets into a build, by .dockerignore; the last line that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parents = [path, *map(str, Path(path).parents)]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(parent, pattern) for parent in parents):
            sent = line.startswith("!")
    return sent


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_files_that_are_copied_are_there_and_sent(path):
    for name, rest in instructions(path):
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and (source == "." or is_sent(source)), source
    for program in re.findall(r"python (deploy/\S+)", path.read_text(encoding="utf-8")):
        assert (ROOT / program).is_file() and is_sent(program)


def test_builds_get_no_export_and_nothing_that_the_project_does_not_know():
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    of_wheel = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    needed = [path for path in known if path.startswith(("requirements/", *(f"{folder}/" for folder in of_wheel)))]
    assert needed and all(map(is_sent, needed))
    for exported in (
        "model_repository/image_encoder/1/model.onnx",
        "model_repository/image_encoder/1/model.onnx.data",
        "model_repository/image_encoder/1/model.plan",
        "model_repository/medimageinsight/1/manifest.json",
        "model_repository/cxrreportgen/1/embedding.npy",
        "deploy/secrets/keys",
        "deploy/kubernetes/base/keys",
        ".git/config",
        ".venv/bin/python",
        "data/patient.dcm",
    ):
        assert not is_sent(exported), exported


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_image_runs_as_nobody_of_the_host_with_options_that_exist(path):
    found = instructions(path)
    users = [rest for name, rest in found if name == "USER"]
    assert users[-1] == "10001:10001" and found[-1] == ("CMD", '["serve"]')
    set_in_image = {name for kind, rest in found if kind == "ENV" for name in re.findall(r"(MEDIMAGE_\w+)=", rest)}
    assert set_in_image == {"MEDIMAGE_REPOSITORY", "MEDIMAGE_SCORE_HOST", "MEDIMAGE_SCORE_PORT"}
    assert set_in_image <= {parameter.envvar for parameter in serve.params}
    assert [rest for name, rest in found if name == "EXPOSE"] == ["5001"]


class Answering(HTTPServer):
    """Answers every GET with `status`, and notes its path."""

    def __init__(self, status: int) -> None:
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.paths.append(self.path)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)


def health(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CONTAINER / "healthcheck.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


ASKED = {"endpoint": ("MEDIMAGE_SCORE_PORT", "/", False), "triton": ("MEDIMAGE_HTTP_PORT", "/v2/health/ready", False)}
ASKED["endpoint with TLS"] = ("MEDIMAGE_SCORE_PORT", "/", True)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_is_what_the_endpoint_or_triton_says(asked, status, code, tls_files):
    variable, path, tls = ASKED[asked]
    server = Answering(status)
    environment = {variable: str(server.server_port)}
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*tls_files)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        environment["MEDIMAGE_TLS_CERTIFICATE"] = str(tls_files[0])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        done = health(**environment)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (done.returncode, server.paths) == (code, [path]), done.stderr
    assert done.stderr.count("\n") == code  # one line, if any


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=elsewhere", "-days", "1", "-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_nothing_there_is_not_healthy():
    done = health(MEDIMAGE_SCORE_PORT="1")
    assert done.returncode == 1 and "http://127.0.0.1:1/" in done.stderr and "Traceback" not in done.stderr


def test_licences_of_what_is_installed_are_collected(tmp_path):
    information = tmp_path / "site" / "tool-1.0.dist-info"
    (information / "licenses").mkdir(parents=True)
    files = {"METADATA": "Name: tool\nVersion: 1.0\n", "licenses/LICENSE.txt": "all may", "NOTICE": "by many"}
    for name, text in files.items():
        (information / name).write_text(text)
    (information / "RECORD").write_text("".join(f"{information.name}/{name},,\n" for name in files))
    subprocess.run(
        [sys.executable, "-S", CONTAINER / "collect_licenses.py", tmp_path / "licences"],
        env={"PYTHONPATH": str(tmp_path / "site")},
        check=True,
    )
    collected = {path.name: path.read_text() for path in (tmp_path / "licences" / "tool").iterdir()}
    assert collected == {"licenses_LICENSE.txt": "all may", "NOTICE": "by many"}
