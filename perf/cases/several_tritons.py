"""What do several Tritons behind one endpoint give, and what do callers see when one is killed, added or replaced?

`medimage endpoint` finds the Tritons by a name, as it does in a cluster: they listen on 127.0.0.1, 127.0.0.2 and so on,
and the name is in a hosts file that this process changes. That file takes the place of /etc/hosts for the endpoint
alone, which needs root. Each Triton is pinned to a core where there are several, the next one to the next core. Unit:
requests a second of one image each, and milliseconds of a request, over HTTP and with every answer checked. The
checkpoint is the phantom one.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from itertools import count
from os import sched_getaffinity
from pathlib import Path

import click

from perf import tables
from perf.cases.endpoint_load import make_rows, over_json
from perf.load import Load, ScoreRequest, load
from perf.measure import Report, quick_option
from perf.memory import children
from perf.servers import phantom_repository, repository_option

NAME = "tritons.test"
MEDIMAGE = Path(sys.executable).with_name("medimage")
WITH_HOSTS = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"')
PORT = 18601  # of gRPC, on each address; HTTP and metrics take the next two
CALLERS = 8
MOST = 3  # Tritons
STARTS = 3
READY_S = 300.0
FOUND_S = 60.0
SETTLE_S = 3.0  # before and after a change, under load


class Tritons:
    """Tritons of this machine, and the name that has the addresses of those in `named`."""

    def __init__(self, repository: Path, scratch: Path, held: ExitStack) -> None:
        self.hosts = scratch / "hosts"
        self.processes: dict[str, subprocess.Popen[str]] = {}  # by address
        self.cores = sorted(sched_getaffinity(0))
        self._repository, self._scratch, self._held = repository, scratch, held
        self._numbers = count(1)

    def start(self) -> str:
        """The address of one more, which is ready and has no name yet."""
        number = next(self._numbers)
        address = f"127.0.0.{number}"
        command = ["taskset", "--cpu-list", str(self.cores[(number - 1) % len(self.cores)])]
        command += [str(MEDIMAGE), "serve", "--repository", str(self._repository), "--host", address]
        command += [f"--grpc-port={PORT}", f"--http-port={PORT + 1}", f"--metrics-port={PORT + 2}"]
        command += ["--models=medimageinsight_image", "--models=medimageinsight_text", "--text-cache-mb=0"]
        for attempt in count(1):  # on a machine that is full Triton's start may fail
            try:
                log = self._scratch / f"{address}-{attempt}.log"
                self.processes[address], _ = self._held.enter_context(running(command, log, "ready:"))
                return address
            except click.ClickException:
                if attempt == STARTS:
                    raise

    def name(self, *addresses: str) -> None:
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {NAME}\n" for address in addresses))

    def kill(self, address: str) -> None:
        """Triton itself, by SIGKILL; `medimage serve` starts it again."""
        (guard,) = children(self.processes[address].pid)
        (triton, *_) = children(guard)
        subprocess.run(["kill", "-KILL", str(triton)], check=True)

    def end(self, address: str) -> None:
        """As an orchestrator ends a pod."""
        process = self.processes.pop(address)
        process.terminate()
        process.wait()


@contextmanager
def running(command: Sequence[str], log: Path, first: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command of ours from when it prints a line that begins so, and that line."""
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith(first)), None)
        if line is None:
            raise click.ClickException(f"{command[0]} did not start: {log.read_text()[-2000:]}")
        yield process, line
    finally:
        process.terminate()
        process.wait()


@contextmanager
def endpoint(tritons: Tritons, scratch: Path) -> Iterator[tuple[str, int]]:
    """The endpoint's address, in front of what the name has."""
    command = [*WITH_HOSTS, str(tritons.hosts), str(MEDIMAGE), "endpoint", f"--triton=dns+grpc://{NAME}:{PORT}"]
    command += ["--deployment=medimageinsight", "--score-port=0", f"--max-requests={4 * CALLERS}"]
    with running(command, scratch / "endpoint.log", "score:") as (_, line):
        found = re.search(r":(\d+)/score", line)
        assert found is not None
        yield "127.0.0.1", int(found[1])


def n_ready(address: tuple[str, int]) -> int:
    """How many Tritons the endpoint finds ready."""
    connection = HTTPConnection(*address)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    (number,) = re.findall(r"^medimage_endpoint_triton_ready{.*} (\S+)$", page, re.MULTILINE)
    return int(float(number))


def seconds_until(condition: Callable[[], bool], limit_s: float) -> float:
    begun = time.perf_counter()
    while not condition():
        if time.perf_counter() - begun > limit_s:
            raise click.ClickException(f"what was waited for has not come about within {limit_s:g} s")
        time.sleep(0.05)
    return time.perf_counter() - begun


