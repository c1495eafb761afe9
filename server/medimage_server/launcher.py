"""Start Triton over a model repository, watch it, and end it with all that it has started."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from types import MappingProxyType

import grpc  # type: ignore[import-untyped]  # grpcio has no types
from google.protobuf import text_format  # type: ignore[import-untyped]  # protobuf carries no types
from google.protobuf.message import Message  # type: ignore[import-untyped]  # as above
from tritonclient.grpc import service_pb2, service_pb2_grpc

from medimage_server import heartbeat, signals, versions
from medimage_server.errors import LaunchError, StuckStart
from medimage_server.installation import (
    cache_options,
    compose_backends,
    compose_packages,
    environment,
    find_triton,
    python_backends,
)
from medimage_server.listening import Ports, Sockets, choose_ports
from medimage_server.model_repository import ServedModels, changed_line, check_served, with_parts
from medimage_server.processes import awaited_by, children, end_group, exit_of, parent_of
from medimage_server.run_folder import PREFIX, SCRATCH, RunFolder, regions, remove_regions, run_folder
from medimage_server.supervisor import Service, running

START_TIMEOUT_S = 600.0  # generous: full-size weights may come from a slow disk, and a crash is noticed at once
STOP_TIMEOUT_S = 40.0  # Triton itself gives requests in flight 30 s (--exit-timeout-secs)
CLEAR_UP_S = 2.0  # for a guard to end what a dead Triton has left
ANSWER_S = 1.0  # to a question whether it is there
# Time of no sign of life after which a process counts as hung: of a Python model, which beats each second, and of
# Triton, which is asked again and again.
MODEL_SILENT_S = 15.0
TRITON_SILENT_S = 30.0
STUCK_S = 30.0  # of a wait in Triton's start that does not end; see triton_workarounds.py

# Triton has no switch for an API; it can only ask for a header of a certain value. So it asks for one that no request
# can carry: neither HTTP/2 nor gRPC has header names with a space, and neither has HTTP/1 values with a line feed.
IMPOSSIBLE_HEADER = "no header=\nno value"


class TritonServer:
    """A Triton from its start; made by `spawn_triton`.

    Attributes:
        url: as a client takes it.
        models: that it is to serve; once it is ready those that it does serve, parts before what they are part of.
        left_out: a line for each fault by which it serves less than its repository holds.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        listening: Ports | Sockets,
        run: RunFolder,
        served: ServedModels,
        models: Sequence[str],
        log: Path | None,
    ) -> None:
        self.listening = listening
        self.models = tuple(models)
        changed = served.changed()
        self.left_out = [*served.faults.values(), *([changed_line(changed)] if changed else [])]
        self.process = process  # its guard, which ends as it ends
        self._run = run
        self._configs = served.configs
        self._where = f"see {log}" if log else "see its log above"
        self._deadline = monotonic() + START_TIMEOUT_S
        self._looked_at, self._standstill = monotonic(), heartbeat.Silence(STUCK_S)
        self._channel = grpc.insecure_channel(
            listening.url.removeprefix("grpc://"),
            [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 500)],
        )
        self._triton = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._question: grpc.Future | None = None
        self._n_answers = 0
        self._asked_at = 0.0
        self._silence = heartbeat.Silence(TRITON_SILENT_S)
        self.pid = 0  # of Triton itself, once it is ready
        self._stubs: dict[int, heartbeat.Silence] = {}  # the processes of its Python models

    @property
    def url(self) -> str:
        return self.listening.url

    @property
    def grpc_port(self) -> int:
        return self._ports.grpc

    @property
    def http_port(self) -> int:
        assert self._ports.http is not None
        return self._ports.http

    @property
    def metrics_port(self) -> int:
        return self._ports.metrics

    @property
    def _ports(self) -> Ports:
        assert isinstance(self.listening, Ports)
        return self.listening

    @signals.deferred()
    def is_ready(self) -> bool:
        """Whether it has loaded its models.

        Raises:
            LaunchError: it never will.
            StuckStart: it never will, and another start may well.
        """
        code = self.process.poll()
        if code is not None:
            raise LaunchError(f"Triton ended with exit code {code} before it was ready; {self._where}")
        if monotonic() > self._deadline:
            raise LaunchError(f"Triton was not ready after {START_TIMEOUT_S:.0f} s; {self._where}")
        self._check_progress()
        try:
            # it listens when all models have been loaded or have failed
            if not self._triton.ServerLive(service_pb2.ServerLiveRequest(), timeout=ANSWER_S).live:
                return False
            versions.check_triton(
                self._triton.ServerMetadata(service_pb2.ServerMetadataRequest(), timeout=ANSWER_S).version
            )
            if not self.listening.is_open():  # gRPC comes first, HTTP and metrics a moment later
                return False
            self._find_loaded()
        except grpc.RpcError:
            return False
        self.pid = next(iter(children(self.process.pid)), 0)
        if not self.pid:
            return False  # it has just ended, which the next look sees
        self._stubs = {pid: heartbeat.Silence(MODEL_SILENT_S) for pid in children(self.pid)}
        for region in regions(self._run.region_prefix):  # they are private from the start, if the guard could see to it
            with suppress(FileNotFoundError):  # of a model that could not be loaded
                region.chmod(0o600)
        return True

    @signals.deferred()
    def failure(self) -> str | None:
        """Why it does not serve any more, None while it does. Triton does not see a lost process of a model by itself,
        see triton_workarounds.py.
        """
        if parent_of(self.pid) is None:
            with suppress(subprocess.TimeoutExpired):  # of the guard, which clears up first
                self.process.wait(CLEAR_UP_S)
        if ended := exit_of(self.process):
            return ended
        for pid, silence in self._stubs.items():
            if parent_of(pid) != self.pid:
                return "has lost a process of its Python models"
            if silence.lasts(heartbeat.last(self._run.path, pid)):
                return f"has a process of a Python model that gave no sign of life for {MODEL_SILENT_S:g} s"
        if self._silence.lasts(self._answers()):
            return f"did not answer for {TRITON_SILENT_S:g} s"
        return None

    def ask_to_end(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        if self.pid:  # first, so that its guard can end, and wait for, what it leaves
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(CLEAR_UP_S)
        end_group(self.process)

    def close(self) -> None:
        """End it, or what of its processes outlives it, and remove the memory that they shared."""
        try:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        finally:  # also on a second Ctrl-C
            self.kill()
            self.process.wait()
            with signals.deferred():
                self._channel.close()
            if isinstance(self.listening, Sockets):
                self.listening.close()
            remove_regions(self._run.region_prefix)
            assert self.process.stdin is not None
            self.process.stdin.close()

    def _check_progress(self) -> None:
        """Raises StuckStart where Triton waits for what never comes; see triton_workarounds.py."""
        if monotonic() - self._looked_at < heartbeat.LOOK_S:
            return
        self._looked_at = monotonic()
        waits = [wait for pid in children(self.process.pid) for wait in [*children(pid, ended=True), *awaited_by(pid)]]
        if self._standstill.lasts(waits or None):
            raise StuckStart(f"Triton came to a standstill as it loaded its models; {self._where}")

    def _find_loaded(self) -> None:
        """Keep of the models those that are ready and whose parts are.

        Raises:
            LaunchError: there is none.
        """
        ready = {name for name in self.models if self._is_model_ready(name)}
        failed = set(self.models) - ready
        self.models = tuple(name for name in self.models if not failed & set(with_parts([name], self._configs)))
        if not self.models:
            raise LaunchError(f"Triton could load none of its models; {self._where}")
        if failed:
            self.left_out.append(f"{', '.join(sorted(failed))}: could not be loaded; {self._where}")

    def _is_model_ready(self, name: str) -> bool:
        return bool(self._triton.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=ANSWER_S).ready)

    def _answers(self) -> int:
        """A number that changes with each answer."""
        if monotonic() - self._asked_at > ANSWER_S and (self._question is None or self._question.done()):
            self._asked_at = monotonic()
            self._n_answers += self._question is not None and self._question.code() is grpc.StatusCode.OK
            self._question = self._triton.ServerLive.future(service_pb2.ServerLiveRequest(), timeout=TRITON_SILENT_S)
        return self._n_answers


