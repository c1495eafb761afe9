"""Options of the endpoint: where they come from, what they become, and what is refused before anything starts."""

import os
import ssl
import stat
import subprocess
from hashlib import sha256

import click
import pytest
from click.testing import CliRunner

from medimage_server.cli import serve
from medimage_server.endpoint import private_files
from medimage_server.endpoint.options import checked_settings, endpoint_options
from medimage_server.endpoint.settings import EndpointOptions, EndpointSettings
from medimage_server.errors import LaunchError

KEY = "key-of-the-endpoint"


@pytest.fixture
def options():
    """The options that a command line and an environment give."""

    def options(*args, **environment) -> EndpointOptions:
        given = []

        @click.command()
        @endpoint_options
        def command(endpoint):
            given.append(endpoint)

        result = CliRunner().invoke(command, [str(arg) for arg in args], env=environment)
        assert result.exit_code == 0, result.output
        return given[0]

    return options


@pytest.fixture
def settings(options, monkeypatch):
    monkeypatch.delenv("MEDIMAGE_KEYS", raising=False)

    def settings(*args) -> EndpointSettings:
        return checked_settings(options(*args), tritons=("grpc://a:1",), triton_metrics="http://a:2/metrics")

    return settings


def test_defaults_are_those_of_the_documentation(settings):
    assert settings() == EndpointSettings(tritons=("grpc://a:1",), triton_metrics="http://a:2/metrics")
    assert settings() == EndpointSettings(
        tritons=("grpc://a:1",),
        score_host="127.0.0.1",
        workers=1,
        layout="rows",
        max_requests=64,
        max_body_mb=64,
        max_in_flight_mb=256,
        timeout_s=120.0,
        report_timeout_s=600.0,
        drain_delay_s=0.0,
        drain_limit_s=30.0,
        triton_metrics="http://a:2/metrics",
    )


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("score_host", "::1", "::1"),
        ("workers", "3", 3),
        ("layout", "card", "card"),
        ("max_requests", "7", 7),
        ("max_body_mb", "5", 5),
        ("max_in_flight_mb", "6", 6),
        ("timeout", "1.5", 1.5),
        ("report_timeout", "2.5", 2.5),
        ("drain_delay", "3.5", 3.5),
        ("drain_limit", "4.5", 4.5),
        ("access_log", "-", "-"),
    ],
)
def test_option_comes_from_the_command_line_or_its_variable(options, name, text, value):
    flag, variable = f"--{name.replace('_', '-')}", f"MEDIMAGE_{name.upper()}"
    field = name if hasattr(EndpointOptions, name) else f"{name}_s"
    assert getattr(options(flag, text), field) == value
    assert getattr(options(**{variable: text}), field) == value
    assert getattr(options(flag, text, **{variable: "not read"}), field) == value


def test_paths_come_from_their_variables_too(options, tmp_path):
    for name in ("keys_file", "tls_certificate", "tls_key"):
        assert getattr(options(**{f"MEDIMAGE_{name.upper()}": str(tmp_path / "x")}), name) == str(tmp_path / "x")


@pytest.mark.parametrize(
    "args",
    [
        ["--workers", "0"],
        ["--workers", "65"],
        ["--layout", "table"],
        ["--max-requests", "0"],
        ["--max-body-mb", "0"],
        ["--timeout", "0"],
        ["--report-timeout", "-1"],
        ["--drain-delay", "-1"],
        ["--drain-limit", "0"],
    ],
)
def test_value_out_of_range_is_refused(args):
    @click.command()
    @endpoint_options
    def command(endpoint):
        raise AssertionError

    result = CliRunner().invoke(command, args)
    assert (result.exit_code, args[0] in result.output) == (2, True)


@pytest.mark.parametrize("workers, max_requests", [(1, 64), (2, 32), (3, 22), (64, 1)])
def test_bounds_are_divided_by_the_workers(settings, workers, max_requests):
    divided = settings("--workers", workers)
    assert divided.worker_max_requests == max_requests
    assert divided.worker_max_in_flight_bytes == 256 * 2**20 // workers
    assert divided.max_body_bytes == 64 * 2**20
    assert settings("--workers", workers, "--max-requests", 1).worker_max_requests == 1


def test_keys_of_the_variable_become_digests_and_leave_the_environment(settings, monkeypatch):
    monkeypatch.setenv("MEDIMAGE_KEYS", f" {KEY}\n{KEY}-2\t")
    digests = settings().key_digests
    assert digests == tuple(sha256(key.encode()).hexdigest() for key in (KEY, f"{KEY}-2"))
    assert settings().key_digests == ()  # of the environment that a child would inherit


def test_file_of_keys_is_checked_and_named_in_full(settings, tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    monkeypatch.chdir(tmp_path)
    checked = settings("--keys-file", "keys")
    assert (checked.keys_file, checked.key_digests) == (str(tmp_path / "keys"), ())
    assert KEY not in checked.to_json()


@pytest.mark.parametrize(
    "content, variable, reason",
    [
        ("short\n", "", "line 1 of .*keys: expected 16 to 512"),
        ("", "", "holds no key"),
        (None, "", "cannot read .*keys: No such file or directory"),
        (f"{KEY}\n", "short", "key 1 of MEDIMAGE_KEYS: expected 16 to 512"),
    ],
)
def test_wrong_keys_are_refused(settings, tmp_path, monkeypatch, content, variable, reason):
    monkeypatch.setenv("MEDIMAGE_KEYS", variable)
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(LaunchError, match=reason) as error:
        settings("--keys-file", tmp_path / "keys")
    assert "short" not in str(error.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "ward.example", "127.0.0.1.example", ""])
