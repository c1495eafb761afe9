"""What comes by itself: full and read-only file systems, killed and hung processes, clocks that jump, storms."""

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import click
import numpy as np

from medimage_client import AsyncMedImageInsight
from tests.attacks.service import (
    MARKER,
    attack,
    end,
    everything,
    kill,
    left,
    picture,
    say,
    serving,
    shared_by,
    timed,
    until_served,
)
from tests.triton.commands import KEY, MEDIMAGE, ask, head, images, reports, texts
from tests.triton.processes import command_line, descendants, is_running

STUB = "triton_python_backend_stub"
KINDS = ("image_process_child", "image_encoder/", "cxrreportgen_stream/", "endpoint.worker_", "tritonserver", "guard")


@contextmanager
def mounted(repository, *options, **settings):
    """A service whose temporary directory and model repository are file systems of its own."""
    mounts = (
        'mount -t tmpfs -o size=100M,mode=1777 tmpfs "$TMPDIR"; mount --bind "$REPOSITORY" "$REPOSITORY"; exec "$@"'
    )
    settings["environment"] = {"REPOSITORY": str(repository)} | settings.get("environment", {})
    options = [*options, "--score-port=0"]
    with serving(
        repository, *options, through=["unshare", "--mount", "sh", "-ec", mounts, "sh"], **settings
    ) as command:
        yield command


@attack
def full_folder(repository):
    """The temporary directory is filled, then there are answers of kinds that were not counted before."""
    with mounted(repository) as command:
        port, workers = command.score_port, command.workers
        with (
            suppress(OSError),
            Path(f"/proc/{command.process.pid}/root{command.errors.parent}/fill").open("wb") as file,
        ):
            while True:
                file.write(bytes(2**16))
        answers = [timed(port, path="/nowhere"), timed(port, images(b"bad")), timed(port, images(picture()))]
        answers += [
            timed(port, texts("heart"), key="wrong"),
            timed(port, reports(picture())),
            timed(port, texts("heart")),
        ]
        say("new kinds of answers", f"{answers}; workers live: {[is_running(pid) for pid in workers]}")
        say("then a text", until_served(port, texts("heart"), limit=30.0))


@attack
def no_worker(repository):
    """The keys file is removed and the worker killed; then every worker is killed as it comes."""
    with TemporaryDirectory(prefix="attack-") as folder:
        keys = Path(folder) / "keys"
        keys.write_text(KEY)
        with serving(repository, "--score-port=0", "--keys-file", keys, environment={"MEDIMAGE_KEYS": ""}) as command:
            port = command.score_port
            keys.unlink()
            kill(*command.workers)
            say("keys file removed, worker killed, /live", until_served(port, None, limit=30.0, path="/live"))
            end_of_kills, waits = monotonic() + 12.0, []
            while monotonic() < end_of_kills:
                kill(*command.workers)
                waits.append(timed(port, path="/live", limit=10.0))
            longest = max(seconds for _, seconds in waits)
            say("every worker killed at once, /live", f"{dict(Counter(s for s, _ in waits))}, longest {longest} s")