@click.command()
@quick_option
@repository_option
@click.option("--seconds", default=20, show_default=True, help="For each number of Tritons.")
def main(quick: bool, repository: Path | None, seconds: int) -> None:
    """Load one endpoint in front of 1, 2 and 3 Tritons; then change them under load. With --quick: 2 Tritons, 3 s."""
    numbers = (1, 2) if quick else tuple(range(1, MOST + 1))
    seconds = 3 if quick else seconds
    report = Report("several_tritons", quick=quick)
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        tritons = Tritons(repository or phantom_repository(scratch), scratch, held)
        tritons.name(tritons.start())
        requests = [
            over_json([row]) for row in make_rows(f"grpc://127.0.0.1:{PORT}") if row["image"] and not row["text"]
        ]
        address = held.enter_context(endpoint(tritons, scratch))
        report.put(cores=len(tritons.cores), callers=CALLERS, numbers=[])
        for number in numbers:
            while len(tritons.processes) < number:
                tritons.start()
            tritons.name(*tritons.processes)
            seconds_until(lambda number=number: n_ready(address) == number, FOUND_S)
            found = asked(address, requests, seconds)["score"]
            report.content["numbers"].append({"tritons": number, **summary(found)})
            report.put()
        report.put(changes=[])
        for change in changes(tritons, address, requests):
            report.content["changes"].append(change)
            report.put()
    print(tables.of("several_tritons", report.content))


def asked(address: tuple[str, int], requests: Sequence[ScoreRequest], seconds: int) -> dict[str, Load]:
    return load("http://{}:{}".format(*address), requests, callers=CALLERS, seconds=seconds)


def summary(found: Load) -> dict[str, object]:
    return {
        "requests": len(found.latencies_ms),
        "failed": found.failed,
        "failures": found.failures,
        "per_second": found.rate,
        **{f"p{percent}_ms": found.percentile_ms(percent) for percent in (50, 99)},
        "max_ms": max(found.latencies_ms),
    }


def changes(
    tritons: Tritons, address: tuple[str, int], requests: Sequence[ScoreRequest]
) -> Iterator[dict[str, object]]:
    """What callers see while each change is made, and the seconds that it takes."""
    number = len(tritons.processes)

    def killed() -> float:
        tritons.kill(next(iter(tritons.processes)))
        seconds_until(lambda: n_ready(address) == number - 1, FOUND_S)
        return seconds_until(lambda: n_ready(address) == number, READY_S)

    def added() -> float:
        tritons.start()  # takes long on cores that are busy; what counts begins when it is ready
        tritons.name(*tritons.processes)
        return seconds_until(lambda: n_ready(address) == number + 1, FOUND_S)

    def replaced() -> float:
        """One after the other: a new one is found, then an old one is ended, and its address goes."""
        begun = time.perf_counter()
        for old in list(tritons.processes)[:number]:
            new = tritons.start()
            tritons.name(*tritons.processes)
            seconds_until(lambda: n_ready(address) > number, FOUND_S)
            assert new in tritons.processes
            tritons.end(old)
            tritons.name(*tritons.processes)
            seconds_until(lambda: n_ready(address) == number, FOUND_S)
        return time.perf_counter() - begun

    def taken_away() -> float:
        gone = next(reversed(tritons.processes))
        tritons.name(*[address for address in tritons.processes if address != gone])
        seconds = seconds_until(lambda: n_ready(address) == number, FOUND_S)
        tritons.end(gone)
        return seconds

    steps = {
        "a Triton killed, until it is back": killed,
        "one added, from its readiness until it is asked": added,
        "one taken away, until it is asked no more": taken_away,
        "all replaced, one by one": replaced,
    }
    with ThreadPoolExecutor() as threads:
        for what, change in steps.items():
            yield {"what": what, **under_load(threads, change, address, requests)}


def under_load(
    threads: ThreadPoolExecutor, change: Callable[[], float], address: tuple[str, int], requests: Sequence[ScoreRequest]
) -> dict[str, object]:
    """A change while callers ask, in rounds of a few seconds until it is over; what they all saw."""
    begun = threads.submit(lambda: (time.sleep(SETTLE_S), change())[1])
    loads: list[Load] = []
    while not begun.done() or not loads:
        loads.append(asked(address, requests, int(2 * SETTLE_S))["score"])
    failures = Counter[str]()
    for found in loads:
        failures.update(found.failures)
    latencies_ms = [latency for found in loads for latency in found.latencies_ms]
    together = Load(latencies_ms, dict(failures), sum(found.seconds for found in loads))
    return {"seconds": begun.result(), **summary(together)}
