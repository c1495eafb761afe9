"""What the attacks need: a service, requests whose time is taken, and what is left of processes."""

import os
import re
import resource
import secrets
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import click
import numpy as np
from PIL import Image, PngImagePlugin

from tests.triton.commands import ANY_PORT, CLOSED, KEY, ask, metric, started
from tests.triton.processes import descendants, is_running, resident_bytes

NOBODY = 65534
MARKER = f"Jane Q. Attacked {secrets.token_hex(8)}"
HUNG = "hung"  # in the place of a status
SHM = Path("/dev/shm")
# imports come first: another user may not read the modules
BECOME_NOBODY = f"""
import os, sys
def become_nobody():
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
"""


@click.group()
def attacks():
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def attack(function):
    """A command of the group, with the option that all have."""
    folder = click.Path(path_type=Path, exists=True, resolve_path=True)
    return attacks.command()(click.option("--repository", type=folder, required=True)(function))


def say(what, came_of_it):
    click.echo(f"{what}: {came_of_it}")


@contextmanager
def serving(repository, *options, **settings):
    """`medimage serve` with the endpoint, and its temporary directory."""
    settings = {"environment": {}, **settings}
    settings["environment"] = {"MEDIMAGE_KEYS": KEY} | settings["environment"]
    with TemporaryDirectory(prefix="attack-") as folder:
        os.chmod(folder, 0o755)
        options = ["--repository", repository, *(options or ["--score-port=0"])]
        if find_spec("medimage_server.guard") is None:  # an older one
            options += ANY_PORT
        with started("serve", *options, folder=Path(folder) / "tmp", **settings) as command:
            yield command


def picture(marker=""):
    """A PNG; asking for it takes about 50 ms."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    information, file = PngImagePlugin.PngInfo(), BytesIO()
    information.add_text("patient", marker)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=information)
    return file.getvalue()


def timed(port, body=None, *, limit=30.0, **options):
    """(status, seconds) of a request."""
    start = monotonic()
    try:
        status = ask(port, body, timeout=limit, **options)[0]
    except TimeoutError:
        status = HUNG
    except ConnectionError:
        status = CLOSED
    return status, round(monotonic() - start, 2)


def until_served(port, body, limit=90.0, **options):
    """Seconds until a request is answered with 200, how the others were, and the longest wait of one."""
    start, seen, longest = monotonic(), Counter(), 0.0
    while monotonic() - start < limit:
        status, seconds = timed(port, body, limit=10.0, **options)
        seen[status] += 1
        longest = max(longest, seconds)
        if status == 200:
            return f"served after {monotonic() - start:.1f} s, answers {dict(seen)}, longest {longest} s"
        sleep(0.2)
    return f"NOT served after {limit:g} s, answers {dict(seen)}, longest {longest} s"


def triton_address(command):
    return command.socket if "unix:" in command.banner else f"127.0.0.1:{command.grpc_port}"


def everything(command):
    return [command.process.pid, *descendants(command.process.pid)]


def shared_by(pids):
    """The files of /dev/shm that processes have mapped or open, and the folders they are in."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            found |= set(re.findall(r"/dev/shm/medimage-\S+", Path(f"/proc/{pid}/maps").read_text()))
            found |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {path for path in map(Path, found) if path.is_relative_to(SHM)}


def left(pids, shared, folder):
    """What is left of a service, in words; the memory is removed then."""
    running = [pid for pid in pids if is_running(pid)]
    files = [path for path in shared if path.exists()]
    marked = [path for path in files if MARKER.encode() in path.read_bytes()]
    temporary = [path.name for path in folder.glob("medimage-*")]
    return f"{len(running)} processes, {len(files)} files in /dev/shm ({len(marked)} with the marker), {temporary}"


def kill(*pids):
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def end(pids, shared):
    kill(*filter(is_running, pids))
    for path in shared:
        path.unlink(missing_ok=True)


def as_nobody(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", BECOME_NOBODY + program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def memory(command):
    """MB of all processes."""
    return sum(resident_bytes(pid) for pid in everything(command) if is_running(pid)) >> 20


def is_idle(port):
    page = ask(port, path="/metrics")[2].decode()
    names = ("medimage_endpoint_in_flight", "medimage_report_live_slots", "medimage_report_queue_length")
    return not any(metric(page, name) for name in names)