@attack
def killed_at_start(repository):
    """SIGKILL of serve while Triton starts."""
    for seen, delay_s in (("tritonserver", 0.0), (STUB, 0.0), (STUB, 1.0), (STUB, 3.0)):
        with TemporaryDirectory(prefix="attack-") as folder:
            process = subprocess.Popen(
                [*MEDIMAGE, "serve", "--repository", repository, "--score-port=0"],
                env=os.environ | {"TMPDIR": folder},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            pids, shared = [], set()
            while not any(seen in command_line(pid) for pid in pids if is_running(pid)):
                pids = descendants(process.pid)
            sleep(delay_s)
            pids += [child for pid in pids for child in descendants(pid)]
            process.kill()
            process.wait()
            deadline = monotonic() + 10.0
            while monotonic() < deadline:
                own = {int(pid.name) for pid in Path("/proc").glob("[0-9]*") if folder in environment(pid)}
                shared |= shared_by(own)
                sleep(0.1)
            pids = list({*pids, *own})
            say(f"10 s after serve was killed {delay_s:g} s after the first {seen}", left(pids, shared, Path(folder)))
            end(pids, shared)


def environment(process):
    with suppress(OSError):
        return (process / "environ").read_text(errors="replace")
    return ""


@attack
def killed_with_all(repository):
    """SIGKILL of everything at once, then a new start."""
    with serving(repository) as command:
        ask(command.score_port, images(picture(MARKER), 4))
        pids, folder = everything(command), command.errors.parent
        shared = shared_by(pids)
        kill(*pids)
        sleep(2.0)
        say("everything was killed", left(pids, shared, folder))
        with serving(repository):
            say("after a new start", left(pids, shared, folder))
        end(pids, shared)


@attack
def silent_tls(repository):
    """1,100 connections that never begin TLS."""
    with TemporaryDirectory(prefix="attack-") as folder:
        files = [f"{folder}/{name}.pem" for name in ("key", "certificate")]
        subprocess.run(
            [
                "openssl",
                *["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout"],
                files[0],
                "-out",
                files[1],
            ],
            check=True,
            capture_output=True,
        )
        options = ["--score-port=0", f"--tls-key={files[0]}", f"--tls-certificate={files[1]}"]
        usual = ["sh", "-c", 'ulimit -Sn 1024; exec "$@"', "sh"]  # limit of open files
        with serving(repository, *options, through=usual) as command, ExitStack() as held:
            connect(command.score_port, 1100, held)
            for _ in range(3):
                say("1,100 silent connections, /live over TLS", timed_tls(command.score_port))


def timed_tls(port):
    context, start = ssl.create_default_context(), monotonic()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20.0) as sock, context.wrap_socket(sock) as secure:
            secure.sendall(head(method="GET", path="/live"))
            answer = secure.recv(12).decode()
    except OSError as error:
        answer = f"{type(error).__name__}"
    return f"{answer}, {monotonic() - start:.2f} s"


def connect(port, count, held):
    for _ in range(count):
        with suppress(OSError):
            held.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=5.0)))


@attack
def idle(repository):
    """Thousands of idle connections without a key."""
    with serving(repository) as command:
        for count in (1000, 3000):
            with ExitStack() as held:
                connect(command.score_port, count, held)
                live = timed(command.score_port, path="/live", limit=20.0)
                keyed = timed(command.score_port, texts("heart"), limit=20.0)
                say(f"{count} idle connections", f"/live {live}, a keyed POST {keyed}")


@attack
def signals(repository):
    """SIGHUP under nohup and without it, SIGUSR1."""
    for through, number in (([], signal.SIGUSR1), (["nohup"], signal.SIGHUP), ([], signal.SIGHUP)):
        with serving(repository, through=through) as command:
            command.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                command.process.wait(12.0)
            code, status = command.process.poll(), timed(command.score_port, path="/live")
            say(f"{signal.Signals(number).name} {' '.join(through)}", f"exit code {code}, /live {status}")


@attack
def hung(repository):
    """SIGSTOP of a model's process, of a worker, and of Triton."""
    with serving(repository) as command:
        port, body = command.score_port, images(picture())
        for name in ("image_encoder", "worker", "tritonserver"):
            (pid, *_) = {"worker": command.workers, "tritonserver": [command.triton]}.get(name) or command.stubs(name)
            os.kill(pid, signal.SIGSTOP)
            live = timed(port, path="/live", limit=10.0)
            say(f"{name} stopped", f"/live {live}, images {until_served(port, body)}")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            until_served(port, body)


