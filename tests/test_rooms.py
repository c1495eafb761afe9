"""Imports go one way between the rooms, so that each can be installed and read without the ones behind it."""

import ast
import re
from pathlib import Path

import pytest

from tests.paths import ROOT

ROOMS = {
    *("medimage_analysis", "medimage_client", "medimage_export"),
    *("medimage_install", "medimage_server", "medimage_training"),
}
AROUND = {"checkpoints", "examples", "perf", "tests"}  # they use the rooms, and no room uses them
ALLOWED = {
    "analysis": {"medimage_analysis", "medimage_client", "medimage_server", "medimage_training"},
    "client": {"medimage_client"},
    "export": {"medimage_export", "medimage_install"},
    "install": ROOMS,
    "server": {"medimage_server", "medimage_client", "medimage_install"},
    "training": {"medimage_training", "medimage_client", "medimage_export", "medimage_server"},
    "model_repository": {"medimage_server"},
}
CLIENT = ROOT / "client" / "medimage_client"
CLIENT_ORDER = (
    "images",
    "schema",
    "wire",
    "archive",
    "reports",
    "labels",
    "cli",
)  # packages of the client; each may import those before it

# What the server takes of the client, and why. A module that is not here is the client's own business.
MODELS_OF_TRITON = {
    "constants": "limits and sizes that both sides hold to",
    "images.base64_text": "an image may come as base64, decoded alike here and there",
    "images.resize": "resize='client' is this very step",
    "images.windowing": "grey of more than 8 bits, shown alike here and there",
    "reports.grammar": "what a report's text means",
    "schema.reports": "the inputs of a report",
}
ENDPOINT = {
    "": "the public clients, which look whether a Triton is ready before the endpoint starts",
    "errors": "what a Triton fails with",
    "schema.table": "Azure's JSON",
    "schema.embeddings": "requests and answers of MedImageInsight",
    "schema.heads": "requests and answers of heads",
    "schema.reports": "requests and answers of CXRReportGen",
    "images.dicom": "DICOM is refused, which the client would decode without any bound",
    "embeddings": "how the models of MedImageInsight are asked",
    "heads": "how heads are asked",
    "images.encoding": "what an image is sent as",
    "reports.requests": "how the models of CXRReportGen are asked",
    "wire.connection": "the bounds that hold over the calls of a request",
    "wire.transport": "what a transport is: the endpoint has one over several Tritons",
    "wire.triton": "the transport to one of them",
    "wire.triton_workarounds": "what is done about Triton's faults, if a Triton has them",
}


def imported_packages(folder: Path) -> set[str]:
    found = set()
    for path in [folder] if folder.is_file() else folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_the_rooms_it_may(room):
    imported = imported_packages(ROOT / room)
    assert imported, f"{room} has no imports: is the folder still there?"
    assert imported & (ROOMS | AROUND) <= ALLOWED[room]


def modules_of_the_client(folder: Path) -> set[str]:
    """Those that are imported, without the client's own name."""
    found = set()
    for path in [folder] if folder.is_file() else folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                whole = [alias.name for alias in node.names if alias.name.split(".")[0] == "medimage_client"]
                found |= {name.removeprefix("medimage_client").removeprefix(".") for name in whole}
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "medimage_client":
                module = node.module.removeprefix("medimage_client").removeprefix(".")
                within = CLIENT.joinpath(*module.split("."))
                names = [alias.name for alias in node.names]
                modules = [name for name in names if (within / f"{name}.py").is_file()]  # `from package import module`
                found |= {f"{module}.{name}".removeprefix(".") for name in modules}
                found |= {module} if len(modules) < len(names) else set()
    return found


def test_server_imports_of_the_client_exactly_what_is_listed():
    server = ROOT / "server" / "medimage_server"
    endpoint = modules_of_the_client(server / "endpoint")
    rest = [path for path in server.rglob("*.py") if server / "endpoint" not in path.parents]
    assert endpoint == set(ENDPOINT)
    assert set().union(*map(modules_of_the_client, rest)) == set(MODELS_OF_TRITON)


def test_rooms_take_of_the_installation_only_where_things_lie():
    """All else there builds on the rooms."""
    for room in ("analysis", "client", "export", "server"):
        for path in (ROOT / room).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert {line for line in lines if "medimage_install" in line and "import" in line} == {
                line for line in lines if line.startswith("from medimage_install.places import ")
            }, path


def test_one_module_of_the_analysis_imports_the_server():
    """The model in the run's own process; all else of the analysis knows a server by its address."""
    modules = (ROOT / "analysis" / "medimage_analysis").rglob("*.py")
    assert [path.name for path in modules if "medimage_server" in imported_packages(path)] == ["in_process.py"]


def test_training_imports_of_the_server_how_images_and_texts_are_prepared():
    modules = (ROOT / "training" / "medimage_training").rglob("*.py")
    named = {
        node.module
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("medimage_server")
    }
    assert named == {f"medimage_server.{name}" for name in ("errors", "image_preprocessing", "text_tokenizer")}


def test_one_module_of_the_analysis_imports_the_training_and_none_pytorch():
    """So that all else of it, and each head that is there, runs without PyTorch."""
    modules = [*(ROOT / "analysis" / "medimage_analysis").rglob("*.py")]
    assert [path.name for path in modules if "medimage_training" in imported_packages(path)] == ["fitting.py"]
    assert [path.name for path in modules if "torch" in imported_packages(path)] == []


@pytest.mark.parametrize("package", CLIENT_ORDER)
def test_packages_of_the_client_import_one_way(package):
    packages = {module.split(".")[0] for module in modules_of_the_client(CLIENT / package)} & set(CLIENT_ORDER)
    assert packages <= set(CLIENT_ORDER[: CLIENT_ORDER.index(package) + 1])


def test_faults_of_a_version_of_triton_are_in_the_two_rooms_for_them():
    rooms = [*ROOT.glob("*/*/wire/triton_workarounds.py"), *ROOT.glob("*/*/triton_workarounds.py")]
    assert [room.relative_to(ROOT).parts[0] for room in rooms] == ["client", "server"]
    files = [path for room in ("client", "server", "model_repository") for path in (ROOT / room).rglob("*.*")]
    texts = [path for path in files if path.suffix in (".py", ".pbtxt")]
    assert {path for path in texts if "2.51" in path.read_text(encoding="utf-8")} == set(rooms)
    named = [
        name for room in rooms for name in re.findall(r"(?:tests|perf)/[\w/]+\.\w+", room.read_text(encoding="utf-8"))
    ]
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_server_room_imports_nothing_of_triton():
    assert "triton_python_backend_utils" not in imported_packages(ROOT / "server" / "medimage_server")


def test_adapters_stay_thin():
    adapters = [*ROOT.glob("model_repository/*/1/model.py"), *ROOT.glob("server/backends/*/model.py")]
    assert len(adapters) == 6
    assert {path.parent.parent.name: len(path.read_text().splitlines()) for path in adapters if long(path)} == {}


def long(path: Path) -> bool:
    return len(path.read_text().splitlines()) > 80
