"""The folder of a run in /dev/shm: private, removed with the run, and by the next one if the run was killed."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from medimage_server import launcher
from medimage_server import run_folder as module
from medimage_server.clean import clean
from medimage_server.errors import LaunchError
from medimage_server.run_folder import CLIENTS_AGE_S, regions, remove_dead, run_folder
from tests.waiting import wait_until

RUN = (
    "import sys, pathlib, time\n"
    "from medimage_server.run_folder import run_folder\n"
    "with run_folder() as run:\n"
    "    pathlib.Path('/dev/shm', run.region_prefix + 'region').write_bytes(b'an image')\n"
    "    (run.path / 'scratch').symlink_to(sys.argv[1])\n"
    "    print(run.path, flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def killed(tmp_path):
    """(folder, region, scratch folder) of a run that was killed."""
    scratch = Path(tempfile.mkdtemp(prefix="medimage-triton-", dir=tmp_path))
    (scratch / "program").touch()
    with subprocess.Popen([sys.executable, "-c", RUN, scratch], stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        process.kill()
    return folder, Path(f"{folder}-region"), scratch


def test_folder_is_private_and_goes_with_its_regions():
    with run_folder() as run:
        assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
        region = Path(f"/dev/shm/{run.region_prefix}region")
        region.touch()
        assert regions(run.region_prefix) == [region]
    assert not run.path.exists()
    assert not region.exists()


def test_next_run_removes_what_a_killed_one_has_left(killed):
    assert all(path.exists() for path in killed)
    assert killed[0] in remove_dead()
    assert not any(path.exists() for path in killed)


def test_live_run_is_left_alone(killed):
    with run_folder() as run:
        region = Path(f"/dev/shm/{run.region_prefix}region")
        region.touch()
        os.utime(region, (0, 0))
        assert run.path not in remove_dead()
        assert region.exists()


def test_run_of_a_process_that_holds_the_lock_is_left_alone_though_its_maker_was_killed(tmp_path):
    program = RUN.replace(
        "    time.sleep(60)\n",
        "    import subprocess\n    print(subprocess.Popen(['sleep', '60'], pass_fds=[run.lock]).pid, flush=True)\n"
        "    time.sleep(60)\n",
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        folder, holder = Path(process.stdout.readline().strip()), int(process.stdout.readline())
        process.kill()
    try:
        assert folder not in remove_dead()
        assert folder.exists()
    finally:
        os.kill(holder, 9)
    wait_until(lambda: folder in remove_dead() or not folder.exists())
    assert not folder.exists()


def test_link_to_a_folder_that_is_not_ours_is_not_followed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", RUN, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        process.kill()
    remove_dead()
    assert not folder.exists()
    assert tmp_path.is_dir()


@pytest.mark.parametrize("name", ["medimage-client-0123", "medimage-triton-abcd0123-4567"], ids=["client", "earlier"])
def test_forgotten_region_is_removed_when_it_is_old_and_nobody_maps_it(name):
    region = Path("/dev/shm", name)
    region.write_bytes(b"an image")
    try:
        assert region not in remove_dead()  # perhaps it is just being handed over
        old = region.stat().st_mtime - CLIENTS_AGE_S - 1
        mapping = (
            "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); print(flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", f"{mapping}; input()", region], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            os.utime(region, (old, old))
            assert region not in remove_dead()
            process.kill()
        assert region in remove_dead()
        assert not region.exists()
    finally:
        region.unlink(missing_ok=True)


def test_command_says_what_it_has_removed(killed, capsys):
    clean([], standalone_mode=False)
    assert f"removed {killed[0]}\n" in capsys.readouterr().out
    clean([], standalone_mode=False)
    assert str(killed[0]) not in capsys.readouterr().out


def test_missing_shared_memory_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "SHARED_MEMORY", Path("/nowhere"))
    with pytest.raises(LaunchError, match=r"^cannot make a folder in /nowhere, .*: No such file or directory$"):
        run_folder().__enter__()


def test_small_shared_memory_is_said(monkeypatch):
    monkeypatch.setattr(module, "MIN_SHARED_MEMORY_BYTES", 2**60)
    assert "--shm-size" in module.shared_memory_warning()
    monkeypatch.setattr(module, "MIN_SHARED_MEMORY_BYTES", 1)
    assert module.shared_memory_warning() is None


def test_scratch_folder_that_cannot_be_removed_is_left(tmp_path, monkeypatch):
    """Its file system has turned read-only: that is no reason for the server to end."""

    def unlink(*_, **__):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_folder() as run:
        with monkeypatch.context() as broken, launcher.scratch_folder(run) as scratch:
            (scratch / "backend").touch()
            broken.setattr(os, "unlink", unlink)
        assert (scratch / "backend").exists()
