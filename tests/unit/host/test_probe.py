"""The probes against real sockets, files and commands of this machine."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import subprocess
import threading
import time

import pytest
from ansible.module_utils.shiftmaster.host import probe, symptoms

HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Thing: yes\r\nContent-Length: 5\r\n\r\nhello"


@contextlib.contextmanager
def server(talk, path=None, tls=None, backlog=5):
    """Serve connections with talk(connection) in threads; yields the target's (host, port) or path."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(path or ("127.0.0.1", 0))
    listener.listen(backlog)
    open_ones = []

    def accept():
        while True:
            try:
                connection, _address = listener.accept()
            except OSError:
                return
            open_ones.append(connection)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    def serve(connection):
        with contextlib.suppress(OSError):
            if tls:
                connection = tls.wrap_socket(connection, server_side=True)
                open_ones.append(connection)
            if talk(connection) != "keep":
                connection.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield path or listener.getsockname()
    finally:
        # Closing alone leaves the thread in accept(), on a number that another socket gets next.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_ones:
            connection.close()


def response(data):
    def talk(connection):
        connection.recv(65536)
        connection.sendall(data)

    return talk


def silent(_connection):
    return "keep"


def url(address, scheme="http"):
    return "%s://%s:%d" % (scheme, *address)


# --- HTTP ------------------------------------------------------------------------------------------------------------


def test_http_get_returns_status_body_and_headers():
    with server(response(HELLO)) as address:
        result = probe.http_get(url(address), "/x")
    assert (result.status, result.body, result.error) == (200, "hello", None)
    assert result.headers["x-thing"] == "yes"
    assert 0 < result.seconds < 5


def test_http_get_sends_the_given_host_and_headers():
    seen = []

    def talk(connection):
        seen.append(connection.recv(65536).decode())
        connection.sendall(HELLO)

    with server(talk) as address:
        probe.http_get(url(address), "/health/?a=b", host="shift.example", headers={"X-Forwarded-Proto": "https"})
        probe.http_get(url(address) + "/own/path")
    assert seen[0].startswith("GET /health/?a=b HTTP/1.1\r\n")
    assert "Host: shift.example\r\n" in seen[0] and "X-Forwarded-Proto: https\r\n" in seen[0]
    assert seen[1].startswith("GET /own/path HTTP/1.1\r\n") and "Host: 127.0.0.1:%d\r\n" % address[1] in seen[1]


def test_http_get_over_a_unix_socket(tmp_path):
    with server(response(HELLO), path=str(tmp_path / "web.sock")) as path:
        assert probe.http_get("unix:" + path, "/health/").status == 200


