"""One name, one thing: whoever reads a name of one of the packages need not ask which of two it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.paths import ROOT

PACKAGES = (
    "analysis/medimage_analysis",
    "client/medimage_client",
    "export/medimage_export",
    "server/medimage_server",
    "training/medimage_training",
)

RIGHT = {  # names that two modules are right to share, and why
    "InvalidInput": "what a model of Triton raises, the client raises again",
    "Unavailable": "likewise",
    "PromptStrings": "generation.json, which export writes and the server reads: the two meet in files alone",
    "TokenStrings": "likewise",
    "OpenVINOSession": "export checks what the server serves, by the same rules",
    "OpenVINOMissing": "likewise",
    "find_checkpoint": "export has two models, whose packages are built alike",
    "read_config": "likewise",
    "Head": "of a compressed frame, and a classifier on vectors",
    "Stored": "values of a file's pixels, and objects in an archive",
    "Study": "the client's of DICOM, the server's of a prompt",
    "Table": "the analysis's of embeddings, the client's of a request in Azure's JSON",
    "evaluate": "a command is named after the function that it calls",
    "score": "likewise",
}
SHARED = {"Connection", "Listener", "Report", "ReportRequest", "error_response", "read_report", "read_text"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to((ROOT / package).parent).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8"))


def adapters() -> Iterator[Path]:
    yield from ROOT.glob("model_repository/*/1/model.py")
    yield from ROOT.glob("server/backends/*/model.py")


def names_of_two_things() -> set[str]:
    """Public classes of two modules, and public functions that other modules import from two by their bare name."""
    trees = dict(modules())
    defined: dict[str, set[str]] = {}  # name -> where
    functions = set()  # (module, name)
    for module, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined.setdefault(node.name, set()).add(module)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                functions.add((module, node.name))
    readers = [*trees.values(), *(ast.parse(path.read_text(encoding="utf-8")) for path in adapters())]
    for tree in readers:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (node.module, alias.name) in functions:
                        defined.setdefault(alias.name, set()).add(node.module)
    assert len(defined) > 300, "are the packages where they were?"
    return {name for name, places in defined.items() if len(places) > 1}


def test_a_name_means_one_thing_unless_it_is_listed():
    found = names_of_two_things()
    assert found - SHARED - RIGHT.keys() == set()
    assert RIGHT.keys() - found == set()
