"""What is imported is declared in pyproject.toml, for the room that imports it, and the other way round."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = {  # of each room, beside the base
    "analysis": ("analysis", "ray"),
    "client": ("archive", "cli", "dicom", "evaluate", "nifti", "parquet"),
    "server": ("server", "openvino"),  # without `triton`: NVIDIA's container has one
    "model_repository": ("server",),
    "export": ("export",),
    "install": ("all",),
    "perf": ("perf",),
    "examples": (),
    "training": ("training",),
    "tests": ("dev",),
    "docs": ("docs",),
    "deploy": ("server",),  # in the images of deploy/container
    "checkpoints": ("dev",),
    "requirements": ("dev",),
}
DISTRIBUTIONS = packages_distributions()  # of the environment of the tests, by module
OURS = {
    *("checkpoints", "examples", "perf", "tests"),
    *("medimage_analysis", "medimage_client", "medimage_export"),
    *("medimage_install", "medimage_server", "medimage_training"),
}
OF_TRITON = {"triton_python_backend_utils"}  # which the server has, not a package
WHERE = {  # what the client imports beyond its base, and where
    "click": "cli/",
    "dicomweb-client": "archive/dicomweb.py",
    "highdicom": ("reports/origin.py", "reports/secondary_capture.py", "reports/structured_report.py"),
    "imagecodecs": "images/dicom_codecs.py",
    "nibabel": "archive/nifti.py",
    "pydicom": (
        "archive/",
        "cli/report.py",
        "images/dicom",
        "reports/origin.py",
        "reports/report.py",
        "reports/secondary_capture.py",
        "reports/structured_report.py",
    ),
    "requests": ("archive/answers.py", "archive/session.py"),
    "matplotlib": "labels/pictures.py",
    "pyarrow": ("cli/embed.py", "labels/predictions.py"),
    "rouge-score": "reports/evaluation.py",
    "sacrebleu": "reports/evaluation.py",
    "scikit-learn": "labels/pictures.py",
}
NOT_IMPORTED = {
    "nvidia-pytriton": "brings Triton's own files",
    "openvino": "named by its module, if it is there",
    "pyjpegls": "of highdicom",
    "flask": "of moto's server",
    "flask-cors": "of moto's server",
    "mypy": "a command",
    "pydicom-data": "public files, found by its module",
    "ruff": "a command",
    "twine": "a command",
    "furo": "named in docs/conf.py",
    "myst-parser": "named in docs/conf.py",
    "sphinx-click": "named in docs/conf.py",
}


@cache
def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - OURS - OF_TRITON


def distributions(module: str) -> set[str]:
    """Those that bring this module; one that is not installed has its name."""
    return {canonicalize_name(name) for name in DISTRIBUTIONS.get(module, [module])}


def declared(texts: list[str]) -> Iterator[str]:
    for requirement in map(Requirement, texts):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from declared(PROJECT["optional-dependencies"][extra])
        else:
            yield canonicalize_name(requirement.name)


BASE = set(declared(PROJECT["dependencies"]))


def declared_for(room: str) -> set[str]:
    build = PYPROJECT["build-system"]["requires"] if room == "tests" else []  # a test builds the wheel
    return BASE.union(declared(build), *(declared(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS[room]))


def test_every_room_with_python_in_it_is_here():
    rooms = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("[!.]*/**/*.py")}
    assert rooms - {"build"} == set(EXTRAS)


@pytest.mark.parametrize("room", EXTRAS)
def test_what_a_room_imports_is_declared_for_it(room):
    names = declared_for(room)
    for path in (ROOT / room).rglob("*.py"):
        missing = {module for module in imported(path) if not distributions(module) & names}
        assert missing == set(), path.relative_to(ROOT)


def test_client_imports_more_than_its_base_only_where_an_extra_is_used():
    client = ROOT / "client" / "medimage_client"
    for path in client.rglob("*.py"):
        beyond = {name for module in imported(path) for name in distributions(module)} - BASE
        place = path.relative_to(client).as_posix()
        assert beyond == {name for name in beyond if place.startswith(WHERE.get(name, "nowhere"))}, place


def test_what_is_declared_is_imported_or_has_a_reason():
    modules = {module for room in EXTRAS for path in (ROOT / room).rglob("*.py") for module in imported(path)}
    used = {name for module in modules for name in distributions(module)}
    everything = BASE.union(*map(declared, PROJECT["optional-dependencies"].values()))
    assert everything - used == set(NOT_IMPORTED)


@pytest.mark.parametrize(
    ("use", "places"),
    [
        (r"^\s*(from|import) jiter\b", ["client/medimage_client/schema/json_text.py"]),
        (r"^\s*(from|import) pybase64\b", ["client/medimage_client/images/base64_text.py"]),
        (r"^\s*(from|import) (base64|binascii)\b|\borjson\.loads\b", []),
    ],
)
def test_base64_and_json_are_read_in_one_place(use, places):
    files = [path for room in ("client", "server", "model_repository") for path in (ROOT / room).rglob("*.py")]
    found = [path for path in files if re.search(use, path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert [path.relative_to(ROOT).as_posix() for path in found] == places


def test_client_reads_no_json_with_the_standard_library():
    """That keeps the last of two equal keys, and takes seven times as long."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "client").rglob("*.py")}
    assert [path for path, text in texts.items() if re.search(r"\bjson\.loads?\b", text)] == []
