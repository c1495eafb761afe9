"""A worker's certificate, and one that takes its place."""

import shutil
import signal
import socket
import ssl
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from shutil import which

import pytest

from medimage_server.endpoint.worker_pool import bound, endpoint_services
from medimage_server.supervisor import running
from tests.server.endpoint.asgi import SETTINGS
from tests.waiting import wait_until

KINDS = {"RSA": ["-newkey", "rsa:2048"], "ECDSA": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with NAME.pem and NAME.key of each kind."""
    if which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    for name, options in KINDS.items():
        command = ["openssl", "req", "-x509", *options, "-nodes", "-days=1", "-subj=/CN=localhost"]
        command += [f"-keyout={folder / name}.key", f"-out={folder / name}.pem"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@contextmanager
def served(certificates, folder, name):
    """A worker with a copy of a certificate: its address, its process and its settings."""
    put(certificates, folder, name)
    settings = replace(
        SETTINGS, tritons=("grpc://127.0.0.1:1",), tls_certificate=str(folder / "pem"), tls_key=str(folder / "key")
    )
    with (
        bound("127.0.0.1", 0) as listener,
        running(endpoint_services(settings, listener, folder)) as (worker,),
    ):
        yield listener.getsockname(), worker.process


def put(certificates, folder, name):
    for kind in ("pem", "key"):
        shutil.copy(certificates / f"{name}.{kind}", folder / kind)


def is_given(address, certificates, name):
    """Whether a caller who can read certificates of this kind alone is given the one of our folder."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates / f"{name}.pem")
    context.check_hostname = False
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones have no ciphers for one kind alone
    context.set_ciphers(f"a{name}")
    try:
        with socket.create_connection(address, timeout=10.0) as sock, context.wrap_socket(sock):
            return True
    except (ssl.SSLError, ConnectionError):
        return False


def test_renewed_certificate_of_another_kind_takes_the_place_of_the_old_one(certificates, tmp_path):
    with served(certificates, tmp_path, "RSA") as (address, process):
        assert is_given(address, certificates, "RSA")
        put(certificates, tmp_path, "ECDSA")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: is_given(address, certificates, "ECDSA"))
        assert not is_given(address, certificates, "RSA")


def test_certificate_that_does_not_fit_leaves_the_one_before(certificates, tmp_path, capfd):
    with served(certificates, tmp_path, "RSA") as (address, process):
        shutil.copy(certificates / "ECDSA.pem", tmp_path / "pem")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "they do not fit; the certificate before stays in use" in capfd.readouterr().err)
        assert is_given(address, certificates, "RSA")
