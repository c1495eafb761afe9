"""`medimage serve` and its launcher, as far as they go without a Triton: what they check before, and what they say."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medimage_export.repository import copy_unexported
from medimage_server import launcher
from medimage_server.endpoint.worker_pool import bound
from medimage_server.errors import LaunchError, StuckStart
from medimage_server.installation import (
    cache_options,
    compose_backends,
    environment,
    find_onnxruntime_backend,
    find_triton,
)
from medimage_server.launcher import run_triton
from medimage_server.listening import choose_ports
from medimage_server.model_repository import (
    ServedModels,
    check_complete,
    check_served,
    exported_models,
    read_configs,
    with_parts,
)
from medimage_server.processes import children
from tests.paths import REPOSITORY, ROOT
from tests.repository.looked_at import LookedAt, launched
from tests.repository.onnx_models import write_text_encoder
from tests.waiting import wait_until


@pytest.fixture
def unexported(tmp_path):
    return copy_unexported(REPOSITORY, tmp_path / "models")


@pytest.fixture
def exported(unexported):
    for encoder in ("image_encoder", "text_encoder"):
        write_text_encoder(unexported / encoder / "1/model.onnx")
    return unexported


def install_triton(folder, monkeypatch, script, *backends):
    """A container's layout around a stand-in for tritonserver, found on PATH."""
    for backend in backends:
        (folder / "backends" / backend).mkdir(parents=True)
        (folder / "backends" / backend / "library.so").touch()
    (folder / "caches/local").mkdir(parents=True)
    (folder / "bin").mkdir(parents=True)
    executable = folder / "bin/tritonserver"
    executable.write_text(f"#!/bin/sh\n{script}\n")
    executable.chmod(0o755)
    monkeypatch.setenv("PATH", f"{executable.parent}:{os.environ['PATH']}")


def serve(*arguments):
    command = [sys.executable, "-c", "from medimage_server.cli import serve; serve()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_serve_without_a_repository_says_so_in_one_line(tmp_path):
    done = serve("--repository", tmp_path / "absent")
    assert done.returncode == 1
    assert done.stderr == f"Error: model repository {tmp_path}/absent does not exist; name one with --repository\n"


def test_serve_without_exported_weights_names_the_models_and_the_command(unexported):
    done = serve("--repository", unexported)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: no exported weights for cxr_image_encoder, image_encoder, text_encoder: "
        f"run `medimage export MODEL --checkpoint DIR --repository {unexported}`\n"
    )


def test_serve_of_an_impossible_port_is_bad_use():
    assert serve("--http-port", "70000").returncode == 2


def test_score_port_that_is_taken_is_named_and_nothing_of_it_stays_open():
    n_open = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                LaunchError, match=f"^cannot open score port 127.0.0.1:{port}: Address already in use$"
            ) as raised,
            bound("127.0.0.1", port),
        ):
            pytest.fail("the block is not entered")
        assert len(os.listdir("/proc/self/fd")) == n_open + 1, raised  # whose traceback would keep the socket


def test_serve_on_a_taken_port_names_it(exported):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--repository", exported, "--http-port", 0, "--grpc-port", port, "--metrics-port", 0)
    assert done.returncode == 1
    assert done.stderr == f"Error: cannot open grpc port 127.0.0.1:{port}: Address already in use\n"