@contextmanager
def spawn_triton(
    served: ServedModels,
    listening: Ports | Sockets,
    run: RunFolder,
    *,
    text_cache_mb: int = 0,
    locked_apis: Sequence[str] = (),
    configs: Mapping[str, Message] = MappingProxyType({}),
    log: Path | None = None,
) -> Iterator[TritonServer]:
    """Start Triton for the `with` block, after which it has ended; it is ready when `is_ready` says so.

    Args:
        text_cache_mb: memory for the answers of models whose config says `response_cache`; 0 is no cache.
        locked_apis: those of Triton that nobody may call, as `model-repository`; see its --http-restricted-api.
        configs: by model, in place of those in the repository.
        log: file for Triton's log; None leaves it on this process's stdout and stderr.

    Raises:
        LaunchError: Triton is not installed, or has no cache or no backend for a model, or the models have changed.
    """
    installation = find_triton()
    models = served.unchanged()
    check_served(models, served.configs, installation.backends)
    if not installation.is_own:
        versions.check_onnxruntime()
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(run))
        backends = compose_backends(installation, scratch)
        packages = compose_packages(installation, scratch)
        prefix = run.region_prefix
        command = [
            *(sys.executable, "-P", "-m", "medimage_server.guard", str(run.path), str(installation.executable)),
            f"--model-repository={select_models(served.repository, models, scratch, configs)}",
            f"--backend-directory={backends}",
            *(f"--backend-config={name},shm-region-prefix-name={prefix}" for name in python_backends(backends)),
            "--disable-auto-complete-config",
            # one model that cannot be loaded does not keep the others from being served
            "--exit-on-error=false",
            "--strict-readiness=false",
            *listening.options(),
            "--model-control-mode=none",  # no caller may load or unload
            *cache_options(installation, text_cache_mb),
            *lock_options(locked_apis, listening),
        ]
        output = stack.enter_context(log.open("wb")) if log else None
        process = subprocess.Popen(
            command,
            env={**environment(installation), **packages, heartbeat.FOLDER_VARIABLE: str(run.path)},
            stdin=subprocess.PIPE,  # whose end tells the guard that we have ended
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            pass_fds=[run.lock],
            cwd=run.path,  # Triton's Python models import from it first, and others may write where we were started
            start_new_session=True,  # Ctrl-C reaches us alone
        )
        server = TritonServer(process, listening, run, served, models, log)
        stack.callback(server.close)
        yield server


