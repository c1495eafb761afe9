"""Imports go one way between the rooms, so that each can be installed and read without the ones behind it."""

import ast
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

ROOMS = {"medimage_client", "medimage_export", "medimage_server"}
ALLOWED = {
    "client": {"medimage_client"},
    "export": {"medimage_export"},
    "server": {"medimage_server", "medimage_client"},
    "model_repository": {"medimage_server"},
}
CLIENT = ROOT / "client" / "medimage_client"
# grpc and aiohttp come with tritonclient[grpc,http]
CLIENT_BASE = {"medimage_client", "jiter", "numpy", "PIL", "pybase64", "tritonclient", "grpc", "aiohttp"}
CLIENT_EXTRAS = {  # package -> where it may stand
    "click": "cli/",
    "pydicom": "images/dicom.py",
    "pyarrow": "cli/embed.py",
    "rouge_score": "reports/evaluation.py",
    "sacrebleu": "reports/evaluation.py",
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
    assert imported & ROOMS <= ALLOWED[room]


def test_client_without_extras_needs_only_its_base_dependencies():
    for path in CLIENT.rglob("*.py"):
        place = path.relative_to(CLIENT).as_posix()
        third_party = imported_packages(path) - set(sys.stdlib_module_names) - CLIENT_BASE
        assert third_party == {p for p in third_party if place.startswith(CLIENT_EXTRAS.get(p, "nowhere"))}, place


def test_server_room_imports_nothing_of_triton():
    assert "triton_python_backend_utils" not in imported_packages(ROOT / "server" / "medimage_server")


def test_adapters_stay_thin():
    adapters = [*ROOT.glob("model_repository/*/1/model.py"), *ROOT.glob("server/backends/*/model.py")]
    assert len(adapters) == 6
    assert {path.parent.parent.name: len(path.read_text().splitlines()) for path in adapters if long(path)} == {}


def long(path: Path) -> bool:
    return len(path.read_text().splitlines()) > 80
