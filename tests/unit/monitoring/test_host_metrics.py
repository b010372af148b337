"""Metrics of what a host depends on: packages, name servers, mail servers, certificates."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
import time

import pytest
from ansible.module_utils.shiftmaster.host import probe
from ansible.module_utils.shiftmaster.monitoring import host_metrics
from ansible.module_utils.shiftmaster.monitoring.metrics import exposition

NONE = {"listeners": [], "mail_servers": []}


def text_of(found):
    return exposition(host_metrics.HELP, found)


@contextlib.contextmanager
def serving(handle):
    """A server on localhost that treats each connection so; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _address = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        handle(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def elsewhere(monkeypatch):
    """This host has no packages and no name servers."""
    monkeypatch.setattr(host_metrics, "pending_updates", lambda: {"security": 0})
    monkeypatch.setattr(host_metrics, "name_servers", lambda text: [])


# --- packages --------------------------------------------------------------------------------------------------------


def test_updates_are_counted_once_an_hour(monkeypatch, elsewhere):
    counts = iter([2, 5])
    monkeypatch.setattr(host_metrics, "pending_updates", lambda: {"security": next(counts)})
    text = text_of(host_metrics.collect(NONE, ""))
    assert f"\n{host_metrics.UPDATES} 2\n" in text
    again = text_of(host_metrics.collect(NONE, text))
    assert f"\n{host_metrics.UPDATES} 2\n" in again
    now = time.time()
    for moved in (3601, -60):  # Also after a clock was put back.
        monkeypatch.setattr(host_metrics.time, "time", lambda moved=moved: now + moved)
        monkeypatch.setattr(host_metrics, "pending_updates", lambda: {"security": 5})
        assert f"\n{host_metrics.UPDATES} 5\n" in text_of(host_metrics.collect(NONE, again))


def test_without_apt_the_other_metrics_are_written(monkeypatch, elsewhere, capsys):
    def fails():
        raise probe.ProbeError("error", "apt", "E: dpkg was interrupted")

    monkeypatch.setattr(host_metrics, "pending_updates", fails)
    text = text_of(host_metrics.collect(NONE, ""))
    assert "shiftmaster_host_reboot_required 0\n" in text and f"\n{host_metrics.UPDATES} -1\n" in text
    # That does not count as a result: the next run counts again.
    monkeypatch.setattr(host_metrics, "pending_updates", lambda: {"security": 3})
    assert host_metrics.collect(NONE, text)[host_metrics.UPDATES, ""] == 3
    assert "dpkg was interrupted" in capsys.readouterr().err


# --- name servers and mail servers -----------------------------------------------------------------------------------


def test_only_name_servers_in_use_are_queried():
    text = "# nameserver 192.0.2.9\n nameserver 192.0.2.1\noptions rotate\nnameserver ::1\nnameserver a\nnameserver b\n"
    assert host_metrics.name_servers(text) == ["192.0.2.1", "::1", "a"]


def test_a_name_server_is_up_where_it_responds(monkeypatch, elsewhere):
    monkeypatch.setattr(host_metrics, "name_servers", lambda text: ["192.0.2.1", "192.0.2.2"])
    monkeypatch.setattr(host_metrics, "name_server", lambda address, *more: {"responds": address.endswith("1")})
    found = host_metrics.collect(NONE, "")
    assert found[host_metrics.NAME_SERVER, 'server="192.0.2.1"'] == 1
    assert found[host_metrics.NAME_SERVER, 'server="192.0.2.2"'] == 0


@pytest.mark.parametrize(
    ("greeting", "up"),
    [(b"220 mail ESMTP\r\n", 1), (b"220-mail\r\n" * 100000, 1), (b"421 too busy\r\n", 0), (b"", 0), (b"HTTP/1.1", 0)],
)
def test_a_mail_server_is_up_where_it_greets(elsewhere, greeting, up):
    with serving(lambda connection: connection.sendall(greeting)) as port:
        server = f"localhost:{port}"
        found = host_metrics.collect({"listeners": [], "mail_servers": [server]}, "")
    assert found[host_metrics.MAIL_SERVER, f'server="{server}"'] == up
    # There is no listener any more.
    assert host_metrics.greets(f"[127.0.0.1]:{port}") is False


def test_a_mail_server_that_does_not_respond_times_out(elsewhere, monkeypatch):
    monkeypatch.setattr(host_metrics.probe, "Deadline", lambda seconds, real=probe.Deadline: real(0.3))
    with serving(lambda connection: connection.recv(1)) as port:
        assert host_metrics.greets(f"localhost:{port}") is False


# --- certificates ----------------------------------------------------------------------------------------------------


def made(directory, days):
    key, certificate = directory / f"{days}.key", directory / f"{days}.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=d",
         "-days", str(days), "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.mark.parametrize("name", ["postgresql", "redis", "etcd"])
def test_the_certificate_of_a_service_is_distinguished_from_its_file(tmp_path, elsewhere, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*made(tmp_path, 3))
    if name == "etcd":
        # It accepts no client without a certificate, and shows its own before.
        context.verify_mode = ssl.CERT_REQUIRED
    renewed, _key = made(tmp_path, 90)

    def handle(connection):
        if name == "postgresql":
            assert connection.recv(8)[4:] == (80877103).to_bytes(4, "big")
            connection.sendall(b"S")
        context.wrap_socket(connection, server_side=True).close()

    with serving(handle) as port:
        config = {"listeners": [{"name": name, "port": port, "file": str(renewed)}], "mail_servers": []}
        found = host_metrics.collect(config, "")
    days = {
        how: round((found[host_metrics.CERTIFICATE, f'listener="{name}",of="{how}"'] - time.time()) / 86400)
        for how in ("presented", "file")
    }
    assert days == {"presented": 3, "file": 90}
    # A service that is down has alerts of its own.
    assert host_metrics.certificate_ends(config["listeners"][0]) == {}


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_is_in_prometheus_format(tmp_path, elsewhere):
    path = tmp_path / "shiftmaster_host.prom"
    assert host_metrics.main(str(path), json.dumps({"listeners": [], "mail_servers": ["localhost:1"]})) == 0
    lines = path.read_text().splitlines()
    assert 'shiftmaster_host_mail_server_up{server="localhost:1"} 0' in lines
    series = [line for line in lines if not line.startswith("#")]
    types = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) and {line.split("{")[0].split()[0] for line in series} == set(types)
    assert path.stat().st_mode & 0o777 == 0o644