def test_a_link_in_place_of_a_unix_socket_is_not_followed(tmp_path):
    """The service owns the directory: root would send its request to another service's socket."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with server(response(HELLO), path=str(tmp_path / "other.sock")) as path:
        os.symlink(path, theirs / "web.sock")
        # A link of root's own leads to the socket of the active slot.
        assert probe.http_get("unix:%s" % (theirs / "web.sock"), "/health/").status == 200
        theirs.chmod(0o777)
        assert probe.http_get("unix:%s" % (theirs / "web.sock"), "/health/").status is None
        (tmp_path / "file").touch()
        assert probe.http_get("unix:%s" % (tmp_path / "file"), "/health/").status is None


def test_http_get_keeps_64_kib_of_a_large_body():
    body = b"x" * 300000
    with server(response(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + body)) as address:
        assert len(probe.http_get(url(address)).body) == 65536


def test_a_chunk_of_a_negative_size_does_not_fill_the_memory():
    sent = 0

    def talk(connection):
        nonlocal sent
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
        for _ in range(300):
            sent += connection.send(bytes(1 << 20))

    with server(talk) as address:
        result = probe.http_get(url(address), timeout=60)
    assert (result.status, result.reason) == (None, "protocol") and sent < 64 << 20


@pytest.mark.parametrize("leads_to", ["/\xe9", "//[", "/a b\x01", "/a"])
def test_a_redirect_to_what_is_no_address_is_a_response(leads_to):
    def talk(connection):
        if connection.recv(65536).startswith(b"GET / "):
            found = "HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % leads_to
            connection.sendall(found.encode("latin-1"))
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with server(talk) as address:
        result = symptoms.get_page(url(address), "/", "localhost", 20)
    assert result.reason == "protocol" or result.status == (200 if leads_to == "/a" else 302), result


def test_a_status_of_500_is_a_response():
    with server(response(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")) as address:
        assert probe.http_get(url(address)).status == 500


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_port_without_a_listener(tmp_path):
    refused = probe.http_get("http://127.0.0.1:%d" % closed_port())
    assert (refused.status, refused.reason) == (None, "refused")
    missing = probe.http_get("unix:%s" % (tmp_path / "none.sock"))
    assert (missing.status, missing.reason) == (None, "missing")
    assert "there is no such socket" in missing.error


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_socket_that_accepts_and_never_responds(scheme):
    with server(silent) as address:
        started = time.monotonic()
        result = probe.http_get(url(address, scheme), timeout=0.5, verify=False)
    assert (result.status, result.reason) == (None, "timeout")
    assert "no response within 0.5 s" in result.error
    assert 0.4 < time.monotonic() - started < 4


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_trickle_does_not_outlast_the_limit(start):
    """A byte now and then resets the timeout of an ordinary socket; the limit is for the total."""

    def talk(connection):
        connection.recv(65536)
        connection.sendall(start)
        for _ in range(60):
            connection.sendall(b"x")
            time.sleep(0.1)

    with server(talk) as address:
        started = time.monotonic()
        result = probe.http_get(url(address), timeout=0.7)
    assert (result.status, result.reason) == (None, "timeout")
    assert time.monotonic() - started < 5


def test_a_unix_socket_whose_queue_is_full_is_waited_for(tmp_path):
    path = str(tmp_path / "full.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    waiting = []
    try:
        for _ in range(3):
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            waiting.append(connection)
            try:
                connection.connect(path)
            except BlockingIOError:
                break
        else:
            pytest.fail("the queue never became full")
        result = probe.http_get("unix:" + path, timeout=0.4)
        assert (result.status, result.reason) == (None, "timeout")
    finally:
        for connection in [*waiting, listener]:
            connection.close()


def test_responses_that_are_not_http():
    with server(response(b"220 mail ready\r\n")) as address:
        result = probe.http_get(url(address))
    assert (result.status, result.reason) == (None, "protocol")


@pytest.mark.parametrize("target", ["ftp://x", "unix:relative", "localhost:80", ""])
def test_an_unreadable_target_is_an_error_of_the_caller(target):
    with pytest.raises(ValueError):
        probe.http_get(target)


# --- TLS and certificates --------------------------------------------------------------------------------------------


def make_certificate(directory, name="shift.example"):
    key, certificate = str(directory / (name + ".key")), str(directory / (name + ".crt"))
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=" + name,
            "-addext",
            "subjectAltName=DNS:" + name,
            "-days",
            "3650",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


def server_tls(pair):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def test_https_verifies_unless_disabled(pair):
    with server(response(HELLO), tls=server_tls(pair)) as address:
        target = url(address, "https")
        refused = probe.http_get(target, host="shift.example")
        trusted = probe.http_get(target, host="shift.example:8443", ca_file=pair[0])
        other_name = probe.http_get(target, host="other.example", ca_file=pair[0])
        unverified = probe.http_get(target, verify=False)
    assert (refused.status, refused.reason) == (None, "certificate")
    assert trusted.status == 200
    assert (other_name.status, other_name.reason) == (None, "certificate")
    assert unverified.status == 200


def test_dates_of_a_certificate_agree_with_openssl(pair):
    certificate = probe.certificate_file(pair[0])[0]
    text = subprocess.run(
        ["openssl", "x509", "-in", pair[0], "-noout", "-enddate", "-fingerprint", "-sha256"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    end = datetime.datetime.strptime(text.split("notAfter=")[1].splitlines()[0], "%b %d %H:%M:%S %Y %Z")
    assert certificate.not_after == end.replace(tzinfo=datetime.timezone.utc)
    assert certificate.fingerprint == text.split("Fingerprint=")[1].strip().replace(":", "").lower()


def test_the_served_certificate_is_read_without_being_trusted(pair):
    with server(silent, tls=server_tls(pair)) as address:
        served = probe.certificate_served(*address, server_name="shift.example")
        with pytest.raises(probe.ProbeError) as error:
            probe.certificate_served(*address, server_name="shift.example", verify=True)
    assert served == probe.certificate_file(pair[0])[0]
    assert (error.value.state, error.value.reason) == ("unhealthy", "certificate")


def test_files_that_are_no_certificates(tmp_path):
    with pytest.raises(probe.ProbeError) as error:
        probe.certificate_file(str(tmp_path / "none.crt"))
    assert (error.value.state, error.value.reason) == ("down", "missing")
    for text in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        (tmp_path / "bad.crt").write_text(text)
        with pytest.raises(probe.ProbeError) as error:
            probe.certificate_file(str(tmp_path / "bad.crt"))
        assert (error.value.state, error.value.reason) == ("unhealthy", "invalid")


# --- Redis -----------------------------------------------------------------------------------------------------------


def redis_server(responses):
    """A server that responds by command: PING, AUTH, INFO, SELECT."""
    seen = []

    def talk(connection):
        stream = connection.makefile("rb")
        while True:
            line = stream.readline()
            if not line:
                return
            words = []
            for _ in range(int(line[1:])):
                stream.readline()
                words.append(stream.readline().strip().decode())
            seen.append(words)
            connection.sendall(responses.get(words[0], b"+OK\r\n"))

    return talk, seen


INFO = (
    b"# Server\r\nredis_version:8.0.2\r\nrole:master\r\nused_memory:90\r\nmaxmemory:100\r\n"
    b"maxmemory_policy:noeviction\r\n"
)


def target(address, **more):
    return probe.RedisTarget(address[0], address[1], **more)


def test_redis_logs_in_selects_and_pings():
    talk, seen = redis_server({"PING": b"+PONG\r\n", "INFO": b"$%d\r\n%s\r\n" % (len(INFO), INFO)})
    with server(talk) as address:
        metrics = probe.redis_ping(target(address, username="app", password="pä ss", database=1))
    assert seen == [
        ["AUTH", "app", "pä ss"],
        ["SELECT", "1"],
        ["PING"],
        ["INFO"],
        ["LPUSHX", "shiftmaster-no-list", "0"],
    ]
    assert metrics["write_error"] == ""
    assert (metrics["version"], metrics["role"], metrics["used_memory_percent"]) == ("8.0.2", "master", 90.0)
    assert not metrics["evicts"]


def test_redis_without_the_right_to_info_is_healthy():
    talk, _seen = redis_server({"PING": b"+PONG\r\n", "INFO": b"-NOPERM no\r\n"})
    with server(talk) as address:
        assert "version" not in probe.redis_ping(target(address))


def test_redis_that_takes_no_writes_of_the_user():
    responses = {"PING": b"+PONG\r\n", "INFO": b"-NOPERM no\r\n", "LPUSHX": b"-OOM command not allowed\r\n"}
    with server(redis_server(responses)[0]) as address:
        assert probe.redis_ping(target(address, password="x"))["write_error"].startswith("OOM")
        # Without a login nothing is known of a user's rights.
        assert "write_error" not in probe.redis_ping(target(address))
    # A login that is limited to its own keys writes to those.
    limited = b"-NOPERM No permissions to access one of the keys used as arguments\r\n"
    with server(redis_server(dict(responses, LPUSHX=limited))[0]) as address:
        assert probe.redis_ping(target(address, password="x"))["write_error"] == ""
    # CLIENT PAUSE WRITE: there is no response to it.
    with server(redis_server(dict(responses, LPUSHX=b""))[0]) as address:
        assert probe.redis_ping(target(address, password="x"), timeout=1.0)["write_error"].startswith("no response")


@pytest.mark.parametrize(
    "command,words,reason",
    [
        ("AUTH", b"-WRONGPASS invalid username-password pair: s3cret\r\n", "auth"),
        ("PING", b"-NOAUTH Authentication required.\r\n", "noauth"),
        ("PING", b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
        ("PING", b"-MISCONF Redis is configured to save RDB snapshots\r\n", "disk"),
        ("PING", b"-whatever\r\n", "refusal"),
        ("PING", b"HTTP/1.1 400 Bad Request\r\n", "protocol"),
    ],
)
def test_redis_that_refuses(command, words, reason):
    talk, _seen = redis_server({command: words})
    with server(talk) as address, pytest.raises(probe.ProbeError) as error:
        probe.redis_ping(target(address, username="app", password="s3cret"))
    assert (error.value.state, error.value.reason) == ("unhealthy", reason)
    assert "s3cret" not in str(error.value)


def test_redis_that_never_responds():
    with server(silent) as address, pytest.raises(probe.ProbeError) as error:
        probe.redis_ping(target(address), timeout=0.4)
    assert (error.value.state, error.value.reason) == ("down", "timeout")


def test_redis_reports_a_disk_that_cannot_be_written_and_a_lost_primary():
    metrics = probe.redis_metrics("aof_last_write_status:err\r\nrole:slave\r\nmaster_link_status:down\r\n")
    assert metrics["persistence_error"] == "aof_last_write_status"
    assert metrics["replication_error"] == "master_link_status:down"


@pytest.mark.parametrize(
    "address,expected",
    [
        ("redis://localhost", ("localhost", 6379, None, 0, None, None, False)),
        ("redis://u:p%40s@cache:6380/2", ("cache", 6380, None, 2, "u", "p@s", False)),
        ("rediss://:pw@[::1]:6390/0", ("::1", 6390, None, 0, None, "pw", True)),
        ("unix:///run/redis.sock?db=3", (None, None, "/run/redis.sock", 3, None, None, False)),
    ],
)
def test_redis_addresses(address, expected):
    assert tuple(probe.parse_redis_url(address))[:7] == expected


@pytest.mark.parametrize("address", ["http://u:hunter2@x", "redis://u:hunter2@x:port/0", "redis://u:hunter2@x/zero"])
def test_an_address_that_cannot_be_read_is_not_repeated(address):
    with pytest.raises(ValueError) as error:
        probe.parse_redis_url(address)
    assert "hunter2" not in str(error.value)


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


@pytest.fixture
def psql(tmp_path, monkeypatch):
    """Put a psql of the test's own first on PATH."""

    def install(script):
        command = tmp_path / "psql"
        command.write_text("#!/bin/sh\n" + script)
        command.chmod(0o755)
        monkeypatch.setenv("PATH", "%s:%s" % (tmp_path, os.environ["PATH"]))
        return tmp_path

    return install


