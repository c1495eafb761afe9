"""Write the locks anew: what `make` installs, each package with its version and the hashes of its files.

`make lock` runs this. Versions stay as they are where pyproject.toml lets them; options are those of `uv pip compile`,
such as `--upgrade` or `--upgrade-package numpy`.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent
PYPROJECT = FOLDER.parent / "pyproject.toml"
RUNTIME_EXTRAS = ("cli", "export", "triton")
# What Triton's Python models import, and the embedded Triton. In the package, as `medimage triton-env` installs it; the
# hashes are of the files for every Python.
TRITON_ENVIRONMENT = FOLDER.parent / "server" / "medimage_server" / "triton-environment.lock"
OF_TRITON = (
    *("flatbuffers", "ftfy", "jiter", "numpy", "nvidia-pytriton", "onnxruntime", "packaging", "pillow", "protobuf"),
    *("pybase64", "tokenizers", "wcwidth"),
)
CONTAINER_EXTRAS = ("archive", "cli", "dicom", "nifti", "parquet", "triton")  # serves, and embeds an archive
ABOUT = {
    "runtime": "What exports and serves, but for torch, and what builds this project.",
    "cpu": "PyTorch's build of torch for CPUs, of https://download.pytorch.org/whl/cpu.",
    "cuda": "PyPI's build of torch, and what it needs beyond runtime.lock.",
    "dev": "What tests, checks and benchmarks need beyond runtime.lock and openvino.lock.",
    "docs": "What builds the site of docs/, beyond runtime.lock and dev.lock.",
    "openvino": "OpenVINO, which serves bf16 and is a baseline of the benchmarks, without its telemetry.",
    "container": "What the images of deploy/container serve and embed with, each as in the other locks.",
    "onnxruntime-gpu": "Takes the place of onnxruntime, which has no CUDA.",
    "triton-environment": "What `medimage triton-env` installs: the embedded Triton, and what its models import.",
}
UV = (
    *("uv", "pip", "compile", "--quiet", "--no-config", "--generate-hashes", "--no-header", "--no-annotate"),
    *("--default-index", "https://pypi.org/simple", "--python-version", "3.11"),
    *("--python-platform", "x86_64-manylinux_2_35"),  # that of nvidia-pytriton's wheels
)
PIN = re.compile(r"^[\w.-]+==\S+", re.MULTILINE)

Lock = dict[str, str]  # by package: the line name==version and those of its hashes


def main(options: Sequence[str]) -> None:
    build = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["build-system"]["requires"]
    old = [pin for path in FOLDER.glob("*.lock") for pin in PIN.findall(path.read_text(encoding="utf-8"))]
    everything = resolve(build, old, [str(PYPROJECT), "--extra=dev", "--extra=docs", *options])
    pins = [pin_of(package) for package in everything.values()]
    runtime = resolve(build, pins, [str(PYPROJECT), *(f"--extra={extra}" for extra in RUNTIME_EXTRAS)])
    dev = resolve(build, pins, [str(PYPROJECT), "--extra=dev"])
    torch = pin_of(everything["torch"])
    hash_of_cpu_build, needs_of_cpu_build = cpu_build(torch)
    cuda = {"torch", *(resolve([torch], pins).keys() - needs_of_cpu_build)}
    onnxruntime_gpu = pin_of(everything["onnxruntime"]).replace("onnxruntime", "onnxruntime-gpu")
    container = resolve(build, pins, [str(PYPROJECT), *(f"--extra={extra}" for extra in CONTAINER_EXTRAS)])
    write("runtime", runtime, runtime.keys() - cuda)
    write("container", everything, container.keys())
    write("dev", everything, dev.keys() - runtime.keys())
    write("docs", everything, everything.keys() - dev.keys())
    write("cuda", everything, cuda)
    write("cpu", {"torch": f"{torch}+cpu \\\n    --hash=sha256:{hash_of_cpu_build}\n"}, {"torch"})
    write("triton-environment", runtime, OF_TRITON, TRITON_ENVIRONMENT)
    write("openvino", resolve(["openvino"], old, ["--no-deps", *options]), {"openvino"})
    write("onnxruntime-gpu", resolve([onnxruntime_gpu], [], ["--no-deps"]), {"onnxruntime-gpu"})


def resolve(requirements: Sequence[str], preferred: Sequence[str], options: Sequence[str] = ()) -> Lock:
    """What PyPI has for the requirements, in the versions of the pins `preferred` where those fit."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "lock"  # uv keeps the versions of a file that it writes over, and hashes if it has any
        output.write_text("\n".join(preferred), encoding="utf-8")
        command = [*UV, "--output-file", str(output), *options, "-"]
        subprocess.run(command, input="\n".join(requirements), text=True, check=True, stdout=subprocess.DEVNULL)
        packages = re.split(r"^(?=\S)", output.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {package.partition("==")[0]: package for package in packages if package.strip()}


def pin_of(package: str) -> str:
    return package.partition(" ")[0]


def cpu_build(torch: str) -> tuple[str, Collection[str]]:
    """Hash of PyTorch's build for CPUs, and the names of what it needs, itself included.

    From where pip finds it: https://download.pytorch.org/whl/cpu, or what PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS says.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = subprocess.run([*command, f"{torch}+cpu"], check=True, stdout=subprocess.PIPE).stdout
    needed = {normal(item["metadata"]["name"]): item for item in json.loads(report)["install"]}
    return needed["torch"]["download_info"]["archive_info"]["hashes"]["sha256"], needed.keys()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def write(name: str, lock: Lock, packages: Collection[str], path: Path | None = None) -> None:
    lines = f"# {ABOUT[name]}\n# Written by `make lock`.\n"
    (path or FOLDER / f"{name}.lock").write_text(
        lines + "".join(lock[package] for package in sorted(packages)), encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