# --- file systems ----------------------------------------------------------------------------------------------------


def test_errors_of_a_file_system_are_exported(tmp_path, monkeypatch, elsewhere):
    for device, errors in {"sda1": "0\n", "dm-0": "7\n", "features": None, "sdb1": "\n"}.items():
        (tmp_path / "sys/fs/ext4" / device).mkdir(parents=True)
        if errors is not None:
            (tmp_path / "sys/fs/ext4" / device / "errors_count").write_text(errors)
    found = host_metrics.filesystem_errors(lambda path: str(tmp_path) + path)
    assert found == {"sda1": 0, "dm-0": 7}
    monkeypatch.setattr(host_metrics, "filesystem_errors", lambda: found)
    text = text_of(host_metrics.collect(NONE, ""))
    assert '\nshiftmaster_host_filesystem_errors{device="dm-0"} 7\n' in text


# --- scheduled tasks -------------------------------------------------------------------------------------------------


def test_a_scheduled_task_is_as_old_as_its_last_success(tmp_path):
    def path_of(path):
        return str(tmp_path) + path

    assert host_metrics.task_ages(path_of) == {}
    (tmp_path / "etc/shiftmaster").mkdir(parents=True)
    (tmp_path / "var/lib/shiftmaster-tasks").mkdir(parents=True)
    (tmp_path / "etc/shiftmaster/tasks.json").write_text('{"clear-sessions": 26, "never": 1}')
    success = tmp_path / "var/lib/shiftmaster-tasks/clear-sessions"
    success.touch()
    os.utime(success, (1000, 1000))
    assert host_metrics.task_ages(path_of) == {"clear-sessions": (1000, 26 * 3600), "never": (0, 3600)}
    for damaged in ("[1]", '{"a": []}', "{"):
        (tmp_path / "etc/shiftmaster/tasks.json").write_text(damaged)
        assert host_metrics.task_ages(path_of) == {}


def test_scheduled_tasks_are_exported(monkeypatch, elsewhere):
    monkeypatch.setattr(host_metrics, "task_ages", lambda: {"report": (1000, 3600)})
    text = text_of(host_metrics.collect(NONE, ""))
    assert 'shiftmaster_host_task_success_timestamp_seconds{task="report"} 1000\n' in text
    assert 'shiftmaster_host_task_max_age_seconds{task="report"} 3600\n' in text