def test_psql_receives_the_password_by_environment_only(psql):
    directory = psql('cd "$(dirname "$0")"; echo "$@" > argv; env > env; printf "17.2 (Debian)\\tf\\t5\\t97\\t2\\n"')
    metrics = probe.postgres_ping(probe.PostgresTarget("db", "5433", "app", "me", "hunter2", "require"))
    assert (metrics["version"], metrics["recovery"], metrics["connections"]) == ("17.2", False, 5)
    assert metrics["connections_percent"] == 5.2 and metrics["waiting"] == 2
    assert "hunter2" not in (directory / "argv").read_text()
    environment = (directory / "env").read_text()
    for line in ("PGPASSWORD=hunter2", "PGHOST=db", "PGPORT=5433", "PGDATABASE=app", "PGUSER=me", "PGSSLMODE=require"):
        assert line in environment


@pytest.mark.parametrize(
    "words,reason",
    [
        ('FATAL:  password authentication failed for user "me"', "auth"),
        ('FATAL:  no pg_hba.conf entry for host "::1"', "hba"),
        ("FATAL:  sorry, too many clients already", "connections"),
        ("FATAL:  the database system is starting up", "starting"),
    ],
)
def test_a_database_that_refuses(psql, words, reason):
    psql("echo 'psql: error: %s hunter2' >&2; exit 2" % words.replace("'", ""))
    with pytest.raises(probe.ProbeError) as error:
        probe.postgres_ping(probe.PostgresTarget(password="hunter2"))
    assert (error.value.state, error.value.reason) == ("unhealthy", reason)
    assert "hunter2" not in str(error.value)