def test_network_is_not_opened_without_keys(settings, host, monkeypatch, tmp_path):
    with pytest.raises(LaunchError, match=r"opens the endpoint to the network, and there are no keys: .*MEDIMAGE_KEYS"):
        settings("--score-host", host)
    monkeypatch.setenv("MEDIMAGE_KEYS", KEY)
    assert settings("--score-host", host).key_digests
    (tmp_path / "keys").write_text(KEY)
    assert settings("--score-host", host, "--keys-file", tmp_path / "keys").keys_file


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_may_ask_without_keys(settings, host):
    assert settings("--score-host", host).key_digests == ()


def make_certificate(folder, name):
    """A self-signed certificate and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, "-keyout", key, "-out", certificate, "-subj", "/CN=x"], check=True, capture_output=True)
    return certificate, key


def test_tls_needs_a_certificate_and_the_key_that_fits(settings, tmp_path):
    certificate, key = make_certificate(tmp_path, "a")
    other, _ = make_certificate(tmp_path, "b")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    taken = settings("--tls-certificate", certificate, "--tls-key", key)
    assert (taken.tls_certificate, taken.tls_key) == (str(certificate), str(key))
    for args, reason in [
        (["--tls-certificate", certificate], "TLS needs both"),
        (["--tls-key", key], "TLS needs both"),
        (["--tls-certificate", other, "--tls-key", key], "they do not fit"),
        (["--tls-certificate", key, "--tls-key", certificate], "they do not fit"),
        (["--tls-certificate", tmp_path / "none", "--tls-key", key], "No such file or directory"),
        (["--tls-certificate", certificate, "--tls-key", tmp_path / "none"], "No such file or directory"),
    ]:
        with pytest.raises(LaunchError, match=reason):
            settings(*args)


@pytest.fixture
def open_files(settings, tmp_path, capsys):
    """The lines on standard error for the three files with these rights."""
    certificate, key = make_certificate(tmp_path, "a")
    keys, log = tmp_path / "the keys", tmp_path / "log"
    keys.write_text(f"{KEY}\n")

    def open_files(rights):
        log.touch()
        for file in (keys, key, log):
            file.chmod(rights)
        settings("--keys-file", keys, "--tls-certificate", certificate, "--tls-key", key, "--access-log", log)
        return capsys.readouterr().err.splitlines()

    return open_files


@pytest.mark.parametrize("rights", [0o644, 0o640, 0o604, 0o666, 0o620, 0o602])
def test_file_that_others_can_read_or_change_draws_a_warning(open_files, tmp_path, rights):
    assert open_files(rights) == [
        f"warning: {tmp_path}/the keys is open to others; chmod 600 '{tmp_path}/the keys'",
        f"warning: {tmp_path}/a.key is open to others; chmod 600 {tmp_path}/a.key",
        f"warning: {tmp_path}/log is open to others; chmod 600 {tmp_path}/log",
    ]


@pytest.mark.parametrize("rights", [0o600, 0o400, 0o700, 0o711])
def test_file_of_this_user_alone_draws_none(open_files, rights):
    assert open_files(rights) == []


def test_rights_of_the_group_count_where_they_give_more_than_ours(open_files, tmp_path, monkeypatch):
    monkeypatch.setattr(private_files, "CREDENTIALS", tmp_path)  # of systemd
    assert open_files(0o440) == []
    assert len(open_files(0o444)) == 3
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # another's, which we read as one of its group
    assert open_files(0o640) == []
    assert open_files(0o644)[2] == (
        f"warning: {tmp_path}/log is open to others; give it to the user who serves, and chmod 600 {tmp_path}/log"
    )


def test_log_is_made_for_this_user_alone_and_else_left_as_it_is(settings, tmp_path, capsys):
    mask = os.umask(0o022)
    try:
        settings("--access-log", tmp_path / "log")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
    for target in ("/dev/null", "-"):  # which are no files to warn of
        settings("--access-log", target)
    assert capsys.readouterr().err == ""
    (tmp_path / "log").chmod(0o640)
    settings("--access-log", tmp_path / "log")
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


def test_log_that_cannot_be_written_is_refused(settings, tmp_path):
    with pytest.raises(LaunchError, match=r"^cannot write --access-log .*none/log: No such file or directory$"):
        settings("--access-log", tmp_path / "none" / "log")
    (tmp_path / "log").write_text("before\n")
    assert settings("--access-log", tmp_path / "log").access_log == str(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "before\n"
    assert settings("--access-log", "-").access_log == "-"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_network_without_tls_draws_a_warning(host, settings, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("MEDIMAGE_KEYS", KEY)
    settings("--score-host", host)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {host} is on a network, and keys, images and texts travel unencrypted: give ")
    monkeypatch.setenv("MEDIMAGE_KEYS", KEY)
    certificate, key = make_certificate(tmp_path, "tls")
    settings("--score-host", host, "--tls-certificate", certificate, "--tls-key", key)
    assert "unencrypted" not in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_no_tls(host, settings, capsys):
    settings("--score-host", host)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_triton_on_a_network_draws_a_warning(host, warned, tmp_path):
    result = CliRunner().invoke(serve, ["--host", host, "--repository", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert (f"warning: Triton on {host} takes requests from anyone who reaches its ports" in result.stderr) == warned