@attack
def out_of_memory(repository):
    """SIGKILL of each kind of process, as by the out-of-memory killer."""
    with serving(repository) as command:
        port, body = command.score_port, images(picture())
        for kind in (
            "image_process_child",
            "image_encoder/",
            "cxrreportgen_stream/",
            "endpoint.worker_process",
            "tritonserver",
            "guard",
        ):
            until_served(port, body)
            found = [pid for pid in descendants(command.process.pid) if kind in command_line(pid)]
            found = [command.triton] if kind == "tritonserver" else found
            if not found:
                say(kind, "there is none")
                continue
            kill(found[0])
            say(
                f"{kind} killed", f"images {until_served(port, body)}; reports {until_served(port, reports(picture()))}"
            )
        pids, folder = everything(command), command.errors.parent
        shared = shared_by(pids)
        kill(command.process.pid)
        sleep(10.0)
        say("10 s after serve was killed", left(pids, shared, folder))
        end(pids, shared)


@attack
def read_only(repository):
    """File systems that turn read-only: the temporary directory and the repository."""
    with mounted(repository) as command:
        port, folder = command.score_port, command.errors.parent
        for path in (folder, repository):
            if not remount(command, path, "ro"):
                say(f"{path.name} read-only", "cannot be, for it is written to all the time")
                continue
            answers = [timed(port, images(picture())), timed(port, images(b"bad")), timed(port, reports(picture()))]
            kill(command.stubs("image_encoder")[0], command.workers[0])
            say(
                f"{path.name} read-only",
                f"{answers}; a model and the worker killed: {until_served(port, texts('a'), 40.0)}",
            )
            remount(command, path, "rw")
            say(f"{path.name} writable again", until_served(port, images(picture())))


def remount(command, path, how):
    """Whether it could be done."""
    mount = ["mount", "-o", f"remount,bind,{how}", path]
    inside = ["nsenter", "--mount", f"--target={command.process.pid}"]
    return subprocess.run([*inside, *mount], stderr=subprocess.DEVNULL).returncode == 0


@attack
def clock_jumps(repository):
    """The clock jumps by an hour, there and back; needs a C compiler."""
    with TemporaryDirectory(prefix="attack-") as folder:
        clock, library = Path(folder) / "clock", Path(folder) / "clock.so"
        clock.write_text("0")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("jumping_clock.c")], check=True
        )
        fake = {"LD_PRELOAD": str(library), "JUMPING_CLOCK": str(clock)}
        with serving(repository, environment=fake) as command:
            port, processes = command.score_port, everything(command)
            for jump in ("0", "3600", "-3600", "3600"):
                clock.write_text(jump)
                start, seen = monotonic(), Counter()
                while monotonic() - start < 10.0:
                    asked = (images(picture()), texts(f"heart {monotonic()}"), reports(picture()), None)
                    seen.update(timed(port, body, path="/score" if body else "/")[0] for body in asked)
                date = ask(port, path="/live")[1].get("date")
                ended = [pid for pid in processes if not is_running(pid)]
                said = re.findall("^.*starting it again.*$", command.errors.read_text(), re.MULTILINE)
                say(f"clock {jump} s", f"answers {dict(seen)}, date {date}, {len(ended)} processes ended; {said}")


@attack
@click.option("--clients", default=1000)
def retry_storm(repository, clients):
    """Clients with the Python client's own retries, each with one text, while Triton is killed and starts again."""
    with serving(repository) as command:
        port = command.score_port

        async def one(n, client):
            try:
                return np.shape(await client.embed_texts([f"storm {n}"])) == (1, 1024)
            except Exception as error:
                return f"{type(error).__name__}: {str(error)[:60]}"

        async def storm():
            async with AsyncExitStack() as held:
                url = f"http://127.0.0.1:{port}/score"
                made = [AsyncMedImageInsight(url, api_key=KEY, retries=50, timeout=120.0) for _ in range(clients)]
                everyone = [await held.enter_async_context(client) for client in made]
                kill(command.triton)
                return Counter(await asyncio.gather(*(one(n, client) for n, client in enumerate(everyone))))

        start = monotonic()
        answers = asyncio.run(storm())
        say(f"{clients} clients", f"{dict(answers)} in {monotonic() - start:.1f} s; workers {len(command.workers)}")
        say("afterwards", until_served(port, texts("heart")))