def test_messages_in_another_language_are_distinguished_by_the_port(psql):
    psql("echo 'psql: Fehler' >&2; exit 2")
    with server(silent) as address, pytest.raises(probe.ProbeError) as alive:
        probe.postgres_ping(probe.PostgresTarget("127.0.0.1", str(address[1])))
    with pytest.raises(probe.ProbeError) as dead:
        probe.postgres_ping(probe.PostgresTarget("127.0.0.1", str(closed_port())))
    assert (alive.value.state, alive.value.reason) == ("unhealthy", "refusal")
    assert (dead.value.state, dead.value.reason) == ("down", "refused")


def test_a_psql_that_hangs_is_killed_with_its_children(psql):
    directory = psql('sleep 60 & echo $! > "$(dirname "$0")/pid"; wait')
    started = time.monotonic()
    with pytest.raises(probe.ProbeError) as error:
        probe.postgres_ping(probe.PostgresTarget(), timeout=2)
    assert (error.value.state, error.value.reason) == ("down", "timeout")
    assert time.monotonic() - started < 10
    deadline = time.monotonic() + 10
    while alive_process(int((directory / "pid").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive_process(pid):
    try:
        with open("/proc/%d/stat" % pid) as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_missing_client(tmp_path):
    with pytest.raises(probe.ProbeError) as error:
        probe.run([str(tmp_path / "psql")], 1)
    assert (error.value.state, error.value.reason) == ("error", "missing")


def test_database_addresses():
    assert probe.postgres_addresses(probe.PostgresTarget("a,b", "5432,5433")) == [("a", 5432), ("b", 5433)]
    assert probe.postgres_addresses(probe.PostgresTarget("a,b", "5440")) == [("a", 5440), ("b", 5440)]
    parsed = probe.parse_postgres_url("postgres://me:p%40@db:5433/app?sslmode=require")
    assert parsed == probe.PostgresTarget("db", "5433", "app", "me", "p@", "require")
    with pytest.raises(ValueError) as error:
        probe.parse_postgres_url("mysql://me:hunter2@db/app")
    assert "hunter2" not in str(error.value)


# --- systemd ---------------------------------------------------------------------------------------------------------


def test_unit_listings():
    blocks = probe.parse_units("Id=a.service\nActiveState=active\n\nId=b.service\nResult=exit-code\nX=a=b\n")
    assert [block["Id"] for block in blocks] == ["a.service", "b.service"] and blocks[1]["X"] == "a=b"
    rows = probe.parse_unit_list("a.service loaded failed failed A thing that broke\nb.timer loaded active waiting\n\n")
    assert rows[0] == {"Id": "a.service", "LoadState": "loaded", "ActiveState": "failed", "SubState": "failed"}
    assert len(rows) == 2


# --- disks and memory ------------------------------------------------------------------------------------------------

MOUNTINFO = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
22 21 0:5 / /proc rw,nosuid - proc proc rw
23 21 0:6 / /sys rw - sysfs sysfs rw
24 21 0:7 / /dev rw - devtmpfs udev rw
25 24 0:8 / /dev/shm rw - tmpfs tmpfs rw
26 21 0:9 / /run rw - tmpfs tmpfs rw,size=1g
27 26 0:10 / /run/user/0 rw - tmpfs tmpfs rw
28 21 8:2 / /srv/my\040files rw - xfs /dev/sda2 rw
29 21 8:2 /sub /srv/bind/of/it rw - xfs /dev/sda2 rw
30 21 7:0 / /snap/core/1 ro - squashfs /dev/loop0 ro
31 21 11:0 / /media/cd ro - iso9660 /dev/sr0 ro
32 21 8:3 / /broken ro - ext4 /dev/sda3 ro
33 21 0:40 / /mnt/nas rw - nfs4 nas:/x rw
34 21 0:41 / /var/lib/docker/overlay2/abc/merged rw - overlay overlay rw
35 21 8:4 / /hidden rw - ext4 /dev/sda4 rw
36 21 8:5 / /hidden rw - ext4 /dev/sda5 rw
""".strip()


def test_real_mounts_are_the_ones_that_can_fill():
    mounts = probe.real_mounts(probe.parse_mountinfo(MOUNTINFO))
    assert [(mount.path, mount.device) for mount in mounts] == [
        ("/", "8:1"),
        ("/broken", "8:3"),
        ("/hidden", "8:5"),
        ("/mnt/nas", "0:40"),
        ("/run", "0:9"),
        ("/srv/my files", "8:2"),
    ]
    assert "/mnt/nas" not in [mount.path for mount in probe.real_mounts(probe.parse_mountinfo(MOUNTINFO), ["/mnt/*"])]


def mountinfo(tmp_path, text):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(text)
    return str(tmp_path)


def test_a_filesystem_that_became_read_only(tmp_path):
    line = "32 21 8:3 / %s ro - ext4 /dev/sda3 rw\n" % tmp_path
    fstab = tmp_path / "fstab"
    fstab.write_text("/dev/sda3 %s ext4 defaults 0 2\n" % tmp_path)
    proc = mountinfo(tmp_path, line)
    assert probe.disk_usage(proc, fstab=str(fstab)) == [
        {"path": str(tmp_path), "kind": "ext4", "error": "read-only", "reason": "readonly"}
    ]
    fstab.write_text("/dev/sda3 %s ext4 ro 0 2\n" % tmp_path)
    assert probe.disk_usage(proc, fstab=str(fstab)) == []


def test_disk_usage_agrees_with_df(tmp_path):
    found = probe.disk_usage(paths=[str(tmp_path)])[0]
    percent = subprocess.run(
        ["df", "--output=pcent,ipcent", str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout.split()[2:]
    assert abs(found["space_percent"] - int(percent[0].rstrip("%"))) <= 1.5  # df rounds up
    assert percent[1] == "-" or abs(found["inodes_percent"] - int(percent[1].rstrip("%"))) <= 1.5


def test_paths_that_are_not_there():
    assert probe.disk_usage(paths=["/no/such"])[0]["reason"] == "missing"


def test_space_reserved_for_root_counts_as_used():
    metrics = probe.usage_metrics(probe._Usage(4096, 100, 20, 10, 0, 0))
    assert metrics["space_percent"] == 88.9
    assert metrics["inodes_percent"] is None
    assert metrics["free_bytes"] == 40960


MEMINFO = """MemTotal:       1000 kB
MemFree:          50 kB
MemAvailable:    700 kB
Cached:          600 kB
SwapTotal:       200 kB
SwapFree:        150 kB
HugePages_Total:       0
"""


def test_memory_is_evaluated_by_what_is_available(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    metrics = probe.memory_usage(str(tmp_path))
    assert metrics["usage_percent"] == 30.0  # `free` would call 950 of 1000 used
    assert metrics["swap_used_percent"] == 25.0
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\n")
    with pytest.raises(probe.ProbeError) as error:
        probe.memory_usage(str(tmp_path))
    assert error.value.state == "error"


# --- clock, Celery, commands -----------------------------------------------------------------------------------------

CHRONY = "A29FC87B,162.159.200.123,4,1761000000.1,%s,-0.000001,0.00002,-4.0,0.01,0.02,0.03,0.04,64.2,%s\n"


def test_chrony():
    assert probe.parse_chrony(CHRONY % ("-0.25", "Normal")) == {"synchronised": True, "offset_seconds": 0.25}
    assert probe.parse_chrony(CHRONY % ("0.0", "Not synchronised"))["synchronised"] is False
    assert probe.parse_chrony("506 Cannot talk to daemon\n") == {}


def commands(monkeypatch, responses):
    def run(argv, _timeout, env=None):
        if argv[0] not in responses:
            raise probe.ProbeError("error", "missing", "not installed")
        return responses[argv[0]]

    monkeypatch.setattr(probe, "run", run)


def test_clock_falls_back_to_timedatectl_and_forgives_a_container(monkeypatch):
    commands(monkeypatch, {"chronyc": (1, "", ""), "timedatectl": (0, "NTPSynchronized=no\nNTP=yes\n", "")})
    assert probe.clock_state(container=False)["synchronised"] is False
    assert probe.clock_state(container=True)["synchronised"] is None
    commands(monkeypatch, {"chronyc": (0, CHRONY % ("0.01", "Normal"), "")})
    assert probe.clock_state(container=False)["offset_seconds"] == 0.01
    commands(monkeypatch, {})
    assert probe.clock_state(container=False)["synchronised"] is None


def test_celery_responses_are_found_after_other_output():
    text = 'warning: {"not": json\n{"worker-blue@a": [{"name": "celery"}], "b": {"error": "x"}, "c": []}\n\n'
    assert probe.parse_celery_queues(text) == {"c": [], "worker-blue@a": ["celery"]}
    assert probe.parse_celery_queues("Error: No nodes replied within time constraint\n") == {}
    assert probe.parse_celery_queues('{"a": [{"no": 1}]}') == {}


def test_run_kills_what_does_not_end():
    started = time.monotonic()
    with pytest.raises(probe.ProbeError) as error:
        probe.run(["sh", "-c", "sleep 60"], 0.3)
    assert (error.value.state, error.value.reason) == ("down", "timeout")
    assert time.monotonic() - started < 4


def test_in_thread_times_out_and_passes_errors_on():
    with pytest.raises(probe.ProbeError):
        probe.in_thread(lambda: time.sleep(5), 0.2, "it")
    with pytest.raises(KeyError):
        probe.in_thread(lambda: {}["x"], 5, "it")


def test_the_query_of_postgresql_runs_no_function_of_the_application(monkeypatch):
    """The application owns its database and can set a search_path for it; the probe may query as a superuser."""
    seen = {}

    target = probe.PostgresTarget(host="localhost")
    monkeypatch.setattr(probe, "run", lambda _argv, _timeout, env: seen.update(env) or (2, "", "enough"))
    with pytest.raises(probe.ProbeError):
        probe.postgres_ping(target, 5)
    assert seen["PGOPTIONS"].startswith("-c search_path=pg_catalog,pg_temp ")