@contextmanager
def run_triton(
    repository: Path,
    *,
    models: Sequence[str] = (),
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    text_cache_mb: int = 0,
    log: Path | None = None,
) -> Iterator[TritonServer]:
    """Serve a model repository to this machine for the `with` block, which begins when Triton is ready.

    Args:
        repository: folder with one subfolder per model.
        models: serve only these and the models they are made of; empty means all that were exported.
        http_port, grpc_port, metrics_port: 0 picks a free one.
        text_cache_mb, log: see `spawn_triton`.

    Raises:
        LaunchError: see `spawn_triton`; or a port is taken, the repository is incomplete, or Triton did not become
            ready.
    """
    served = ServedModels(repository, models)
    wanted = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
    ports = Ports("127.0.0.1", **choose_ports("127.0.0.1", wanted))
    with run_folder() as run:
        triton = Service("Triton", lambda: spawn_triton(served, ports, run, text_cache_mb=text_cache_mb, log=log))
        with running([triton], tell=logging.getLogger(__name__).warning) as (server,):
            yield server


@contextmanager
def scratch_folder(run: RunFolder) -> Iterator[Path]:
    """A temporary folder for programs, which /dev/shm may not allow; the run's folder has a link to it."""
    link = run.path / SCRATCH
    # on a file system that has turned read-only it stays, and whoever serves does not end of that
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        yield Path(name)


def lock_options(apis: Sequence[str], listening: Ports | Sockets) -> list[str]:
    """Close APIs to every caller."""
    if not apis:
        return []
    rule = f"{','.join(apis)}:{IMPOSSIBLE_HEADER}"
    over_http = isinstance(listening, Ports) and listening.http is not None
    return [f"--grpc-restricted-protocol={rule}", *([f"--http-restricted-api={rule}"] if over_http else [])]


def select_models(
    repository: Path, models: Sequence[str], scratch: Path, configs: Mapping[str, Message] = MappingProxyType({})
) -> Path:
    """A repository of links to these models alone, some with another config: Triton serves all that it finds."""
    selected = scratch / "models"
    selected.mkdir()
    for model in models:
        if model not in configs:
            (selected / model).symlink_to(repository / model)
            continue
        (selected / model).mkdir()
        (selected / model / "config.pbtxt").write_text(text_format.MessageToString(configs[model]))
        for version in (repository / model).glob("[0-9]*"):
            (selected / model / version.name).symlink_to(version)
    return selected
