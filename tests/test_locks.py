"""requirements/*.lock: what `make` installs is complete, and each file of it is known by its hash."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.paths import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PACKAGE = re.compile(r"([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def read_lock(path: Path) -> dict[str, str]:
    return {name: version for name, version, _ in PACKAGE.findall(path.read_text(encoding="utf-8"))}


def requirements_of(extra: str) -> Iterator[Requirement]:
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:
            for other in sorted(requirement.extras):
                yield from requirements_of(other)
        else:
            yield requirement


CPU, CUDA = (read_lock(ROOT / f"requirements/{name}.lock") for name in ("cpu", "cuda"))
RUNTIME = read_lock(ROOT / "requirements/runtime.lock") | CPU
DEV, DOCS = (read_lock(ROOT / f"requirements/{name}.lock") for name in ("dev", "docs"))
NEEDED = [  # what an installation of the Makefile has, and what it has to have
    *((RUNTIME, Requirement(text)) for text in (*PROJECT["dependencies"], *PYPROJECT["build-system"]["requires"])),
    *((RUNTIME, requirement) for extra in ("cli", "export", "triton") for requirement in requirements_of(extra)),
    *((RUNTIME | DEV, requirement) for requirement in requirements_of("dev")),
    *(
        (read_lock(ROOT / "requirements/container.lock"), requirement)
        for extra in ("archive", "cli", "dicom", "nifti", "parquet", "triton")
        for requirement in requirements_of(extra)
    ),
    *((RUNTIME | DEV | DOCS, requirement) for requirement in requirements_of("docs")),
    *((read_lock(ROOT / "requirements/openvino.lock"), requirement) for requirement in requirements_of("openvino")),
]


def test_locks_are_all_there():
    assert [path.stem for path in LOCKS] == [
        "container",
        "cpu",
        "cuda",
        "dev",
        "docs",
        "onnxruntime-gpu",
        "openvino",
        "runtime",
    ]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_is_packages_with_their_hashes_and_comments(path):
    text = path.read_text(encoding="utf-8")
    assert re.fullmatch(rf"(#.*\n)*({PACKAGE.pattern})+", text)
    assert read_lock(path)


@pytest.mark.parametrize(("lock", "requirement"), NEEDED, ids=lambda value: getattr(value, "name", ""))
def test_what_the_project_asks_for_is_in_the_lock_of_its_step(lock, requirement):
    assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)])


def test_images_have_what_the_other_locks_have():
    container = read_lock(ROOT / "requirements/container.lock")
    assert container.items() <= (RUNTIME | DEV).items()
    assert not container.keys() & {"torch", "transformers", "onnx"}


def test_only_torch_is_in_two_locks_once_for_cpus_and_once_with_cuda():
    """pip would refuse two versions in one installation."""
    packages = [name for path in LOCKS if path.stem != "container" for name in read_lock(path)]
    assert {name for name in packages if packages.count(name) > 1} == {"torch"}
    assert {"torch": f"{CUDA['torch']}+cpu"} == CPU


def test_docs_install_the_locked_onnxruntime_on_a_gpu():
    installed = re.findall(r"onnxruntime-gpu\S*==([\d.]+)", (ROOT / "docs/models.md").read_text(encoding="utf-8"))
    assert installed == [RUNTIME["onnxruntime"]]


def test_gpu_build_of_onnxruntime_has_the_version_of_the_other():
    assert read_lock(ROOT / "requirements/onnxruntime-gpu.lock") == {"onnxruntime-gpu": RUNTIME["onnxruntime"]}


def test_environment_of_triton_has_the_very_lines_of_the_runtime():
    """So that a checkout tests what `medimage triton-env` installs; for each Python that it may be made of."""
    own = (ROOT / "server/medimage_server/triton-environment.lock").read_text(encoding="utf-8")
    runtime = (ROOT / "requirements/runtime.lock").read_text(encoding="utf-8")
    packages = [match[0] for match in PACKAGE.finditer(own)]
    assert len(packages) > 8
    assert [package for package in packages if package not in runtime] == []
    assert re.sub(r"^#.*\n", "", own, flags=re.MULTILINE) == "".join(packages)