def test_serve_passes_on_that_triton_failed_to_start(exported, tmp_path, monkeypatch):
    install_triton(tmp_path / "triton", monkeypatch, "exit 3", "python", "onnxruntime")
    done = serve("--repository", exported, "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert done.returncode == 1
    assert done.stderr == "Error: Triton ended with exit code 3 before it was ready; see its log above\n"


def test_text_cache_is_asked_of_triton_in_bytes_and_0_asks_for_none(tmp_path, monkeypatch):
    install_triton(tmp_path / "triton", monkeypatch, "", "python")
    caches = tmp_path / "triton/caches"
    assert cache_options(find_triton(), 3) == [f"--cache-directory={caches}", "--cache-config=local,size=3145728"]
    assert cache_options(find_triton(), 0) == []


def test_triton_without_a_cache_is_named_with_the_option_that_does_without(exported, tmp_path, monkeypatch):
    install_triton(tmp_path / "triton", monkeypatch, "exit 3", "python", "onnxruntime")
    (tmp_path / "triton/caches/local").rmdir()
    done = serve("--repository", exported, "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert done.returncode == 1
    assert done.stderr == f"Error: this Triton has no cache in {tmp_path}/triton/caches/local; use --text-cache-mb 0\n"


def test_repository_without_models_is_refused(tmp_path):
    with pytest.raises(LaunchError, match=r"holds no \*/config.pbtxt"), run_triton(tmp_path):
        pass


def test_repository_with_a_broken_config_names_file_and_line(unexported):
    config = unexported / "image_encoder/config.pbtxt"
    config.write_text('name: "image_encoder"\nmax_batch: 3\n')
    configs, faults = read_configs(unexported)
    assert "image_encoder" not in configs
    assert re.match(r".*image_encoder/config.pbtxt: line 2:1 : .*max_batch", faults["image_encoder"])


def test_repository_with_broken_configs_alone_is_refused_with_the_first(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text("max_batch: 3\n")
    with pytest.raises(LaunchError, match=r"/a/config.pbtxt: line 1:1 : "):
        read_configs(tmp_path)


def test_chosen_ensemble_brings_its_steps_before_itself(unexported):
    assert with_parts(["medimageinsight_text"], read_configs(unexported)[0]) == [
        "text_tokenizer",
        "text_encoder",
        "text_embedding",
        "medimageinsight_text",
    ]


def test_chosen_model_brings_the_models_that_it_calls(unexported):
    assert with_parts(["cxrreportgen"], read_configs(unexported)[0]) == [
        "cxr_image_preprocessing",
        "cxr_image_encoder",
        "cxrreportgen_stream",
        "cxrreportgen",
    ]


def test_what_was_not_exported_is_left_out_unless_it_is_asked_for(unexported):
    write_text_encoder(unexported / "text_encoder/1/model.onnx")
    assert exported_models(unexported, read_configs(unexported)[0]) == [
        "text_tokenizer",
        "text_encoder",
        "text_embedding",
        "medimageinsight_text",
    ]


def test_chosen_model_that_is_not_there_is_refused_with_those_that_are(unexported):
    with pytest.raises(LaunchError, match="no model medimageinsigt in the repository; it has cxr_image_encoder, cxr"):
        with_parts(["medimageinsigt"], read_configs(unexported)[0])


def test_weights_are_asked_for_only_of_the_models_to_be_served(unexported):
    write_text_encoder(unexported / "text_encoder/1/model.onnx")
    configs, _ = read_configs(unexported)
    check_complete(unexported, with_parts(["medimageinsight_text"], configs), configs)
    with pytest.raises(LaunchError, match=r"^no exported weights for image_encoder: run"):
        check_complete(unexported, with_parts(["medimageinsight"], configs), configs)


@pytest.fixture
def planned(unexported):
    """A repository whose text encoder is a TensorRT plan, which is not exported yet."""
    config = unexported / "text_encoder/config.pbtxt"
    served = config.read_text().replace('backend: "onnxruntime"', 'platform: "tensorrt_plan"')
    config.write_text(served.replace("model.onnx", "model.plan"))
    return unexported


def test_tensorrt_plan_is_asked_for_where_it_is_configured(planned):
    configs = read_configs(planned)[0]
    with pytest.raises(LaunchError, match=r"^no exported weights for text_encoder: run .* --format tensorrt`$"):
        check_complete(planned, ["text_encoder"], configs)
    (planned / "image_encoder/1/model.onnx").touch()
    assert "text_encoder" not in exported_models(planned, configs)
    (planned / "text_encoder/1/model.plan").touch()
    check_complete(planned, ["text_encoder"], configs)
    assert "text_encoder" in exported_models(planned, configs)


def test_tensorrt_plans_are_refused_by_a_triton_without_their_backend(planned, tmp_path, monkeypatch):
    (planned / "text_encoder/1/model.plan").touch()
    install_triton(tmp_path / "triton", monkeypatch, "exit 3", "python", "onnxruntime")
    done = serve("--repository", planned, "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: text_encoder: TensorRT plans, and this Triton has no {tmp_path}/triton/backends/tensorrt; serve them "
        "with the Triton in NVIDIA's container, or run `medimage export` with --format onnx\n"
    )
    with pytest.raises(LaunchError, match=r"^text_encoder: TensorRT plans"):
        check_served(["text_tokenizer", "text_encoder"], read_configs(planned)[0], tmp_path)


def test_tensorrt_plans_are_served_by_a_triton_with_their_backend(planned, tmp_path, monkeypatch):
    (planned / "text_encoder/1/model.plan").touch()
    install_triton(tmp_path / "triton", monkeypatch, "exit 3", "python", "onnxruntime", "tensorrt")
    done = serve("--repository", planned, "--http-port", 0, "--grpc-port", 0, "--metrics-port", 0)
    assert done.stderr == "Error: Triton ended with exit code 3 before it was ready; see its log above\n"


def test_python_model_without_its_file_is_named_and_not_waited_for(exported):
    (exported / "text_tokenizer/1/model.py").unlink()
    with pytest.raises(LaunchError, match=r"^no model.py for text_tokenizer: run `medimage init"):
        ServedModels(exported, ["medimageinsight_text"])
    served = ServedModels(exported)
    assert served.names == ["image_preprocessing", "image_encoder", "medimageinsight_image"]
    assert served.faults == {"text_tokenizer": "text_tokenizer: no model.py; `medimage init` restores it"}


def test_one_port_for_two_services_is_refused():
    with pytest.raises(LaunchError, match=r"^ports http 8000, grpc 8000, metrics 0 are not all different$"):
        choose_ports("127.0.0.1", {"http": 8000, "grpc": 8000, "metrics": 0})


def test_free_ports_differ_from_each_other():
    ports = choose_ports("127.0.0.1", dict.fromkeys(["http", "grpc", "metrics"], 0))
    assert len(set(ports.values())) == 3
    assert all(ports.values())


def test_host_that_is_not_this_machine_is_refused():
    with pytest.raises(LaunchError, match=r"^cannot open http port 192\.0\.2\.1:0: "):  # TEST-NET-1, RFC 5737
        choose_ports("192.0.2.1", {"http": 0})


def test_native_onnxruntime_backend_is_used_as_it_is(tmp_path, monkeypatch):
    install_triton(tmp_path / "triton", monkeypatch, "", "python", "onnxruntime")
    assert compose_backends(find_triton(), tmp_path) == tmp_path / "triton/backends"


def test_missing_onnxruntime_backend_is_replaced_by_ours(tmp_path, monkeypatch):
    install_triton(tmp_path / "triton", monkeypatch, "", "python")
    composed = compose_backends(find_triton(), tmp_path)
    assert (composed / "python/library.so").is_file()
    assert (composed / "onnxruntime/model.py").is_file()
    assert not (composed / "tensorrt").exists()


def test_tensorrt_backend_is_kept_beside_our_onnxruntime_backend(tmp_path, monkeypatch):
    install_triton(tmp_path / "triton", monkeypatch, "", "python", "tensorrt")
    composed = compose_backends(find_triton(), tmp_path)
    assert sorted(path.name for path in composed.iterdir()) == ["onnxruntime", "python", "tensorrt"]
    assert (composed / "tensorrt/library.so").is_file()


@pytest.mark.parametrize(
    ("package", "backends"),
    [("medimage_server", "medimage_server/backends"), ("server/medimage_server", "server/backends")],
    ids=["wheel", "checkout"],
)
def test_our_onnxruntime_backend_is_found_in_a_wheel_and_in_a_checkout(tmp_path, package, backends):
    backend = tmp_path / backends / "onnxruntime"
    backend.mkdir(parents=True)
    assert find_onnxruntime_backend(tmp_path / package) == backend


def test_no_triton_anywhere_names_the_command_that_brings_one(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(LaunchError, match=r"^no tritonserver .* run `medimage triton-env`, which gives Triton an "):
        find_triton()


def test_environment_has_no_keys_of_callers(tmp_path, monkeypatch):
    install_triton(tmp_path / "triton", monkeypatch, "", "python")
    monkeypatch.setenv("MEDIMAGE_KEYS", "key-of-the-endpoint")
    monkeypatch.setenv("MEDIMAGE_WORKERS", "3")
    given = environment(find_triton())
    assert given["MEDIMAGE_WORKERS"] == "3"
    assert not any("key-of-the-endpoint" in value for value in given.values())


def test_environment_puts_this_python_first_on_the_path(tmp_path, monkeypatch):
    install_triton(tmp_path / "triton", monkeypatch, "", "python")
    path = environment(find_triton())["PATH"]
    assert path.split(":")[0] == str(Path(sys.executable).parent)


# ---- a Triton that is there


def test_triton_that_is_too_old_is_refused_as_soon_as_it_answers():
    triton = LookedAt()
    with launched(triton) as server:
        assert not server.is_ready()
        triton.is_live, triton.version = True, "2.45.0"
        with pytest.raises(LaunchError, match=r"^this is Triton 2\.45\.0; expected 2\.51 "):
            server.is_ready()


def test_signal_within_a_look_is_acted_on_when_triton_has_answered():
    """An exception between gRPC's lines would leave a channel that waits for ever when it is closed."""
    program = (
        "import os, signal, sys, time\n"
        "from tests.repository.looked_at import LookedAt, launched\n"
        "class Signalled(LookedAt):\n"
        "    def ServerLive(self, request, context):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0.3)\n"
        "        print('answered', flush=True)\n"
        "        return super().ServerLive(request, context)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('signalled'))\n"
        "with launched(Signalled()) as server:\n"
        "    server.is_ready()\n"
        "    print('went on')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60.0)
    last = ended.stderr.splitlines()[-1]  # before it, gRPC may write that the server's end was seen
    assert (ended.returncode, ended.stdout, last) == (1, "answered\n", "signalled")


def test_start_in_which_a_process_has_ended_unseen_is_stuck(monkeypatch):
    """Triton waits for the first word of a Python model's process without a limit."""
    monkeypatch.setattr(launcher, "STUCK_S", 0.0)
    unseen = "import os, time; os.fork() or os._exit(0); time.sleep(60)"
    guard = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {unseen!r}])"
    with launched(LookedAt(), (sys.executable, "-c", guard)) as server:
        wait_until(lambda: any(children(pid, ended=True) for pid in children(server.process.pid)))
        with pytest.raises(StuckStart, match=r"^Triton came to a standstill as it loaded its models; see its log"):
            wait_until(server.is_ready)
