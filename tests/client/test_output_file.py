"""Files that commands write: whole or not at all, also where the disk is full."""

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from medimage_client.cli.output_file import check_place, write_files

EARLIER = b"an earlier result"
LARGER = bytes(2**20)  # than the limits below
KINDS = ["vectors.npy", "vectors.npz", "vectors.parquet", "picture.png"]
WRITE = """
from pathlib import Path
import click
import numpy as np
from medimage_client.cli.embed import RENDERERS
from medimage_client.cli.output_file import write_files

@click.command()
@click.argument("path", type=click.Path(path_type=Path))
def write(path):
    render = RENDERERS.get(path.suffix, lambda path, *_: {path: bytes(2**20)})
    write_files(render(path, {"name": ["a"] * 300}, np.random.default_rng(0).random((300, 1024), np.float32)))

write()
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, content: bytes = b"new") -> None:
    write_files({path: content})


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a quarter of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"cannot mount a small file system: {error}")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def run_write(path: Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WRITE, str(path)], capture_output=True, text=True, **options)


def check_failed(result: subprocess.CompletedProcess[str], reason: str) -> None:
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: cannot write ") and line.endswith(f": {reason}")


@pytest.mark.parametrize("name", KINDS)
def test_full_disk_leaves_the_earlier_result_and_says_one_line(small_disk, name):
    (small_disk / name).write_bytes(EARLIER)
    check_failed(run_write(small_disk / name), "No space left on device")
    assert files_of(small_disk) == {name: EARLIER}


@pytest.mark.parametrize("name", KINDS)
def test_limit_on_the_size_of_files_leaves_the_earlier_result(tmp_path, name):
    (tmp_path / name).write_bytes(EARLIER)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG instead, as on a disk that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    check_failed(run_write(tmp_path / name, preexec_fn=limit), "File too large")
    assert files_of(tmp_path) == {name: EARLIER}


def test_names_that_find_no_room_leave_the_earlier_vectors_too(small_disk):
    """Vectors and names of two runs would not belong together."""
    files = [small_disk / "vectors.npy", small_disk / "vectors.names.txt"]
    for file in files:
        file.write_bytes(EARLIER)
    with pytest.raises(click.ClickException, match="No space left"):
        write_files(dict(zip(files, (b"new", LARGER), strict=True)))
    assert files_of(small_disk) == dict.fromkeys(("vectors.npy", "vectors.names.txt"), EARLIER)


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(5, "Input/output error"), click.ClickException), (KeyboardInterrupt, KeyboardInterrupt)],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_ends_the_writing_leaves_the_earlier_result(tmp_path, monkeypatch, step, error, told):
    """A disk may tell only here that it is full, and Ctrl-C may come at any time."""
    path = tmp_path / "out.npy"
    path.write_bytes(EARLIER)

    def fail(*_: object) -> None:
        assert len(files_of(tmp_path)) == 2
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(told):
        write(path)
    assert files_of(tmp_path) == {"out.npy": EARLIER}


def test_complete_file_takes_the_place_of_the_earlier_and_keeps_its_permissions(tmp_path):
    path = tmp_path / "out.npy"
    path.write_bytes(EARLIER)
    path.chmod(0o640)
    write(path)
    assert (files_of(tmp_path), mode_of(path)) == ({"out.npy": b"new"}, 0o640)


def test_while_it_is_written_others_can_read_no_more_than_before(tmp_path, monkeypatch):
    path = tmp_path / "out.npy"
    path.write_bytes(EARLIER)
    path.chmod(0o600)
    modes = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: modes.add(stat.S_IMODE(os.fstat(descriptor).st_mode)))
    write(path)
    assert {mode & 0o077 for mode in modes if not mode & 0o111} == {0}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_file_has_the_permissions_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path / "out.npy")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "out.npy") == mode


@pytest.mark.parametrize("exists", [True, False])
def test_link_stays_a_link_to_the_new_file(tmp_path, exists):
    target, link = tmp_path / "elsewhere" / "target.npy", tmp_path / "out.npy"
    target.parent.mkdir()
    link.symlink_to("elsewhere/target.npy")
    if exists:
        target.write_bytes(EARLIER)
    check_place(link)
    write(link)
    assert link.is_symlink()
    assert files_of(target.parent) == {"target.npy": b"new"}


def test_pipe_gets_what_was_written(tmp_path):
    pipe = tmp_path / "out.npy"
    os.mkfifo(pipe)
    check_place(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write(pipe)
    content, _ = reader.communicate(timeout=10)
    assert content == b"new"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_standard_output_that_is_a_file_is_written_to(tmp_path):
    """Under another name it would not be where the shell has put it."""
    link, caught = tmp_path / "out.npy", tmp_path / "caught"
    link.symlink_to("/dev/stdout")
    with caught.open("wb") as output:
        subprocess.run([sys.executable, "-c", WRITE, str(link)], stdout=output, check=True)
        assert os.path.samestat(os.fstat(output.fileno()), caught.stat())
    assert len(np.load(caught)) == 300


def test_device_that_is_full_is_one_line(tmp_path):
    link = tmp_path / "out.npz"
    link.symlink_to("/dev/full")
    check_failed(run_write(link), "No space left on device")


@pytest.mark.parametrize(
    ("name", "message"), [("missing/out.npy", "does not exist"), ("locked/out.npy", "cannot be written to")]
)
def test_place_is_checked_before_the_work(tmp_path, monkeypatch, name, message):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda folder, mode: folder.name != "locked")  # root may do everything
    with pytest.raises(click.BadParameter, match=message):
        check_place(tmp_path / name)
    check_place(tmp_path / "out.npy")
