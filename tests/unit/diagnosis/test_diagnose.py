"""The collectors of the diagnosis: what they read, that they end, and that no secret leaves the host."""

from __future__ import annotations

import grp
import gzip
import json
import os
import pwd
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import shiftmaster_diagnose
from ansible.module_utils.shiftmaster.diagnosis import (
    application,
    database,
    disk,
    engine,
    host,
    logs,
    network,
    services,
    upkeep,
)
from ansible.module_utils.shiftmaster.diagnosis.redact import redact, redact_sql, redact_tree, secrets_of
from ansible.module_utils.shiftmaster.diagnosis.setting import PARTS, Setting, suspicions
from ansible.module_utils.shiftmaster.host import probe

# --- the module --------------------------------------------------------------------------------------------------------


def parameters(**more):
    spec = shiftmaster_diagnose.argument_spec()
    return dict({name: option.get("default") for name, option in spec.items()}, host_name="here", **more)


def test_area_and_functions_choose_the_parts():
    every = ["app", "web", "database", "cache", "monitoring", "backup"]
    assert set(engine.chosen(PARTS, "checklist", every)) == set(PARTS)
    more = {"logins", "updates", "rights_changed", "accounts", "backups", "monitoring"}
    assert set(engine.chosen(PARTS, "all", every)) == set(PARTS) - more
    of_disk = engine.chosen(PARTS, "disk", ["web"])
    assert {"disk", "deleted", "largest", "rotation"} <= set(of_disk) and "login" not in of_disk
    assert "database" not in engine.chosen(PARTS, "db", ["app"]) and "login" in engine.chosen(PARTS, "db", ["app"])


# --- the engine --------------------------------------------------------------------------------------------------------


def part(function, seconds=5.0):
    return engine.Part(function, ("app",), seconds)


def absent(_setting):
    raise engine.Absent("none here")


def refused(_setting):
    raise probe.ProbeError("down", "refused", "nobody listens")


def test_parts_run_at_once_and_three_that_hang_time_out():
    never = threading.Event()
    parts = {f"hangs{number}": part(lambda _setting: never.wait(60) and {}, 0.4) for number in range(3)}
    parts.update(
        good=part(lambda _setting: {"x": 1}), bad=part(lambda _setting: 1 / 0), none=part(absent), no=part(refused)
    )
    began = time.monotonic()
    response = engine.collect(parts, Setting({}), 15)
    never.set()
    assert time.monotonic() - began < 30  # far less than they hang, on a busy machine too
    assert [response[f"hangs{number}"]["status"] for number in range(3)] == ["hung"] * 3
    assert response["good"]["status"] == "ok" and response["good"]["x"] == 1
    assert response["bad"]["status"] == "failed" and "ZeroDivisionError" in response["bad"]["error"]
    assert response["none"]["status"] == "absent" and response["no"]["reason"] == "refused"
    assert list(response) == list(parts)


def test_the_complete_report_has_a_limit():
    never = threading.Event()
    response = engine.collect({"slow": part(lambda _setting: never.wait(60), 50)}, Setting({}), 0.3)
    never.set()
    assert response["slow"]["status"] == "hung" and "0.3" in response["slow"]["error"]


# --- secrets -----------------------------------------------------------------------------------------------------------

SECRET = "Zq8-geheim/+@%"
ENVIRONMENT = {
    "DJANGO_SECRET_KEY": SECRET,
    "DB_PASSWORD": "correct horse battery",
    "CACHE_URL": "redis://shiftmaster:p%40ss-word-9@localhost:6379/1",
    "DB_NAME": "shiftmaster",
    "DB_PORT": "5432",
    "PGSSLROOTCERT": "/etc/ssl/ca.crt",
    "DJANGO_CSRF_TRUSTED_ORIGINS": "https://localhost",
}


def test_secrets_of_an_environment_are_known_in_every_writing():
    found = secrets_of(ENVIRONMENT)
    assert {SECRET, "correct horse battery", "correct%20horse%20battery", "p@ss-word-9", "p%40ss-word-9"} <= set(found)
    assert "shiftmaster" not in found and "/etc/ssl/ca.crt" not in found and "https://localhost" not in found


@pytest.mark.parametrize(
    ("text", "hidden", "kept"),
    [
        ("connecting to redis://user:s3cr3t-pw@db:6379/0", "s3cr3t-pw", "db:6379"),
        ("postgresql://u:p@ss@host/db failed", "p@ss", "host/db"),
        ("password=hunter2hunter2 next=1", "hunter2hunter2", "next=1"),
        ('{"api_key": "abcd efgh", "n": 1}', "abcd efgh", '"n": 1'),
        ("DJANGO_SECRET_KEY='xyz xyz' is set", "xyz xyz", "is set"),
        ("Authorization: Bearer abcdefgh12345678", "abcdefgh12345678", "Authorization"),
        ("Authorization: Token 9f86d081884c7d65 refused", "9f86d081884c7d65", "refused"),
        ("'HTTP_AUTHORIZATION': 'ApiKey abc123def456', 'n': 1", "abc123def456", "'n': 1"),
        ("Cookie: theme=dark; sid=abc123def456; n=1", "abc123def456", "Cookie"),
        (r"body: {\"password\": \"hunter2hunter2\", \"n\": 1}", "hunter2hunter2", r"\"n\": 1"),
        ("ALTER ROLE x ENCRYPTED PASSWORD 'md5abc'", "md5abc", "ALTER ROLE x"),
        ("mysqldump --password hunter2 --host db", "hunter2", "--host db"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc used", "eyJzdWIiOiIxIn0", "used"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY----- after", "MIIabc", "after"),
        ("GET /staff/?name=%E5%B1%B1%E7%94%B0&id=7 HTTP/1.1", "E5%B1", "HTTP/1.1"),
        ("mail to taro.yamada@hospital.example failed", "taro.yamada", "hospital.example"),
        (
            'request: "GET /accounts/reset/MQ/cx5e7f-0123456789abcdef0123456789abcdef/ HTTP/1.1"',
            "cx5e7f-0123",
            "/accounts/reset/MQ/",
        ),
        (
            'referrer: "https://shift.example/invite/9f86d081884c7d659a2feaa0c55ad015"',
            "9f86d081",
            "shift.example/invite/",
        ),
        ("AUTH shiftmaster hunter2x", "hunter2x", "AUTH shiftmaster"),
        ('[0 127.0.0.1:5] "AUTH" "user" "secretword"', "secretword", '"AUTH" "user"'),
        ("Password for admin: hunter", "hunter", "Password for admin"),
        ("Password for user postgres: hunter2 was read", "hunter2", "was read"),
        ("<db:password type='x'>hunter</db:password><n>1</n>", "hunter", "<n>1</n>"),
        ("cannot reach shiftmaster:hunter@db1:5432/x", "hunter", "db1:5432/x"),
        ("user:p@ss-word@host failed", "ss-word", "host failed"),
        ("DB_PW=hunter and pw: hunter", "hunter", "DB_PW"),
        ("password=ab,hunter next=1", "hunter", "next=1"),
        ("password=hunter,user=b", "hunter", ",user=b"),
        ("curl -s -u a:hunter https://x/", "hunter", "https://x/"),
        ("['curl', '--user', 'a:hunter', 'x']", "hunter", "'x'"),
        ("mysql -uroot -phunter roster", "hunter", "roster"),
        ("mysqldump '-phunter' roster", "hunter", "roster"),
        ("redis-cli -h db -a hunter PING", "hunter", "PING"),
        ("sshpass -p hunter ssh db", "hunter", "ssh db"),
        ("パスワード：hunter です", "hunter", "です"),
        (
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBF\n-----END PGP PRIVATE KEY BLOCK----- after",
            "lQOYBF",
            "after",
        ),
    ],
)
def test_shapes_of_secrets_are_hidden(text, hidden, kept):
    shown = redact(text)
    assert hidden not in shown and kept in shown


@pytest.mark.parametrize(
    "text",
    [
        "redis.exceptions.AuthenticationError: invalid username-password pair or user is disabled.",
        'FATAL:  password authentication failed for user "shiftmaster_abc"',
        "ModuleNotFoundError: No module named 'roster.tokens'",
        "Started shiftmaster-web@blue.service; postgresql@17-main.service is active",
        "DJANGO_CSRF_TRUSTED_ORIGINS=https://shift.example.jp",
        "/var/www/shiftmaster/releases/20261126T153940Z-29df6cb232/venv/bin/python",
        'File "/var/www/shiftmaster/releases/20261126T153940Z-29df6cb232/code/roster/views.py", line 3, in get',
        "/data/postgresql-17-main-cluster-01/base is 97 % full",
        "GET /static/app.0123456789abcdef0123.css and /staff/2026/11/ and unix:/run/shiftmaster-web-blue/web.sock",
        "nginx: [emerg] bind() to 0.0.0.0:443 failed (98: Address already in use)",
        "250-AUTH PLAIN LOGIN CRAM-MD5",
        "ERR AUTH <password> called without any password configured for the default user",
        "AUTH failed: WRONGPASS; AUTH backend failed; NOAUTH Authentication required.",
        "cannot change password for admin: permission denied",
        "Password for admin: expired",
        "Password for user postgres: ",
        "usage: tool --user <user> <password> [options]",
        "celery@worker1: ready, and unit:shiftmaster-web@blue.service is active",
        "redis:7@sha256:0a1b2c runs; 127.0.0.1:6379@16379 is its master",
        "docker run --user 1000:1000 -u 1000:1000 image; runuser -u postgres -- psql; journalctl -u nginx.service",
        "mysql -P3306 -p roster; mysqld: ready for connections",
        "curl -sI http://localhost:8000/health/; curl: (7) Failed to connect",
        "redis-cli -p 6379 --askpass INFO",
        "パスワードが違います。パスワード: 変更してください。トークン: 3 件",
        "[2026-11-27 10:15:20,123: INFO/MainProcess] mingle: all alone",
        "ssh: connect to host db1 port 22: Connection refused",
    ],
)
def test_text_that_an_administrator_needs_is_kept(text):
    assert redact(text) == text


# Text that a pattern begins to match repeatedly without an end.
REPEATED = (
    "a.", "a", "a-", "x@", "a@a.", "/a", "/a?", "1/", "password", "password=", "password='", 'password="\\', "token_", "token.",
    '"', "'", "\\", " ", "=", ":", "@", ",", "a://", "https://a", "cookie: a=b;", "--a-", "eyJ-", "eyJaaaaaa.", "basic ", "a:b@",
    "curl -u ", "curl ", "redis-cli ", "mysql -p", "sshpass -p", "AUTH ", 'AUTH "', "password for ", "<password ", "<password>",
    "-----BEGIN PRIVATE KEY-----", "パスワード:",
)  # fmt: skip


def seconds_of(text) -> float:
    """How long a text takes of this thread's own time, regardless of other load."""
    taken = []
    for _number in range(3):
        began = time.thread_time()
        redact(text)
        taken.append(time.thread_time() - began)
    return min(taken)


@pytest.mark.parametrize("unit", REPEATED)
def test_the_time_grows_in_proportion_to_the_length_of_a_text(unit):
    """Sixteen times, if each place of it were read from each other."""
    once, fourfold = (seconds_of((unit * length)[:length]) for length in (2500, 10000))
    assert fourfold < 8 * once + 0.005, (once, fourfold)


def test_literals_of_statements_are_hidden():
    shown = redact_sql("SELECT *\n FROM staff WHERE name = 'O''Neil' AND note = $tag$ill$tag$ AND id = 7")
    assert shown == "SELECT * FROM staff WHERE name = '?' AND note = '?' AND id = 7"


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT * FROM staff WHERE a = 'x' AND name = 'Yamada Ta", "SELECT * FROM staff WHERE a = '?' AND name = '?'"),
        (r"SELECT E'it\'s Yamada' AS x, 'Sato' WHERE id = 7", "SELECT '?' AS x, '?' WHERE id = 7"),
        (r"SELECT 'C:\' AS x, 'Sato'", "SELECT '?' AS x, '?'"),
        ("SELECT $a$Yamada", "SELECT '?'"),
        ("SELECT x -- it's\nFROM \"O'Neil\" WHERE a = 'Sato'", "SELECT x FROM \"O'Neil\" WHERE a = '?'"),
        ("SELECT a FROM b WHERE id = $1 AND c = $2", "SELECT a FROM b WHERE id = $1 AND c = $2"),
    ],
)
def test_literals_are_hidden_where_a_statement_is_cut_or_escapes_a_quote(statement, shown):
    assert redact_sql(statement) == shown


def test_a_tree_is_redacted_everywhere_and_cut():
    tree = {
        "password": "short", "list": [f"x {SECRET} y", {"deep": "password=abc"}], "number": 3, "none": None,
        "long": "a" * 3000, f"program {SECRET}": 1,
    }  # fmt: skip
    shown = json.dumps(redact_tree(tree, secrets_of(ENVIRONMENT)))
    assert SECRET not in shown and "short" not in shown and "password=abc" not in shown
    assert len(json.loads(shown)["long"]) < 2100 and json.loads(shown)["number"] == 3


def test_half_a_secret_is_hidden_too():
    """Collectors cut what they read before it is redacted."""
    cut = ("x" * 290 + " correct horse battery")[:305]
    assert redact(cut, secrets_of(ENVIRONMENT)) == "x" * 290 + " ***"
    # So little of it is a word.
    assert redact("what is corre", secrets_of(ENVIRONMENT)) == "what is corre"


def test_a_key_that_was_printed_line_by_line_is_hidden():
    words = [
        "before",
        "-----BEGIN PRIVATE KEY-----",
        "MIIEvQIBADANBgkq",
        "QzYxNzQ0",
        "-----END PRIVATE KEY-----",
        "after",
    ]
    shown = redact_tree({"last_words": words})["last_words"]
    assert "MII" not in json.dumps(shown) and "QzY" not in json.dumps(shown)
    assert (shown[0], shown[-1], len(shown)) == ("before", "after", len(words))


def test_the_evidence_contains_no_control_characters_of_a_terminal():
    assert redact_tree(["\x1b[2Jgone\x00\x9b31m", "two\nlines\there"]) == ["?[2Jgone??31m", "two\nlines\there"]


def test_a_read_only_mount_prevents_all_writes(tmp_path, monkeypatch):
    """Its modes are right, and its filesystem is written to elsewhere."""
    me = pwd.getpwuid(os.getuid()).pw_name
    assert application.obstacle(str(tmp_path), me, 7) is None
    monkeypatch.setattr(application.os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    found = application.obstacle(str(tmp_path), me, 7)
    assert (found["path"], found["problem"]) == (str(tmp_path), "read-only") and os.path.isabs(found["mount"])
    # Reading processes are not blocked.
    assert application.obstacle(str(tmp_path), me, 5) is None


def test_the_code_of_the_release_is_searched(tmp_path):
    root = tmp_path / "app"
    release = root / "releases" / "20261101T000000Z-aaaaaaa"
    for directory in (release / "source", root / "shared" / "state", root / "slots" / "blue"):
        directory.mkdir(parents=True)
    (root / "slots" / "blue" / "release").symlink_to(release)
    (root / "active").symlink_to("slots/blue")
    setting = Setting({"app_root": str(root)})
    assert application.release(setting)["source_exists"] and application.release(setting)["version"] == ""
    (release / "manifest.json").write_text('{"version": "2.0.0"}')
    assert application.release(setting)["version"] == "2.0.0"
    # A deploy that is not finished: the same command again is for its version.
    begun = root / "releases" / "20261102T000000Z-bbbbbbb"
    begun.mkdir()
    (begun / "manifest.json").write_text('{"version": "2.1.0"}')
    state = application.State(application.Layout(str(root)))
    way = {"from": release.name, "from_slot": "blue", "to": begun.name, "to_slot": "green"}
    state.begin(kind="deploy", phase="watch", run_id="r", **way)
    assert application.release(setting)["version"] == "2.1.0"
    state.end()
    (release / "source").rmdir()
    found = application.release(setting)
    assert found["dir_exists"] and not found["source_exists"]


def test_no_seeded_secret_leaves_a_host(tmp_path):
    """Secrets are in the environment file and in every log; none is in the evidence."""
    root, log_dir = tmp_path / "app", tmp_path / "log"
    release = root / "releases" / "20261101T000000Z-aaaaaaa"
    for directory in (release / "static", root / "shared" / "state", root / "slots" / "blue", log_dir):
        directory.mkdir(parents=True)
    (root / "slots" / "blue" / "release").symlink_to(release)
    (root / "active").symlink_to("slots/blue")
    (release / "env").write_text("".join(f'{name}="{value}"\n' for name, value in ENVIRONMENT.items()))
    (release / "manifest.json").write_text(json.dumps({"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}))
    timestamp = time.strftime("%Y-%m-%d %H:%M:%S")
    output = f"{timestamp},123 [ERROR] django: login with {SECRET} and password=correct horse battery\n"
    (log_dir / "error.log").write_text(output + "Traceback\nValueError: bad key p@ss-word-9 in p%40ss-word-9\n")
    (log_dir / "celery.log").write_text(output)
    audit = {"event": "live", "time": "2026-11-01T00:00:00Z", "reason": f"with {SECRET}"}
    (root / "shared" / "state" / "audit.jsonl").write_text(json.dumps(audit) + "\n")
    options = parameters(
        functions=["app"], app_root=str(root), log_dir=str(log_dir), environment_file=str(release / "env"),
        required_names=["DJANGO_SECRET_KEY", "EMAIL_HOST"], names=["localhost"],
        expected_values={"DB_NAME": "other", "DB_PORT": 5432, "DB_USER": "", "CACHE_PREFIX": "shift"},
    )  # fmt: skip
    setting = Setting(options)
    chosen = {name: PARTS[name] for name in ("release", "environment", "logs", "celery", "login", "redis", "rights")}
    text = json.dumps(engine.collect(chosen, setting, 15), ensure_ascii=False)
    for secret in (SECRET, "correct horse", "p@ss-word-9", "p%40ss-word-9"):
        assert secret not in text
    evidence = json.loads(text)
    assert evidence["environment"]["missing"] == ["CACHE_PREFIX", "EMAIL_HOST"]
    assert not evidence["environment"]["edited"]
    os.utime(release / "env", (time.time() + 5, time.time() + 5))
    assert application.environment(setting)["edited"]
    # Gone is another finding's, which has no inventory that is ahead next to it.
    (release / "env").unlink()
    assert application.environment(setting)["edited"]
    assert evidence["environment"]["other_than_expected"] == [
        {"name": "DB_NAME", "is": "shiftmaster", "should": "other"}
    ]
    assert evidence["logs"]["files"]["application"]["problems"][0]["exception"].startswith("ValueError")
    assert evidence["release"]["release"] == release.name and evidence["release"]["deploys"][0]["event"] == "live"


# --- the host ----------------------------------------------------------------------------------------------------------


def stat_line(pid, name, state="S", ticks=10, parent=1, started=5, pages=100):
    rest = [state, parent, 0, 0, 0, 0, 0, 0, 0, 0, 0, ticks, 0, 0, 0, 20, 0, 1, 0, started, 0, pages]
    return f"{pid} ({name}) " + " ".join(str(word) for word in rest)


def test_process_names_with_blanks_and_brackets_are_read():
    found = host.parse_stat(stat_line(7, "a) (b c", "D", 30, 3, 9, 50))
    assert (found["name"], found["state"], found["parent"], found["ticks"], found["started"]) == (
        "a) (b c",
        "D",
        3,
        30,
        9,
    )
    assert found["memory"] == 50 * os.sysconf("SC_PAGE_SIZE")


def test_cpu_names_the_processes_that_use_it(tmp_path, monkeypatch):
    """Between the two samples one process works, and one number is reused by another process."""
    (tmp_path / "7").mkdir()
    (tmp_path / "8").mkdir()
    (tmp_path / "7" / "stat").write_text(stat_line(7, "worker", ticks=100))
    (tmp_path / "7" / "cmdline").write_text("python3\0hog.py\0")
    (tmp_path / "7" / "cgroup").write_text("0::/system.slice/hog.service\n")
    (tmp_path / "8" / "stat").write_text(stat_line(8, "old", ticks=9000, started=1))
    (tmp_path / "stat").write_text("cpu  100 0 0 900 0 0 0 0\n")
    (tmp_path / "loadavg").write_text("4.00 3.00 2.00 1/2 3\n")

    def sleep(seconds):
        (tmp_path / "7" / "stat").write_text(stat_line(7, "worker", ticks=100 + os.sysconf("SC_CLK_TCK")))
        (tmp_path / "8" / "stat").write_text(stat_line(8, "new", ticks=1, started=99))
        (tmp_path / "stat").write_text("cpu  190 0 0 910 0 0 0 0\n")

    monkeypatch.setattr(host, "time", SimpleNamespace(sleep=sleep, monotonic=iter([10.0, 11.0]).__next__))
    found = host.cpu(Setting({"proc_path": str(tmp_path)}))
    assert found["busy_percent"] == 90.0 and found["load"] == [4.0, 3.0, 2.0]
    assert found["top"][0]["command"] == "python3 hog.py" and found["top"][0]["unit"] == "hog.service"
    assert found["top"][0]["cpu_percent"] == 100.0 and found["top"][1]["cpu_percent"] == 1.0


def test_processes_of_one_unit_are_one_user_of_the_processors():
    assert host.cpu_ticks("cpu  1 2 4 8 16 32 64 128 5 5\n") == {
        "busy": 231, "idle": 8, "iowait": 16, "steal": 128, "total": 255,
    }  # fmt: skip
    used = [("a.service", "a", 40.0), ("", "make", 30.0), ("a.service", "b", 60.0), ("", "make", 20.5)]
    found = host.groups([{"unit": unit, "name": name, "cpu_percent": cpu} for unit, name, cpu in used], 2)
    assert [(one["unit"] or one["name"], one["cpu_percent"], one["cpu_share"], one["processes"]) for one in found] == [
        ("a.service", 100.0, 50.0, 2),
        ("make", 50.5, 25.2, 2),
    ]


def test_processes_that_wait_for_a_disk_are_named(tmp_path, monkeypatch):
    """In both samples; one that waits in one of them reads a file. A zombie is counted."""
    for pid, state in ((7, "D"), (8, "S"), (9, "Z")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(stat_line(pid, "x", state))

    def sleep(_seconds):
        (tmp_path / "8" / "stat").write_text(stat_line(8, "x", "D"))

    (tmp_path / "stat").write_text("cpu  1 0 0 9\n")
    monkeypatch.setattr(host, "time", SimpleNamespace(sleep=sleep, monotonic=iter([10.0, 11.0]).__next__))
    found = host.cpu(Setting({"proc_path": str(tmp_path)}))
    assert [one["pid"] for one in found["waiting_for_disk"]] == [7]
    assert (found["zombies"], found["processes"]) == (1, 3)


def test_memory_names_who_has_it_and_what_is_moved_meanwhile(tmp_path, monkeypatch):
    for pid in range(1, 13):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(stat_line(pid, "x", pages=10 * pid if pid > 4 else 0))
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 250 kB\nActive: 3 kB\nSwapTotal: 10 kB\n")
    (tmp_path / "vmstat").write_text("pswpin 5\npswpout 70\noom_kill 1\n")

    def sleep(_seconds):
        (tmp_path / "vmstat").write_text("pswpin 9\npswpout 80\noom_kill 2\n")

    monkeypatch.setattr(host, "time", SimpleNamespace(sleep=sleep))
    found = host.memory(Setting({"proc_path": str(tmp_path), "cgroup_path": str(tmp_path)}))
    assert (found["usage_percent"], found["total_bytes"]) == (75.0, 1024000)
    assert found["meminfo_kib"] == {"MemTotal": 1000, "MemAvailable": 250, "SwapTotal": 10}
    assert (found["swapped_in_pages"], found["swapped_out_pages"], found["kills_since_boot"]) == (4, 10, 2)
    assert [one["pid"] for one in found["top"]] == list(range(12, 4, -1))


def test_pressure_and_numbers():
    text = "some avg10=1.50 avg60=0.20 avg300=0.00 total=1\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=1\n"
    assert host.pressure(text)["some"]["avg10"] == 1.5 and host.pressure(text)["full"]["avg10"] == 0.1
    assert host.pressure("") == {}
    assert host.numbers("MemTotal:  16 kB\noom_kill 3\nHugepages: none\n") == {"MemTotal": 16, "oom_kill": 3}


def test_kills_of_a_unit_and_of_the_host_are_distinguished():
    text = of_kernel(1800.5, "/system.slice/x.service", 71) + (
        "1801.5 h systemd[1]: shiftmaster-worker@blue.service: A process of this unit has been killed by the OOM killer.\n"
        "1802.5 h kernel: Out of memory: Killed process 72 (postgres) total-vm:1kB\n"
        "1803.5 h systemd[1]: Started something.\n"
    )
    found = host.parse_kills(text)
    assert [(kill["at"], kill["name"], kill["unit"], kill["host_wide"]) for kill in found] == [
        (1800.5, "python3", "x.service", False),
        (1801.5, "", "shiftmaster-worker@blue.service", False),
        (1802.5, "postgres", "", True),
    ]


def test_an_out_of_memory_kill_of_the_entire_host_is_no_limit_of_a_unit():
    text = (
        "1800.5 h kernel: Out of memory: Killed process 72 (gunicorn) total-vm:1kB\n"
        "1801.5 h systemd[1]: shiftmaster-web@blue.service: A process of this unit has been killed by the OOM killer.\n"
        "1803.0 h systemd[1]: shiftmaster-web@blue.service: Failed with result 'oom-kill'.\n"
        "1900.0 h systemd[1]: export.service: A process of this unit has been killed by the OOM killer.\n"
    )
    assert [(kill["at"], kill["name"], kill["unit"], kill["host_wide"]) for kill in host.parse_kills(text)] == [
        (1800.5, "gunicorn", "shiftmaster-web@blue.service", True), (1900.0, "", "export.service", False),
    ]  # fmt: skip


def of_kernel(at: float, place: str, pid: int) -> str:
    """Lines of the kernel about a kill by the limit of a control group."""
    return (
        f"{at} h kernel: oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg={place},"
        f"task_memcg={place},task=python3,pid={pid},uid=0\n"
        f"{at} h kernel: Memory cgroup out of memory: Killed process {pid} (python3) total-vm:80056kB, anon-rss:65280kB\n"
    )


def test_a_unit_that_is_killed_again_and_again_is_one_fault():
    text = of_kernel(100, "/system.slice/export.service", 7)
    for at in (100.2, 300.2):
        text += (
            f"{at} h systemd[1]: export.service: A process of this unit has been killed by the OOM killer.\n"
            f"{at + 0.1:.1f} h systemd[1]: export.service: Main process exited, code=killed, status=9/KILL\n"
            f"{at + 0.2:.1f} h systemd[1]: export.service: Failed with result 'oom-kill'.\n"
        )
    (kill,) = host.parse_kills(text)
    assert (kill["at"], kill["unit"], kill["count"], kill["host_wide"]) == (300.2, "export.service", 2, False)


@pytest.mark.parametrize(
    "words, unit",
    [
        ("101.1 h systemd[1]: leaky.service: Main process exited, code=killed, status=9/KILL\n", "leaky.service"),
        # Another container's: all read the log of one kernel.
        ("101.1 h systemd[1]: other.service: Main process exited, code=killed, status=9/KILL\n", ""),
        ("190.1 h systemd[1]: leaky.service: Main process exited, code=killed, status=9/KILL\n", ""),
    ],
)
def test_a_unit_in_a_container_is_reported_by_its_own_systemd(words, unit):
    (kill,) = host.parse_kills(of_kernel(101, "/docker/40cd/system.slice/leaky.service", 8) + words)
    assert (kill["name"], kill["unit"]) == ("python3", unit)


def test_the_journal_shows_the_newest_kill_first(monkeypatch):
    text = of_kernel(100, "/system.slice/export.service", 7) + of_kernel(900, "/system.slice/report.service", 8)
    newest_first = "\n".join(reversed(text.splitlines())) + "\n"
    monkeypatch.setattr(probe, "run", lambda *_arguments: (0, newest_first, ""))
    assert [(kill["unit"], kill["at"]) for kill in host.kills(Setting({}))["kills"]] == [
        ("export.service", 100.0), ("report.service", 900.0),
    ]  # fmt: skip


def test_the_state_of_a_unit_after_a_kill(monkeypatch):
    text = of_kernel(100, "/system.slice/export.service", 7) + of_kernel(900, "/system.slice/report.service", 8)
    responses = {"journalctl": "\n".join(reversed(text.splitlines())), "systemctl": "inactive\n\nactive\n"}
    monkeypatch.setattr(probe, "run", lambda argv, *_more: (0, responses[argv[0]], ""))
    assert {kill["unit"]: kill["active"] for kill in host.kills(Setting({}))["kills"]} == {
        "export.service": "inactive", "report.service": "active",
    }  # fmt: skip


def test_kills_are_reported_by_the_kernel_and_systemd_alone(monkeypatch):
    """All output of a service is in the same journal."""
    printed = "900.0 h celery[7]: Out of memory: Killed process 1 (postgres) total-vm:1kB\n"

    def journalctl(argv, *_arguments):
        return (1, "", "") if argv[-3:] == ["_TRANSPORT=kernel", "+", "_PID=1"] else (0, printed, "")

    monkeypatch.setattr(probe, "run", journalctl)
    assert host.kills(Setting({}))["kills"] == []


@pytest.mark.parametrize(
    "line",
    [
        "%s[12]: segfault at 0 ip 0 sp 0 error 6 in python3.13[5d0000+1000]",
        "%s invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "Memory cgroup out of memory: Killed process 12 (%s) total-vm:1kB",
        "oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/a.service,task=%s,pid=12,uid=996",
        "CPU: 0 UID: 996 PID: 12 Comm: %s Not tainted",
    ],
)
def test_the_name_of_a_process_is_no_complaint_of_the_kernel(line):
    for name in ("I/O error", "I/O error, dev", "I/O error, dev ", "I/O Error (sct", "medium error", "remount-ro"):
        assert not {"io_error", "read_only"} & set(host.parse_kernel(line % name)), name


def test_messages_of_the_kernel_for_a_disk():
    for line in (
        "blk_update_request: I/O error, dev vda, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",
        "Buffer I/O error on dev sda1, logical block 0, async page read",
        "critical medium error, dev sda, sector 2048 op 0x0:(READ)",
        "nvme0n1: I/O Cmd(0x2) @ LBA 0, 8 blocks, I/O Error (sct 0x2 / sc 0x81)",
        'XFS (sda1): metadata I/O error in "xfs_imap_to_bp+0x4f" at daddr 0x2 len 8 error 5',
        "sd 0:0:0:0: [sda] tag#0 Sense Key : Medium Error [current]",
    ):
        assert list(host.parse_kernel(line)) == ["io_error"], line
    assert list(host.parse_kernel("EXT4-fs (sda1): Remounting filesystem read-only")) == ["read_only"]


def test_directories_on_a_filesystem(tmp_path):
    """Also where a cluster's directory, or its write-ahead log, is a filesystem of its own."""
    setting = Setting({"functions": ["database"]})
    setting.writers = {"postgresql": "/var/lib/postgresql", "logs": "/var/log/shiftmaster", "system": "/var/log"}
    mounts = [
        {"path": path} for path in ("/", "/var/log", "/var/log/other", "/var/lib/postgresql/17/main/pg_wal", "/mnt")
    ]
    disk._name_what_lies_there(mounts, setting)
    assert {mount["path"]: mount["holds"] for mount in mounts} == {
        "/": ["postgresql"], "/var/log": ["logs", "system"], "/var/log/other": [],
        "/var/lib/postgresql/17/main/pg_wal": ["postgresql"], "/mnt": [],
    }  # fmt: skip


def test_swaps_with_their_sizes():
    text = (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda2                               partition\t1048572\t\t2048\t\t-2\n"
        "/var/swap\\040file\tfile\t1024\t0\t-3\n"
    )
    assert host.parse_swaps(text) == [
        {"path": "/dev/sda2", "kind": "partition", "bytes": 1048572 * 1024, "used_bytes": 2048 * 1024},
        {"path": "/var/swap\\040file", "kind": "file", "bytes": 1048576, "used_bytes": 0},
    ]
    assert host.parse_swaps("") == []


def test_parts_of_a_health_response_contain_migrations_missing_from_the_code(monkeypatch):
    """Other things that an application calls so."""
    parts = {
        "migrations": {"status": "healthy", "unknown": ["roster.0099_later"]},
        "other": {"status": "unhealthy", "unknown": 3},
    }
    page = SimpleNamespace(status=200, seconds=0.1, headers={}, error="", body=json.dumps({"checks": parts}))
    monkeypatch.setattr(network.symptoms, "get_page", lambda *_more, **_options: page)
    found = network.http(Setting({"http": {"deep": {"url": "http://localhost", "deep": True}}}))["deep"]["parts"]
    assert (found["migrations"]["unknown"], found["other"]["unknown"]) == (["roster.0099_later"], [])
    assert found["other"]["status"] == "unhealthy"


def test_logs_with_owner_and_mode(tmp_path):
    path = tmp_path / "error.log"
    path.write_text("x" * 10)
    path.chmod(0o640)
    (tmp_path / "other.log").touch()
    found = disk.rotation(Setting({"log_dir": str(tmp_path)}))["logs"][0]
    assert (found["name"], found["bytes"], found["mode"]) == ("error.log", 10, "-rw-r-----")
    assert found["owner"] == pwd.getpwuid(os.getuid()).pw_name and found["group"] == grp.getgrgid(os.getgid()).gr_name
    assert disk._name(pwd.getpwuid, 4123456789) == "4123456789"


def test_logs_that_logrotate_knows(tmp_path):
    status = tmp_path / "status"
    status.write_text(
        'logrotate state -- version 2\n"/var/log/a b.log" 2026-11-29-23:0:0\n"/home/x.log" 2026-11-29-23:0:0\n'
    )
    setting = SimpleNamespace(log_dir=str(tmp_path), path=lambda _path: str(status))
    found = disk.rotation(setting)
    assert found["known"] == ["/var/log/a b.log"] and found["rotated_days_ago"] == 0
    status.unlink()
    assert disk.rotation(setting)["known"] == []


def test_headers_of_a_response_are_shown_but_for_cookies(monkeypatch):
    headers = {"server": "nginx", "content-type": "application/json", "set-cookie": "sessionid=abc"}
    response = probe.HttpResult(200, 0.01, "{}", None, "", headers)
    monkeypatch.setattr(probe, "http_get", lambda *_arguments, **_more: response)
    found = network.http(Setting({"http": {"site": {"url": "https://localhost"}}}))
    assert found["site"]["headers"] == {"server": "nginx", "content-type": "application/json"}
    assert found["site"]["status"] == 200


def test_how_long_ago_a_unit_became_active(monkeypatch):
    monkeypatch.setattr(services.time, "clock_gettime", lambda _clock: 1000.0)
    assert services.seconds_ago("940500000") == 59.5
    assert services.seconds_ago("0") is services.seconds_ago(None) is None


def test_limits_of_units(tmp_path):
    unit = tmp_path / "system.slice" / "system-shiftmaster\\x2dweb.slice" / "shiftmaster-web@blue.service"
    unit.mkdir(parents=True)
    (unit / "memory.max").write_text("1000\n")
    (unit / "memory.current").write_text("950\n")
    (unit / "memory.events").write_text("low 0\noom_kill 2\n")
    unlimited = tmp_path / "system.slice" / "cron.service"
    unlimited.mkdir()
    (unlimited / "memory.max").write_text("max\n")
    (unlimited / "memory.current").write_text("5\n")
    assert host.unit_memory(str(tmp_path)) == [
        {"unit": "shiftmaster-web@blue.service", "bytes": 950, "limit_bytes": 1000, "percent": 95.0, "kills": 2}
    ]


def test_files_near_their_limit(tmp_path):
    # OpenSSH before the login may have one.
    for pid, limit, count in ((5, 64, 60), (6, 100, 60), (7, 1, 4)):
        directory = tmp_path / str(pid) / "fd"
        directory.mkdir(parents=True)
        for number in range(count):
            (directory / str(number)).touch()
        (tmp_path / str(pid) / "stat").write_text(stat_line(pid, "x"))
        (tmp_path / str(pid) / "limits").write_text(f"Limit Soft\nMax open files            {limit}      4096 files\n")
    found = host.files(Setting({"proc_path": str(tmp_path)}))
    assert [(one["pid"], one["open"], one["limit"]) for one in found["near_limit"]] == [(5, 60, 64)]
    assert (found["open"], found["limit"], found["percent"]) == (0, 0, 0.0)
    (tmp_path / "sys/fs").mkdir(parents=True)
    (tmp_path / "sys/fs/file-nr").write_text("150\t0\t1000\n")
    found = host.files(Setting({"proc_path": str(tmp_path)}))
    assert (found["open"], found["limit"], found["percent"]) == (150, 1000, 15.0)


# --- disks -------------------------------------------------------------------------------------------------------------


def test_deleted_open_files_are_found(tmp_path):
    path = tmp_path / "export.csv"
    with path.open("wb") as stream:
        stream.write(b"x" * 300000)
        stream.flush()
        os.fsync(stream.fileno())
        path.unlink()
        found = disk.deleted(Setting({}))
    mine = [one for one in found["files"] if one["path"] == str(path)]
    assert [one["pid"] for one in mine] == [os.getpid()] and mine[0]["bytes"] >= 300000
    assert found["bytes"] >= 300000


def test_memory_that_is_called_a_file_is_no_deleted_file(monkeypatch):
    monkeypatch.setattr(disk, "_TOP", 100000)
    with os.fdopen(os.memfd_create("cache"), "wb") as stream:
        stream.write(b"x" * 300000)
        stream.flush()
        assert not [one for one in disk.deleted(Setting({}))["files"] if one["path"].startswith("/memfd:")]


def test_large_files_and_crowded_directories(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "big").write_bytes(b"x" * 200000)
    (tmp_path / "small").write_bytes(b"x" * 10)
    os.link(tmp_path / "a" / "big", tmp_path / "a" / "again")
    for number in range(1100):
        (tmp_path / "a" / f"f{number}").touch()
    found = disk.largest(Setting({"large_dirs": [str(tmp_path), str(tmp_path / "gone")]}))
    assert found["files"][0]["path"].startswith(str(tmp_path / "a")) and found["complete"]
    # A file of two names takes its room once.
    assert (
        found["directories"][0]["path"] == str(tmp_path / "a") and 200000 <= found["directories"][0]["bytes"] < 300000
    )
    assert len([one for one in found["files"] if one["bytes"] >= 200000]) == 1
    assert found["crowded"][0] == {"path": str(tmp_path / "a"), "entries": 1102}


def test_the_largest_of_many_files_are_named(tmp_path, monkeypatch):
    for number in range(60):
        (tmp_path / f"f{number}").write_bytes(b"x" * 8192 * (60 - number if number % 2 else number + 1))
    sizes = {path: path.stat().st_blocks * 512 for path in tmp_path.iterdir()}
    setting = Setting({"large_dirs": [str(tmp_path)], "proc_path": str(tmp_path / "proc")})
    found = disk.largest(setting)
    assert [one["bytes"] for one in found["files"]] == sorted(sizes.values(), reverse=True)[:10]
    assert all(sizes[Path(one["path"])] == one["bytes"] and one["mount"] == str(tmp_path) for one in found["files"])
    assert found["directories"] == [{"path": str(tmp_path), "bytes": sum(sizes.values()), "mount": str(tmp_path)}]
    assert found["complete"]
    monkeypatch.setattr(disk, "time", SimpleNamespace(monotonic=iter([10.0, 12.1]).__next__))
    assert disk.largest(setting) == {"complete": False, "files": [], "directories": [], "crowded": []}


def mounted(tmp_path, *mounts):
    """The setting of a host with these mounts: (path, kind of filesystem)."""
    lines = [f"{number} 1 0:{number} / {path} rw - {kind} x rw" for number, (path, kind) in enumerate(mounts)]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("\n".join(lines))
    return Setting({"proc_path": str(tmp_path / "proc"), "log_dir": str(tmp_path / "logs")})


def test_filesystems_of_other_hosts_are_not_touched(tmp_path):
    """A dead server would hold the diagnosis."""
    places = [tmp_path / name for name in ("a", "b", "c")]
    for place in places:
        place.mkdir()
    setting = mounted(tmp_path, *zip(places, ("ext4", "nfs4", "fuse.sshfs")))
    assert disk.devices(setting.proc) == {tmp_path.stat().st_dev: str(places[0])}


def test_a_filesystem_is_named_with_what_lies_on_it(tmp_path):
    for name in ("logs", "pg/17/main", "other"):
        (tmp_path / name).mkdir(parents=True)
    setting = mounted(tmp_path, ("/", "ext4"), *((tmp_path / name, "xfs") for name in ("logs", "pg/17/main", "other")))
    setting.writers = {"logs": str(tmp_path / "logs"), "postgresql": str(tmp_path / "pg"), "temporary": "/tmp"}
    (tmp_path / "proc/mdstat").write_text("md0 : active raid1 sdb[1]\n      1 blocks [2/1] [U_]\n")
    found = disk.disk(setting)
    assert {one["path"].removeprefix(str(tmp_path)): one["holds"] for one in found["mounts"]} == {
        "/": ["postgresql", "temporary"], "/logs": ["logs"], "/pg/17/main": ["postgresql"], "/other": [],
    }  # fmt: skip
    assert [one["device"] for one in found["arrays"]] == ["md0"]


def test_a_busy_disk_is_named_with_the_duration_of_its_requests(tmp_path, monkeypatch):
    def write(*disks):
        line = "8 0 {} {} 0 0 {} {} 0 0 {} 0 {} 0\n"
        (tmp_path / "diskstats").write_text("".join(line.format(*one) for one in disks))

    write(("sda", 10, 100, 5, 200, 1000), ("sdb", 1, 1, 1, 1, 1))
    setting = Setting({"proc_path": str(tmp_path)})
    later = [("sda", 14, 120, 11, 260, 2000), ("sdb", 1, 1, 1, 1, 1), ("sdc", 9, 9, 9, 9, 9), ("sdd", 0, 0, 0, 0, 0)]
    clock = SimpleNamespace(sleep=lambda _seconds: write(*later), monotonic=iter([10.0, 12.0]).__next__)
    monkeypatch.setattr(disk, "time", clock)
    # One that was added meanwhile has done nothing that is known.
    assert disk.traffic(setting)["disks"] == [
        {"device": "sda", "busy_percent": 50.0, "requests": 10, "milliseconds": 8.0},
        *({"device": name, "busy_percent": 0.0, "requests": 0, "milliseconds": 0.0} for name in ("sdb", "sdc", "sdd")),
    ]


def test_complete_disks_alone_are_counted():
    line = "{} 0 {} 10 0 0 40 5 0 0 60 0 700 0"
    text = "\n".join(line.format(8, name) for name in ("sda", "sda1", "nvme0n1", "nvme0n1p2", "loop0", "vda", "dm-0"))
    found = disk.parse_diskstats(text)
    assert set(found) == {"sda", "nvme0n1", "vda", "dm-0"} and found["sda"] == (700, 15, 100)


def test_the_disks_of_arrays_are_counted():
    """As the kernel writes it: complete, with a failed disk, without redundancy, being rebuilt."""
    text = """Personalities : [raid1] [raid0] [raid6]
md0 : active raid1 sdb1[1] sda1[0]
      1046528 blocks super 1.2 [2/2] [UU]

md1 : active raid1 sdb2[1](F) sda2[0]
      9760384 blocks super 1.2 [2/1] [U_]
      bitmap: 1/1 pages [4KB], 65536KB chunk

md2 : active raid0 sdd1[1] sdc1[0]
      20952064 blocks super 1.2 512k chunks

md3 : active raid6 sdh1[4] sdg1[2] sdf1[1] sde1[0]
      20952064 blocks level 6, 512k chunk, algorithm 2 [4/3] [UUU_]
      [==>..................]  recovery = 12.6% (1319680/10476032) finish=0.6min speed=219946K/sec

unused devices: <none>
"""
    found = disk.parse_mdstat(text)
    assert [(one["device"], one["disks"], one["of"]) for one in found] == [("md0", 2, 2), ("md1", 1, 2), ("md3", 3, 4)]
    assert found[1]["members"] == "active raid1 sdb2[1](F) sda2[0]" and disk.parse_mdstat("") == []


# --- logs --------------------------------------------------------------------------------------------------------------


def test_timestamps_of_our_logs():
    assert logs.timestamp("2026-01-31 08:00:00.123 UTC [7] FATAL:  x") == 1769846400.123
    assert logs.timestamp("2026-01-31T17:00:00+09:00 x") == 1769846400.0
    local = time.mktime((2026, 1, 31, 8, 0, 0, 0, 0, -1))
    assert logs.timestamp("2026-01-31 08:00:00,123 [ERROR] a: b") == local + 0.123
    assert logs.timestamp("2026/01/31 08:00:00 [error] 7#7: x") == local
    assert logs.timestamp("[2026-01-31 08:00:00,123: ERROR/MainProcess] x") == local + 0.123
    assert logs.timestamp("812:M 31 Jan 2026 08:00:00.123 # x") == local
    assert logs.timestamp("  File x") is None and logs.timestamp("2026-99-31 08:00:00 x") is None


LOG = """2026-01-31 07:00:00,000 [ERROR] django.request: too old
2026-01-31 08:00:00,000 [INFO] django: fine
2026-01-31 08:00:01,000 [ERROR] gunicorn.error: Exception in worker process
Traceback (most recent call last):
  File "/x/wsgi.py", line 3, in <module>
    import gone
ModuleNotFoundError: No module named 'gone'
2026-01-31 08:00:05,000 [ERROR] gunicorn.error: Exception in worker process
Traceback (most recent call last):
  File "/x/wsgi.py", line 3, in <module>
ModuleNotFoundError: No module named 'gone'
2026-01-31 08:00:06,000 [WARNING] django.request: Not Found: /x
"""


def test_problems_are_grouped_by_what_was_raised():
    since = time.mktime((2026, 1, 31, 7, 30, 0, 0, 0, -1))
    found = logs.problems(LOG, since)
    assert [(one["count"], one["exception"], one["where"]) for one in found] == [
        (2, "ModuleNotFoundError: No module named 'gone'", 'File "/x/wsgi.py", line 3, in <module>')
    ]
    assert found[0]["last"] - found[0]["first"] == 4


def test_the_end_of_gunicorn_does_not_hide_why_it_ended():
    """As gunicorn prints it where no worker starts, and its socket is in a directory of root's."""
    end = """Traceback (most recent call last):
  File "/x/gunicorn/arbiter.py", line 208, in run
    self.sleep()
gunicorn.errors.HaltServer: <HaltServer 'Worker failed to boot.' 3>

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/x/gunicorn/arbiter.py", line 388, in stop
    sock.close_sockets(self.LISTENERS, unlink)
  File "/x/gunicorn/sock.py", line 250, in close_sockets
    os.unlink(sock_name)
PermissionError: [Errno 13] Permission denied: '/run/shiftmaster-web-green/web.sock'
"""
    found = logs.problems(LOG + end, time.mktime((2026, 1, 31, 7, 30, 0, 0, 0, -1)))
    assert [one["exception"] for one in found] == ["ModuleNotFoundError: No module named 'gone'"]


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("2026-01-31 08:00:00,000 [INFO] gunicorn.error: Starting gunicorn 27.0.1", False),
        ("2026-01-31 08:00:00,000 [ERROR] gunicorn.error: Worker failed to boot.", True),
        ("[2026-01-31 08:00:00,000: INFO/MainProcess] Task error.report received", False),
        ("[2026-01-31 08:00:00,000: ERROR/MainProcess] consumer: Cannot connect", True),
        ("2026/01/31 08:00:00 [notice] 7#7: signal process started after error", False),
        ("2026/01/31 08:00:00 [crit] 7#7: *1 connect() failed", True),
        ("2026-01-31 08:00:00.123 JST [7] LOG:  checkpoint complete, error 0", False),
        ("2026-01-31 08:00:00.123 JST [7] [user=a,db=b,app=,client=] FATAL:  password authentication failed", True),
        ("812:M 31 Jan 2026 08:00:00.123 # Failed opening the RDB file", True),
        ("812:M 31 Jan 2026 08:00:00.123 * Background saving terminated with success", False),
        (
            "812:M 31 Jan 2026 08:00:00.123 # Bad file format reading the append only file appendonly.aof.1.incr.aof",
            True,
        ),
        ("812:M 31 Jan 2026 08:00:00.123 # WARNING Memory overcommit must be enabled!", False),
        ("812:M 31 Jan 2026 08:00:00.123 # Redis is now ready to exit, bye bye...", False),
    ],
)
def test_lines_that_are_errors(line, bad):
    assert logs.is_bad(line) is bad


def test_a_very_long_line_causes_no_delay():
    """A dump in hexadecimal: while one expression processes it no other part runs."""
    line = time.strftime("%Y-%m-%d %H:%M:%S [ERROR] payload ") + "0f" * 50000 + "_end\n"
    began = time.monotonic()
    (found,) = logs.problems(line, time.time() - 3600)
    assert found["text"].startswith(line[:40]) and time.monotonic() - began < 5


def test_the_end_of_a_long_log_begins_with_a_line(tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert logs.tail(str(path), 100).splitlines()[0].startswith("line 9")
    assert logs.tail(str(path), 10**6).startswith("line 0\n")


def line_of(at, text="[ERROR] django.request: x"):
    return time.strftime("%Y-%m-%d %H:%M:%S,000 ", time.localtime(at)) + text + "\n"


def test_a_log_is_read_back_over_its_rotation(tmp_path):
    now, path = time.time(), tmp_path / "error.log"
    setting = Setting({"hours": 14, "logs": {"application": str(path), "gone": str(tmp_path / "gone.log")}})

    def read():
        found = logs.logs(setting)["files"]
        return found["application"]["reached"], sum(one["count"] for one in found["application"]["problems"])

    path.write_text(line_of(now - 60, "[INFO] fine"))
    assert read() == (True, 0)
    # Rotated at midnight, one packed; the oldest was written last before the night.
    (tmp_path / "error.log-20260102").write_text(line_of(now - 5 * 3600))
    with gzip.open(tmp_path / "error.log-20260101.gz", "wt") as stream:
        stream.write(line_of(now - 20 * 3600, "[INFO] fine") + line_of(now - 10 * 3600))
    os.utime(tmp_path / "error.log-20260101.gz", (now - 9 * 3600, now - 9 * 3600))
    assert read() == (True, 2)
    assert list(logs.logs(setting)["files"]) == ["application"]
    # More than is read at first.
    long = line_of(now - 3600) + line_of(now - 60, "[INFO] fine") * (logs._TAIL // 30)
    assert logs._TAIL < len(long) < logs._MOST
    path.write_text(long)
    assert read() == (True, 3)
    # More than is read, and none of it from before the night; an unreadable file.
    path.write_text(line_of(now - 60, "[INFO] fine") * (logs._MOST // 30))
    assert read() == (False, 0)
    path.unlink()
    path.mkdir()
    (tmp_path / "error.log-20260101.gz").write_bytes(b"no gzip")
    setting.logs["application"] = str(tmp_path / "error.log-2026010*")
    os.utime(tmp_path / "error.log-20260101.gz")
    assert read() == (False, 0)


def test_responses_of_the_web_server():
    now = 1800000000.0
    lines = [json.dumps({"time": "x", "msec": now - age, "status": status, "request_time": seconds})
             for age, status, seconds in ((20000, 200, 9), (100, 200, 0.1), (50, 500, 0.2), (40, 200, 3.0))]  # fmt: skip
    # Possible content of binary garbage.
    garbage = ["7", "[]", '{"time": 1e999, "status": "200"}', '{"time": %r, "status": 1e999}' % now, "[" * 100000]
    found = logs.summary(logs.parsed_requests([*lines, "not json", "{}", *garbage], now - 3600), now, 1.0, 6)
    assert found["requests"] == 3 and found["by_status"] == {"200": 2, "500": 1}
    assert found["recent"].pop("failing")[0]["errors"] == 1 and found["recent"].pop("refused") == []
    # Too few earlier requests for a comparison.
    assert not found["recent"].pop("slower") and found["recent"].pop("usual_p95_seconds") == 0
    assert found["recent"].pop("own_p95_seconds") is None and found["recent"].pop("slow_pages") == []
    assert found["recent"].pop("rising") == [] and not found["recent"].pop("sent_slowly")
    assert found["recent"] == {"requests": 3, "errors": 1, "p95_seconds": 3.0, "by_status": {"200": 2, "500": 1}}
    assert [slot["requests"] for slot in found["series"]] == [0, 0, 0, 0, 0, 3]


# --- network -----------------------------------------------------------------------------------------------------------

SS = """LISTEN 0      511          0.0.0.0:443       0.0.0.0:*    users:(("nginx",pid=71,fd=6),("nginx",pid=72,fd=6))
LISTEN 5      200        127.0.0.1:5432      0.0.0.0:*    users:(("python3",pid=99,fd=3))
LISTEN 0      200            [::1]:6379         [::]:*
"""


def test_listeners():
    found = network.parse_ss(SS)
    assert [(one["address"], one["port"], one["programs"]) for one in found] == [
        ("0.0.0.0", 443, ["nginx"]), ("127.0.0.1", 5432, ["python3"]), ("::1", 6379, []),
    ]  # fmt: skip
    assert found[0]["pids"] == [71, 72] and found[1]["waiting"] == 5


def test_processes_that_hold_the_ports(monkeypatch):
    monkeypatch.setattr(network.probe, "run", lambda argv, timeout: (0, SS, ""))
    found = network.ports(
        Setting({"ports": {"443": "nginx", "5432": "postgres", "6379": "redis-server", "80": "nginx"}})
    )
    assert [(one["port"], one["listens"], one["foreign"]) for one in found["expected"]] == [
        (443, True, False), (5432, True, True), (6379, True, False), (80, False, False),
    ]  # fmt: skip


def test_the_expected_program_may_hold_one_address_of_a_port_that_another_has(monkeypatch):
    both = (
        SS.splitlines()[0].replace("nginx", "python3")
        + "\n"
        + SS.splitlines()[0].replace("0.0.0.0:443", "[::]:443")
        + "\n"
    )
    monkeypatch.setattr(network.probe, "run", lambda argv, timeout: (0, both, ""))
    assert network.ports(Setting({"ports": {"443": "nginx"}}))["expected"] == [
        {"port": 443, "program": "nginx", "listens": True, "by": ["python3"], "foreign": True}
    ]
    # A rule with an address of its own concerns other hosts.
    monkeypatch.setattr(
        network.probe, "run", lambda argv, timeout: (0, both.replace("0.0.0.0:443", "192.0.2.9:443"), "")
    )
    assert not network.ports(Setting({"ports": {"443": "nginx"}}))["expected"][0]["foreign"]


def rule(*expressions, table="other", chain="input"):
    return {"rule": {"family": "inet", "table": table, "chain": chain, "handle": 4, "expr": list(expressions)}}


def port(number):
    return {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": number}}


def chain(name="input", table="other", policy="accept"):
    return {"chain": {"family": "inet", "table": table, "name": name, "hook": "input", "policy": policy}}


@pytest.mark.parametrize(
    ("entries", "results"),
    [
        ([chain(), rule(port(5432), {"drop": None})], [("drop", [5432])]),
        ([chain(), rule(port({"set": [443, {"range": [5400, 5500]}]}), {"reject": {}})], [("reject", [443, 5432])]),
        ([chain(), rule({"counter": {"packets": 7}}, {"drop": None})], [("drop", [])]),
        ([chain(policy="drop")], [("policy drop", [])]),
        # Rules that refuse something else, or are our own.
        ([chain(), rule(port(23), {"drop": None})], []),
        ([chain(table="shiftmaster", policy="drop"), rule({"drop": None}, table="shiftmaster")], []),
        ([chain(table="shiftmaster"), rule(port(443), {"drop": None}, table="shiftmaster")], [("drop", [443])]),
        ([chain(), rule({"match": {"left": {"ct": {"key": "state"}}, "op": "in", "right": ["invalid"]}}, {"drop": None})], []),
        ([chain(), rule(port(5432), {"accept": None})], []),
    ],
)  # fmt: skip
def test_rules_that_refuse_what_is_needed(entries, results):
    found = network.refusals({"nftables": entries}, [443, 5432])
    assert [(one["verdict"], one["ports"]) for one in found] == results


def test_a_rule_for_packets_of_some_size_lets_connections_be_made():
    long = {"match": {"left": {"payload": {"protocol": "ip", "field": "length"}}, "op": ">", "right": 1000}}
    source = {"match": {"left": {"payload": {"protocol": "tcp", "field": "sport"}}, "op": "==", "right": 443}}
    out = chain("output")
    out["chain"]["hook"] = "output"
    for expressions, ports in (([source, long], [443]), ([long], [])):
        (one,) = network.refusals({"nftables": [out, rule(*expressions, {"drop": None}, chain="output")]}, [443])
        assert one["sized"] and one["ports"] == ports
    # A source port of what arrives is the client's.
    assert network.refusals({"nftables": [chain(), rule(source, {"drop": None})]}, [443]) == []


@pytest.mark.parametrize(
    ("limit", "per_second"),
    [
        ({"rate": 20, "per": "minute", "inv": True}, 0.33),
        ({"rate": 100, "per": "second", "inv": True, "rate_unit": "packets"}, 100.0),
        # What is below a rate; a rate of bytes.
        ({"rate": 2, "per": "minute"}, None),
        ({"rate": 2, "per": "second", "inv": True, "rate_unit": "mbytes"}, None),
    ],
)
def test_a_rate_for_all_clients_together(limit, per_second):
    payload = {"payload": {"protocol": "tcp", "field": "flags"}}
    flags = {"match": {"left": {"&": [payload, {"|": ["syn", "ack"]}]}, "op": "==", "right": "syn"}}
    entries = [chain(), rule(port(443), flags, {"limit": limit}, {"drop": None})]
    (one,) = network.refusals({"nftables": entries}, [443])
    assert (one["per_second"], one["sure"]) == (per_second, False)


@pytest.mark.parametrize(("protocol", "found"), [("icmp", 0), ("tcp", 1), ({"set": ["udp", "tcp"]}, 1), (17, 0)])
def test_a_rule_for_another_protocol_refuses_nothing_of_ours(protocol, found):
    one = {"match": {"left": {"meta": {"key": "l4proto"}}, "op": "==", "right": protocol}}
    assert len(network.refusals({"nftables": [chain(), rule(one, {"drop": None})]}, [443])) == found


def test_an_address_that_is_shut_out_counts_for_every_port():
    source = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "10.0.0.1"}}
    found = network.refusals({"nftables": [chain(), rule(source, {"drop": None})]}, [5432])
    assert found[0]["ports"] == [5432] and found[0]["addresses"] == ["saddr 10.0.0.1"]


def address(field, right, op="=="):
    return {"match": {"op": op, "left": {"payload": {"protocol": "ip", "field": field}}, "right": right}}


@pytest.mark.parametrize(
    ("expressions", "sure"),
    [
        ([port(5432)], True),
        ([port(5432), {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}], True),
        ([address("saddr", "192.0.2.7")], True),
        ([address("saddr", {"prefix": {"addr": "192.0.2.0", "len": 24}})], True),
        ([address("saddr", {"prefix": {"addr": "0.0.0.0", "len": 0}})], True),
        ([address("saddr", {"set": ["203.0.113.9", {"range": ["192.0.2.1", "192.0.2.9"]}]})], True),
        ([address("saddr", {"prefix": {"addr": "203.0.113.0", "len": 24}}, "!=")], True),
        # An unknown address; fail2ban's set; what is inside of Docker; something that nft does not understand.
        ([address("saddr", "203.0.113.9")], False),
        ([address("saddr", {"prefix": {"addr": "192.0.2.0", "len": 24}}, "!=")], False),
        ([port(443), address("saddr", "@addr-set-nginx")], False),
        ([address("daddr", "172.17.0.2"), {"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": "docker0"}}], False),
        ([port(443), {"xt": {"type": "match", "name": "string"}}], False),
        # A flood alone.
        ([port(443), {"limit": {"rate": 2, "per": "minute", "inv": True}}], False),
    ],
)  # fmt: skip
def test_a_rule_is_certain_to_match_the_hosts_of_this_inventory(expressions, sure):
    found = network.refusals({"nftables": [chain(), rule(*expressions, {"drop": None})]}, [443, 5432], ["192.0.2.7"])
    assert [one["sure"] for one in found] == [sure]


def test_a_ban_for_every_port_and_a_match_of_iptables_alone_refuse_nothing():
    for expressions in ([address("saddr", "@addr-set-sshd")], [{"xt": {"type": "match", "name": "string"}}]):
        assert network.refusals({"nftables": [chain(), rule(*expressions, {"reject": None})]}, [443]) == []
    out = chain("output")
    out["chain"]["hook"] = "output"
    for target, known, ports in (
        ("203.0.113.9", ["192.0.2.7"], []), ("203.0.113.9", [], []), ("192.0.2.7", ["192.0.2.7"], [443]),
        ("127.0.0.1", [], [443]),
    ):  # fmt: skip
        rules = [out, rule(address("daddr", target), {"drop": None}, chain="output")]
        found = network.refusals({"nftables": rules}, [443], known)
        assert [one for entry in found for one in entry["ports"]] == ports, target
    stranger = network.refusals({"nftables": [chain(), rule(address("saddr", "203.0.113.9"), {"drop": None})]}, [443])
    assert not stranger[0]["sure"]


def test_addresses_of_names_without_a_name_server():
    text = "127.0.0.1 localhost\n192.0.2.7 db1.example db1 # the database\n"
    assert network.addresses_of(["db1", "192.0.2.9", "gone"], text) == ["192.0.2.7", "192.0.2.9"]


def test_a_name_server_that_does_not_respond_and_one_that_does(monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        address = server.getsockname()
        real = socket.socket.connect
        monkeypatch.setattr(network.socket.socket, "connect", lambda self, where: real(self, address))
        silent = network.name_server("127.0.0.1", 0.2, count=1)
        assert (silent["responds"], silent["seconds"], silent["lost"]) == (False, None, 1)
        server.recvfrom(512)

        def response(left_out, after):
            time.sleep(after)
            for number in range(4):
                query, client = server.recvfrom(512)
                if number != left_out:
                    server.sendto(query[:2] + b"\x81\x83", client)

        # Where the last one gets lost, too, it is not waited for as for a server that does not respond.
        for left_out, after in ((0, 0.3), (3, 0)):
            thread = threading.Thread(target=response, args=[left_out, after])
            thread.start()
            began = time.monotonic()
            lossy = network.name_server("127.0.0.1", 60, count=4)
            assert lossy["responds"] and lossy["seconds"] is not None and (lossy["tried"], lossy["lost"]) == (4, 1)
            assert time.monotonic() - began < 30
            thread.join()


@pytest.mark.parametrize(("lost", "late"), [(2, 0), (3, 12)])
def test_connections_show_whether_queries_without_a_response_were_lost(tmp_path, monkeypatch, lost, late):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.53\n")
    server = {"address": "192.0.2.53", "responds": True, "seconds": 0.1, "tried": 30, "lost": lost}
    monkeypatch.setattr(network, "name_server", lambda address: dict(server))
    monkeypatch.setattr(network, "connections", lambda address, port, count: {"tried": count, "late": 12})
    setting = SimpleNamespace(path=lambda path: str(tmp_path) + path, names=[])
    assert network.names(setting)["servers"] == [dict(server, late=late)]


def test_addresses_without_a_route_and_interfaces_that_are_slowed(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.53\n")
    log = tmp_path / "access.log"
    log.write_text('{"remote_addr":"203.0.113.9","status":200}\n{"remote_addr":"x\\"; rm"}\n{"remote_addr":"::1"}\n')
    queues = [
        {"kind": "noqueue", "dev": "lo", "root": True}, {"kind": "tbf", "dev": "eth0", "root": True, "options": {"rate": 1}},
        {"kind": "netem", "dev": "eth0", "parent": "1:1"},
    ]  # fmt: skip
    monkeypatch.setattr(network.probe, "run", lambda *_words: (0, json.dumps(queues), ""))
    monkeypatch.setattr(
        network, "no_route", lambda address: "Network is unreachable" if address.startswith("203") else ""
    )
    found = network.routes(Setting({"access_log": str(log)}, root=str(tmp_path)))
    assert found["without"] == [{"address": "203.0.113.9", "what": "user", "error": "Network is unreachable"}]
    assert found["shaped"] == [{"device": "eth0", "kind": "tbf", "options": '{"rate": 1}'}]


def test_a_route_is_looked_up_without_a_packet():
    assert (
        network.no_route("127.0.0.1") == "" and network.no_route("::1") == "" and network.no_route("no address") == ""
    )
    # A broadcast is refused to a socket that has not asked for it.
    assert network.no_route("255.255.255.255")


def test_connections_that_wait_and_clients_that_do_not_acknowledge():
    text = '0 1 172.17.0.5:45678 192.0.2.1:443 users:(("gunicorn",pid=9,fd=3))\n'
    (waits,) = network.parse_ss(text, peer=True)
    assert (waits["address"], waits["port"], waits["programs"], waits["pids"]) == ("192.0.2.1", 443, ["gunicorn"], [9])
    text = (
        "0 9000 172.17.0.5:443 203.0.113.9:5000\n\t cubic rto:12800 backoff:6 unacked:3 retrans:1/7\n"
        "0 0 172.17.0.5:443 203.0.113.10:5000\n\t cubic rto:204 cwnd:10\n"
        "0 9000 127.0.0.1:443 127.0.0.1:5000\n\t cubic rto:12800 backoff:6 unacked:3\n"
    )
    assert network.parse_clients(text) == {"connected": 2, "stuck": 1}


def test_packets_of_the_loopback_interface_arrive():
    assert network.connections("127.0.0.1", 1) == {"tried": 20, "late": 0}


def test_a_certificate_is_for_its_names():
    def extension(*names):
        value = b"".join(tag + bytes([len(name)]) + name for tag, name in names)
        value = b"\x30" + bytes([len(value)]) + value
        return b"\x06\x03\x55\x1d\x11\x01\x01\xff\x04" + bytes([len(value)]) + value

    der = b"\x30\x00" + extension(
        (b"\x82", b"Shift.example.jp"), (b"\x82", b"*.example.org"), (b"\x87", b"\xc0\x00\x02\x07")
    )
    certificate = probe.Certificate(None, None, "", probe._names(der))
    assert certificate.names == ("shift.example.jp", "*.example.org", "c0000207")
    names = (
        "shift.example.jp",
        "SHIFT.example.jp",
        "a.example.org",
        "192.0.2.7",
        "other.example",
        "example.org",
        "192.0.2.8",
    )
    assert [probe.certified(certificate, name) for name in names] == [True] * 4 + [False] * 3
    # One that is cut off, and one without names, which no client accepts but which names nothing either.
    assert probe._names(der[:-3]) == probe._names(b"") == () and probe.certified(certificate._replace(names=()), "x")


def test_files_edited_since_the_deploy_are_known(tmp_path, monkeypatch):
    layout = services.Layout(str(tmp_path / "www"))
    release, configuration = tmp_path / "www" / "releases" / "20260101T000000Z-0123456789", tmp_path / "etc" / "nginx"
    for directory in (release / "source" / "views", configuration, Path(layout.state), tmp_path / "www/slots/blue"):
        directory.mkdir(parents=True)
    (tmp_path / "www/slots/blue/release").symlink_to(release)
    (tmp_path / "www/active").symlink_to("slots/blue")
    for path in (release / "source/views/home.py", release / "env", configuration / "nginx.conf"):
        path.write_text("x")
    state = Path(layout.state) / "state.json"
    state.write_text("{}")
    setting = Setting({"app_root": str(tmp_path / "www")}, root=str(tmp_path))
    assert services.edited(setting) == []
    # The deploy was an hour ago.
    os.utime(state, (time.time() - 3600,) * 2)
    assert {(one["path"].rpartition("/")[2], one["in_release"]) for one in services.edited(setting)} == {
        ("home.py", True), ("nginx.conf", False),
    }  # fmt: skip
    # Patroni writes them in a cluster.
    (tmp_path / "etc/postgresql/17").mkdir(parents=True)
    of_patroni = Setting({"app_root": str(tmp_path / "www"), "cluster_ca_file": "ca.crt"}, root=str(tmp_path))
    assert any("postgresql" in one["path"] for one in services.edited(setting))
    assert not any("postgresql" in one["path"] for one in services.edited(of_patroni))
    # A run that deploys no release has written it.
    monkeypatch.setattr(services.configuration, "STAMP", "/configured")
    stamp = tmp_path / "configured"
    stamp.touch()
    assert [one["path"].rpartition("/")[2] for one in services.edited(setting)] == ["home.py"]
    os.utime(stamp, (time.time() - 60,) * 2)
    # Another release shares the file.
    os.link(release / "source/views/home.py", tmp_path / "link")
    os.utime(release / "source/views/home.py", (1e9, 1e9))
    assert "home.py" not in {one["path"].rpartition("/")[2] for one in services.edited(setting)}
    os.utime(release / "source/views/home.py")
    # What was edited and restored is what was built.
    services.releases.write_json(
        str(release / "manifest.json"), {"files_sha256": services.releases.fingerprint(str(release))}
    )
    assert not [one for one in services.edited(setting) if one["in_release"]]
    # A file that was removed shows as its directory.
    (release / "source/views/home.py").unlink()
    assert (str(release / "source/views"), True) in {
        (one["path"], one["in_release"]) for one in services.edited(setting)
    }


def test_upstreams_are_read_from_the_site(tmp_path):
    enabled = tmp_path / "etc" / "nginx" / "sites-enabled"
    enabled.mkdir(parents=True)
    (enabled / "shiftmaster").write_text(
        "upstream edge_app {\n    server unix:/run/wrong.sock;\n}\nupstream local_app {\n    server 127.0.0.1:9 max_fails=1;\n}\n"
    )
    found = network.nginx(Setting({"app_root": str(tmp_path / "app")}, root=str(tmp_path)))
    assert [(one["upstream"], one["server"]) for one in found["upstreams"]] == [
        ("edge_app", "unix:/run/wrong.sock"), ("local_app", "127.0.0.1:9"),
    ]  # fmt: skip
    assert found["upstreams"][0]["expected"] is False and found["upstreams"][0]["exists"] is False
    assert found["site_enabled"] and not found["maintenance"]
    switch = tmp_path / "app" / "shared" / "maintenance" / "on"
    switch.parent.mkdir(parents=True)
    switch.touch()
    found = network.nginx(Setting({"app_root": str(tmp_path / "app")}, root=str(tmp_path)))
    assert found["maintenance"] and found["maintenance_since"] == switch.stat().st_mtime


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A host whose nginx runs, and whose files are all there; returns what was run."""
    me, ran = pwd.getpwuid(os.getuid()).pw_name, []
    for directory in ("etc/nginx/sites-enabled", "run", "proc/77", "var/log/nginx", "var/lib/nginx"):
        (tmp_path / directory).mkdir(parents=True)
    for name in ("body", "fastcgi", "proxy", "scgi", "uwsgi"):
        (tmp_path / "var/lib/nginx" / name).mkdir()
    (tmp_path / "run/nginx.pid").write_text("77\n")
    (tmp_path / "var/log/nginx/error.log").touch()
    (tmp_path / "etc/nginx/nginx.conf").write_text(
        f"user {me};\npid /run/nginx.pid;\nerror_log /var/log/nginx/error.log warn;\nhttp {{\n  include sites-enabled/*;\n}}\n"
    )
    site = tmp_path / "etc/nginx/sites-enabled/shiftmaster"
    site.write_text("server { listen 80; }\n")
    output = '2026/11/27 15:01:25 [emerg] 1015#1015: unknown directive "nonsense" in /x:3\nnginx: configuration test failed\n'
    monkeypatch.setattr(probe, "run", lambda argv, *_rest: ran.append(argv) or (1, "", output))
    setting = Setting({"proc_path": str(tmp_path / "proc")}, root=str(tmp_path))
    return SimpleNamespace(setting=setting, ran=ran, site=site, root=tmp_path)


def test_a_broken_configuration_is_reported_with_the_message_of_nginx(configured):
    found = network.nginx(configured.setting)["configuration"]
    assert found == {"tested": True, "error": '[emerg] unknown directive "nonsense" in /x:3'}
    # Its errors go into no log.
    assert configured.ran[0][:5] == ["nginx", "-t", "-q", "-e", "stderr"]


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("access_log /var/log/nginx/new.log main;", "/var/log/nginx/new.log"),
        ("proxy_cache_path /var/cache/pages levels=1;", "/var/cache/pages"),
        ("client_body_temp_path /srv/body;", "/srv/body"),
        ("listen unix:/run/new.sock;", "/run/new.sock"),
    ],
)
def test_nginx_is_not_queried_where_it_would_write(configured, line, made):
    configured.site.write_text(f"server {{\n  {line}\n}}\n")
    found = network.nginx(configured.setting)["configuration"]
    assert (found["tested"], configured.ran) == (False, []) and made in found["why_not"]


def test_nginx_is_not_queried_where_it_would_change_owners_or_does_not_run(configured):
    main = configured.root / "etc/nginx/nginx.conf"
    text = main.read_text()
    main.write_text(text.replace("user ", "user other-"))
    assert "/var/lib/nginx/body" in network.nginx(configured.setting)["configuration"]["why_not"]
    main.write_text(text)
    (configured.root / "proc/77").rmdir()
    assert "does not run" in network.nginx(configured.setting)["configuration"]["why_not"]
    assert configured.ran == []


def test_a_path_that_is_known_only_when_a_page_is_requested_is_not_made(configured):
    configured.site.write_text("access_log /var/log/nginx/$host.log;\n")
    assert network.nginx(configured.setting)["configuration"]["tested"]


def test_a_slow_nginx_removes_nothing_else_from_the_report(configured, monkeypatch):
    def slow(argv, seconds):
        raise probe.ProbeError("down", "timeout", "nginx did not end within %g s" % seconds)

    monkeypatch.setattr(probe, "run", slow)
    found = network.nginx(configured.setting)
    assert found["site_enabled"] and "did not end" in found["configuration"]["why_not"]


# --- PostgreSQL ----------------------------------------------------------------------------------------------------------


def session(pid, blocked_by=(), state="active", **more):
    return dict(
        {"pid": pid, "blocked_by": list(blocked_by), "state": state, "query": "UPDATE x", "query_seconds": 9}, **more
    )


def test_roots_of_lock_trees():
    activity = [session(1, state="idle in transaction"), session(2, [1]), session(3, [2]), session(4, [9]), session(5)]
    assert [(one["pid"], one["holds_up"]) for one in database.blockers(activity)] == [(1, [2, 3]), (9, [4])]
    # Two that wait for each other have no root; the server ends one.
    assert database.blockers([session(1, [2]), session(2, [1])]) == []


def test_output_of_psql_contains_no_literals():
    text = (
        'activity\t@@\t[{"pid": 1, "query": "SELECT \'Yamada\'"}]\nserver\t@@\t[{"version": "17.6"}]\nnoise\nbad\t@@\t{'
    )
    found = database.parse(text)
    assert found == {"activity": [{"pid": 1, "query": "SELECT '?'"}], "server": [{"version": "17.6"}]}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('connection to server on socket "x" failed: No such file or directory', "stopped"),
        ('FATAL:  could not open shared memory segment "/PostgreSQL.5": No such file or directory', "refused"),
        ("FATAL:  sorry, too many clients already", "connections"),
        ("FATAL:  the database system is starting up", "starting"),
        ('FATAL:  no pg_hba.conf entry for host "[local]"', "hba"),
        ('FATAL:  database "shiftmaster" does not exist', "absent"),
        ("FATAL: something new", "refused"),
    ],
)
def test_the_reason_why_the_server_refuses(message, reason):
    assert database.refusal(message) == reason


def test_a_server_that_is_stopped_is_distinguished_from_a_missing_psql(monkeypatch):
    stopped = 'psql: error: connection to server on socket "/x" failed: No such file or directory'
    for response, reason in (
        ((2, "", stopped), "stopped"),
        ((127, "", "env: 'psql': No such file or directory"), "missing"),
    ):
        monkeypatch.setattr(database.probe, "run", lambda *_arguments, response=response: response)
        with pytest.raises(probe.ProbeError) as error:
            database.run_queries(Setting({}), "shiftmaster", database.QUERIES, 5)
        assert error.value.reason == reason


def no_message(_setting):
    raise probe.ProbeError("error", "strange", "")


def test_unreadable_sources_have_a_reason(monkeypatch):
    """Not an empty pair of brackets: psql and nft may be something else, with output that no program reads."""
    monkeypatch.setattr(probe, "run", lambda *_arguments: (0, "\x00 not what was \n asked for", ""))
    for function in (lambda setting: database.run_queries(setting, "x", database.QUERIES, 5), network.firewall):
        response = engine.run_part(part(function), Setting({}))
        assert (response["status"], response["reason"]) == ("failed", "garbage")
        assert "no response that can be read" in response["error"] and "asked for" in response["error"]
    for unknown in ("[]", "null", '{"nftables": 3}', "{}"):
        monkeypatch.setattr(probe, "run", lambda *_arguments, unknown=unknown: (0, unknown, ""))
        assert engine.run_part(part(network.firewall), Setting({}))["reason"] == "garbage"
    assert engine.run_part(part(no_message), Setting({}))["error"] == "it ended without a reason"


def table(name, rows, scans, read, index_scans=0, indexed=()):
    return {
        "table": name,
        "rows": rows,
        "scans": scans,
        "scanned_rows": read,
        "index_scans": index_scans,
        "dead_rows": 0,
        "indexed": list(indexed),
    }


def test_slow_statements_that_read_complete_tables():
    slow = {"query": "SELECT * FROM roster WHERE staff = $1", "mean_ms": 2000.0, "calls": 10}
    large = table("roster", 90000, 100, 9000000)
    found = database.scanning({"tables": [large], "slowest_on_average": [slow],
                               "invalid_indexes": [{"table": "roster", "index": "roster_staff"}]})  # fmt: skip
    assert [(one["table"], one["mean_ms"], one["invalid_index"]) for one in found] == [
        ("roster", 2000.0, "roster_staff")
    ]
    shared = table("roster", 300000, 14, 2100000)  # seven scans by two processes each, as seen
    assert database.scanning({"tables": [shared], "slowest_on_average": [slow]})
    # Read by an index; small; another table; a statement of another kind.
    for tables, statement in (
        ([table("roster", 90000, 1, 90000)], slow),
        ([table("roster", 90000, 100, 900)], slow),
        ([table("roster", 90000, 100, 9000000, 90000)], slow),
        # A migration that ran once, long ago.
        ([large], dict(slow, calls=1)),
        ([table("roster", 900, 100, 90000)], slow),
        ([table("rosters", 90000, 100, 9000000)], slow),
        ([large], dict(slow, query="CREATE INDEX ON roster (staff)")),
    ):
        assert database.scanning({"tables": tables, "slowest_on_average": [statement]}) == []
    running = dict(session(3, query_seconds=30), query="UPDATE roster SET x = '?'")
    assert database.scanning({"tables": [large], "activity": [running]})[0]["mean_ms"] == 30000.0
    begun = dict(session(3, query_seconds=1), query=slow["query"])
    found = database.scanning({"tables": [large], "activity": [begun], "slowest_on_average": [slow]})
    assert [one["mean_ms"] for one in found] == [2000.0]


@pytest.mark.parametrize(
    ("query", "indexed", "columns"),
    [
        ("SELECT * FROM roster WHERE staff = $1", ["id"], ["staff"]),
        (
            'SELECT "roster"."id" FROM "roster" WHERE ("roster"."day" >= $1 AND "roster"."staff_id" IN ($2))',
            ["day"],
            ["staff_id"],
        ),
        (
            'SELECT 1 FROM "roster" JOIN "staff" ON "roster"."id" = "staff"."roster_id" WHERE "staff"."name" = $1',
            [],
            [""],
        ),
        ("SELECT * FROM roster WHERE upper(name) = $1", ["id"], [""]),
        ("SELECT * FROM roster WHERE name LIKE $1 AND day = 7", ["day"], [""]),
        # The scans were before the index was created.
        ("SELECT * FROM roster WHERE staff = $1", ["id", "staff"], []),
    ],
    ids=["plain", "Django", "join", "expression", "pattern", "index there"],
)
def test_a_slow_statement_names_the_column_without_an_index(query, indexed, columns):
    slow = {"query": query, "mean_ms": 2000.0, "calls": 10}
    responses = {"tables": [table("roster", 90000, 100, 9000000, indexed=indexed)], "slowest_on_average": [slow]}
    assert [one["column"] for one in database.scanning(responses)] == columns


def test_summary_counts_connections_against_what_can_be_used():
    rows = [{"role": "a", "state": "idle", "count": 90}, {"role": "a", "state": "idle in transaction", "count": 7}]
    found = database.summary({"server": [{"max_connections": 100, "reserved": 3}], "connections": rows,
                              "databases": [{"age": 5}, {"age": 9}]})  # fmt: skip
    assert found["use"] == {"connections": 97, "usable": 97, "percent": 100.0, "idle_in_transaction": 7, "active": 0}
    assert found["oldest_age"] == 9


def test_a_query_without_a_response_is_unknown():
    found = database.summary({"server": [{"max_connections": 100, "reserved": 3}]})
    assert found["oldest_age"] is None and found["worst_dead_percent"] is None
    assert database.summary({"tables": []})["worst_dead_percent"] == 0.0
    # The limit is unknown.
    rows = [{"role": "a", "state": "idle", "count": 14}]
    assert database.summary({"connections": rows})["use"]["percent"] is None
    # A query is sent on one line.
    assert not any("--" in query for query in database.QUERIES.values())


def test_queries_are_one_line_and_one_select_each():
    for argument in database.script(dict(database.QUERIES, **database.STATEMENTS)):
        assert argument.startswith("--command=SELECT ") and "\n" not in argument and ";" not in argument


def test_clusters_in_the_layout_of_debian(tmp_path):
    directory = tmp_path / "etc" / "postgresql" / "17" / "main"
    (directory / "conf.d").mkdir(parents=True)
    (directory / "postgresql.conf").write_text("port = 5432\ndata_directory = '/data/17'\n")
    (directory / "conf.d" / "shiftmaster.conf").write_text("port = 5433\n")
    (directory / "start.conf").write_text("# comment\nauto\n")
    data = tmp_path / "data" / "17"
    data.mkdir(parents=True)
    setting = Setting({}, root=str(tmp_path))
    found = database.clusters(setting)["clusters"][0]
    assert (found["version"], found["port"], found["data"], found["runs"]) == ("17", 5433, "/data/17", False)
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n/data\n")
    assert database.clusters(setting)["clusters"][0]["runs"]
    with pytest.raises(engine.Absent):
        database.clusters(Setting({}, root=str(tmp_path / "gone")))


# --- the application -----------------------------------------------------------------------------------------------------


def test_what_alter_system_has_set(tmp_path):
    path = tmp_path / "postgresql.auto.conf"
    path.write_text(
        "# Do not edit\nssl = 'off'\nlisten_addresses = ''\nprimary_conninfo = 'host=a password=geheim'\nrestore_command = 'x'\n"
    )
    found = database.altered(str(tmp_path))
    assert [(one["name"], one["value"]) for one in found] == [("ssl", "off"), ("listen_addresses", "")]
    assert abs(found[0]["at"] - path.stat().st_mtime) < 1
    assert database.altered(str(tmp_path / "none")) == []


def test_functions_in_which_statements_fail(tmp_path):
    path, now = tmp_path / "x.log", time.strftime("%Y-%m-%d %H:%M:%S.000 UTC", time.gmtime())
    path.write_text(
        "2026-01-01 00:00:00.000 UTC [1] CONTEXT:  PL/pgSQL function old() line 1 at RETURN\n"
        f"{now} [7] [user=a,db=b] ERROR:  relation does not exist\n"
        f"{now} [7] [user=a,db=b] CONTEXT:  PL/pgSQL function audit_row() line 1 at SQL statement\n"
        f"{now} [7] [user=a,db=b] STATEMENT:  SELECT 'PL/pgSQL function forged()'\n"
    )
    assert logs.failing_functions(str(path), time.time() - 900) == ["audit_row"]
    assert logs.failing_functions(str(tmp_path / "none"), 0) == []


def test_writes_to_a_table_with_a_trigger_are_slow():
    update = {"query": 'UPDATE "auth_user" SET "last_login" = $1', "mean_ms": 3004.2, "calls": 12}
    rows = [
        {"query": 'SELECT * FROM "auth_user"', "mean_ms": 9000.0, "calls": 2},
        update,
        {"query": 'UPDATE "auth_user_groups" SET "x" = $1', "mean_ms": 7000.0, "calls": 2},
    ]
    trigger = {"schema": "public", "table": "auth_user", "trigger": "audit", "function": "audit_row"}
    found = database.slow_triggers({"triggers": [trigger], "slowest_on_average": rows})
    assert found == [{**trigger, **update}]
    assert database.slow_triggers({"triggers": [dict(trigger, table="roster_ward")], "slowest_on_average": rows}) == []
    running = {
        "query": "insert into public.auth_user values (?)",
        "query_seconds": 2.5,
        "state": "active",
        "blocked_by": [],
    }
    assert database.slow_triggers({"triggers": [trigger], "activity": [running]})[0]["mean_ms"] == 2500.0
    assert database.slow_triggers({"triggers": [trigger], "activity": [dict(running, blocked_by=[7])]}) == []
    # What holds others up is slow for another reason; a table of another schema has the same name.
    waits = {"pid": 8, "query": "SELECT 1", "query_seconds": 9.0, "state": "active", "blocked_by": [7]}
    assert database.slow_triggers({"triggers": [trigger], "activity": [dict(running, pid=7), waits]}) == []
    assert database.slow_triggers({"triggers": [dict(trigger, schema="lab")], "activity": [running]}) == []


def test_changes_of_the_schema_are_those_of_people(tmp_path):
    now = time.strftime("%Y-%m-%d %H:%M:%S.000 UTC", time.gmtime())

    def line(role, application, words, at=now, database="shiftmaster"):
        return f"{at} [7] [user={role},db={database},app={application},client=[local]] {words}\n"

    typed = "LOG:  statement: "
    path = tmp_path / "x.log"
    path.write_text(
        line("postgres", "psql", typed + "DROP INDEX older", "2026-01-01 00:00:00.000 UTC")
        + line("postgres", "psql", typed + "ALTER TABLE a ADD CONSTRAINT b CHECK (c <> 'secret word'\n\tOR c = 'x')")
        + line("shiftmaster_abc", "", typed + "ALTER TABLE roster_ward ADD COLUMN x int")
        + line("shiftmaster_abc", "psql", "LOG:  execute <unnamed>: DROP TRIGGER audit ON roster_ward")
        # A setting of the database is typed in another one.
        + line("postgres", "psql", typed + "ALTER DATABASE shiftmaster SET jit = on", database="postgres")
        # No change of the application's tables, or one of a program.
        + line("postgres", "psql", typed + "ALTER ROLE app PASSWORD 'secret word'")
        + line("postgres", "psql", typed + "DROP INDEX other", database="other")
        + line("postgres", "pg_restore", typed + "CREATE TABLE x ()")
        + line("postgres", "shiftmaster-backup", typed + "CREATE TABLE x ()")
        + line("anna", "psql", typed + "CREATE TEMP TABLE x ()")
        + line("anna", "psql", typed + "select 1 INTO TEMP x")
        + line("anna", "psql", typed + "REFRESH MATERIALIZED VIEW x")
        + line("anna", "psql", "LOG:  duration: 2000 ms  statement: CREATE TABLE x ()")
        + line("anna", "psql", "ERROR:  x", now)
        # A client without a login chooses its name.
        + line("postgres,db=shiftmaster,app=q,client=[local]] LOG:  statement: DROP x", "", "FATAL:  no")
    )
    found = logs.schema_changes(str(path), "shiftmaster", time.time() - 900)
    assert [(one["role"], one["application"], one["statement"]) for one in found] == [
        ("postgres", "psql", "ALTER TABLE a ADD CONSTRAINT b CHECK (c <> '?' OR c = '?')"),
        ("shiftmaster_abc", "psql", "DROP TRIGGER audit ON roster_ward"),
        ("postgres", "psql", "ALTER DATABASE shiftmaster SET jit = on"),
    ]
    assert logs.schema_changes(str(tmp_path / "none"), "shiftmaster", 0) == []


def test_slow_statements_are_those_that_the_log_names_three_times(tmp_path):
    def line(pid, milliseconds, statement, database="shiftmaster", ago=0, program="shiftmaster"):
        at = time.strftime("%Y-%m-%d %H:%M:%S.000 UTC", time.gmtime(time.time() - ago))
        session = f"{at} [{pid}] [user=app,db={database},app={program},client=10.0.0.1]"
        words = f"duration: {milliseconds} ms  {statement}" if milliseconds else statement
        return f"{session} LOG:  {words}\n"

    insert = "statement: INSERT INTO ward2 VALUES ('%s', %d, 1.5)"
    waits = "process 7 still waiting for ShareLock on x after 1000 ms"
    path = tmp_path / "x.log"
    path.write_text(
        line(5, 9000, insert % ("early", 1), ago=300)
        + "".join(line(pid, 1500 + pid, insert % (f"name {pid}", pid)) for pid in (0, 1, 2))
        # It waited for a lock; the next one of the same session did not.
        + line(7, 0, waits) + line(7, 4000, insert % ("late", 4)) + line(7, 1503, "execute <unnamed>: " + insert[11:] % ("", 5))
        + "".join(line(8, 2000, "statement: DELETE FROM x") for _ in range(2))
        # A client without a login chooses its name.
        + "".join(line(8, 2000, "statement: DELETE FROM z", program="x,client=::1] LOG:  duration: 9.0 ms  statement: y") for _ in range(3))
        + "".join(line(8, 2000, "statement: DELETE FROM y", database="other") for _ in range(3))
        + "".join(line(8, 0, "statement: DROP TABLE y") for _ in range(3))
    )  # fmt: skip
    found = [{"query": "INSERT INTO ward2 VALUES ('?', ?, ?)", "mean_ms": 1501.5, "calls": 4}]
    assert logs.slow_statements(str(path), "shiftmaster", time.time() - 120) == found
    assert logs.slow_statements(str(tmp_path / "none"), "shiftmaster", 0) == []
    trigger = {"schema": "public", "table": "ward2", "trigger": "audit", "function": "audit_row"}
    assert database.slow_triggers({"triggers": [trigger], "logged": found}) == [{**trigger, **found[0]}]


def test_the_database_reports_what_its_log_names(tmp_path, monkeypatch):
    (tmp_path / "etc/postgresql/17/main").mkdir(parents=True)
    at = time.strftime("%Y-%m-%d %H:%M:%S.000 UTC", time.gmtime())
    line = (
        f"{at} [7] [user=app,db=shiftmaster,app=,client=::1] LOG:  duration: 1500.0 ms  statement: DELETE FROM ward\n"
    )
    (tmp_path / "x.log").write_text(3 * line)
    monkeypatch.setattr(database, "run_queries", lambda *_arguments: ({}, []))
    setting = Setting({"logs": {"postgresql": str(tmp_path / "x.log")}}, root=str(tmp_path))
    assert database.database(setting)["logged"] == [{"query": "DELETE FROM ward", "mean_ms": 1500.0, "calls": 3}]
    assert database.database(Setting({}, root=str(tmp_path)))["logged"] == []


def test_literals_of_long_statements_are_hidden(tmp_path):
    """A cut within a literal would show those that follow it."""
    now, path = time.strftime("%Y-%m-%d %H:%M:%S.000 UTC", time.gmtime()), tmp_path / "x.log"
    for long in ("a" * 1600, "a\n\t" + "b" * 300, "a\n\t" * 30, "a" * 7000):
        statement = f"ALTER TABLE t ADD CHECK (a <> '{long}'\n\tOR a <> 'a name' -- it's\n\tOR b = 'a name')"
        session = f"{now} [7] [user=anna,db=x,app=psql,client=::1] LOG:  "
        path.write_text(
            f"{session}statement: {statement}\n" + 3 * f"{session}duration: 1500.0 ms  statement: {statement}\n"
        )
        (changed,) = logs.schema_changes(str(path), "x", 0)
        (slow,) = logs.slow_statements(str(path), "x", 0)
        shown = "ALTER TABLE t ADD CHECK (a <> '?'" + ("" if len(long) > 6000 else " OR a <> '?' OR b = '?')")
        assert (changed["statement"], slow["query"]) == (shown, shown)


def test_damaged_files_are_those_of_the_last_minutes(tmp_path):
    path, times = tmp_path / "x.log", (time.time() - 20 * 60, None)
    earlier, now = (time.strftime("%Y-%m-%d %H:%M:%S.000 UTC", time.gmtime(at)) for at in times)
    setting = SimpleNamespace(logs={"postgresql": str(tmp_path / "*.log")})
    assert database.damaged_files(setting) == []
    path.write_text(
        '2026-01-01 00:00:00.000 UTC [1] ERROR:  invalid page in block 1 of relation "base/5/1"\n'
        f'{earlier} [1] ERROR:  invalid page in block 1 of relation "base/5/2"\n'
        f"{now} [7] ERROR:  invalid page in block 0 of relation base/16384/16500\n"
        f'{now} [7] ERROR:  could not read blocks 3..4 in file "base/16384/16501.1": read only 0 of 16384 bytes\n'
        f"{now} [7] STATEMENT:  SELECT 1\n"
    )
    assert database.damaged_files(setting) == ["16384/16500", "16384/16501"]


def test_files_of_a_release_that_its_user_may_not_read(tmp_path):
    release = tmp_path / "releases" / "r1"
    for part in ("source", "venv", "static"):
        (release / part / "deep").mkdir(parents=True)
        (release / part / "deep" / "file.py").touch()
    tmp_path.chmod(0o755)
    setting = SimpleNamespace(user="nobody", web_user="www-data")
    assert application.closed(str(release), setting) == []
    (release / "static/deep").chmod(0o700)
    (release / "venv/deep/file.py").chmod(0o600)
    # Elsewhere modes are not looked at.
    (release / "env").touch(0o600)
    assert sorted(application.closed(str(release), setting)) == [
        (f"{release}/static/deep/", "www-data"),
        (f"{release}/venv/deep/file.py", "nobody"),
    ]
    assert application.closed(str(release), SimpleNamespace(user="nobody", web_user="")) == [
        (f"{release}/venv/deep/file.py", "nobody")
    ]


def test_changed_files_of_packages(tmp_path, monkeypatch):
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    for name in ("tzdata.list", "libc6:amd64.list", "vim.list", "tzdata.md5sums"):
        (info / name).touch()
    changed, commands = tmp_path / "Tokyo", []
    changed.touch()
    printed = (
        f"??5??????   {changed}\n??5?????? c /etc/nginx/nginx.conf\nmissing     /usr/lib/gone.so (No such file)\n"
        "missing     /usr/share/doc/libc6/copyright\nmissing   c /etc/x\n"
    )

    def run(command, _seconds):
        commands.append(command)
        if command[1] == "--show":
            return 0, "2026b-0+deb13u1", ""
        return (0, "tzdata:amd64: " + command[-1], "") if command[0] == "dpkg-query" else (1, printed, "")

    monkeypatch.setattr(services.probe, "run", run)
    found = services.packages(Setting({}, str(tmp_path)))
    assert commands[0] == ["dpkg", "--verify", "libc6:amd64", "tzdata"] and found["checked"] == 2
    assert {one["version"] for one in found["files"]} == {"2026b-0+deb13u1"}
    assert [(one["path"], one["missing"], one["package"]) for one in found["files"]] == [
        (str(changed), False, "tzdata:amd64"),
        ("/usr/lib/gone.so", True, "tzdata:amd64"),
    ]


def test_packages_that_dpkg_cannot_tell_apart_are_not_compared(tmp_path, monkeypatch):
    (tmp_path / "var/lib/dpkg/info").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/info/tzdata.list").touch()
    error = "dpkg: error: ambiguous package name 'tzdata' with more than one installed instance"
    monkeypatch.setattr(services.probe, "run", lambda _command, _seconds: (2, "", error))
    with pytest.raises(engine.Absent, match="ambiguous"):
        services.packages(Setting({}, str(tmp_path)))


def test_packages_that_cannot_be_compared_in_time_are_no_fault(tmp_path, monkeypatch):
    (tmp_path / "var/lib/dpkg/info").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/info/tzdata.list").touch()

    def run(_command, _seconds):
        raise probe.ProbeError("error", "timeout", "dpkg did not end within 4 s")

    monkeypatch.setattr(services.probe, "run", run)
    with pytest.raises(engine.Absent, match="did not end"):
        services.packages(Setting({}, str(tmp_path)))


def test_programs_with_the_application_s_login_of_redis_that_are_none_of_ours(tmp_path, monkeypatch):
    """By the kernel's tables: 6379 is 18EB; of five programs one has the password and is at this Redis."""
    (tmp_path / "net").mkdir()
    head, form = (
        "  sl  local_address rem_address   st\n",
        "   0: 0100007F:%04X 0100007F:%04X %s 0:0 00:0 0 0 0 %d 1 0\n",
    )
    rows = [(6379, 0, "0A", 1), *((6379, 40000 + pid, "01", 100 + pid) for pid in (71, 72, 73, 74))]
    rows += [(40000 + pid, 6379, "01", pid) for pid in (71, 72, 73, 74, 75)]
    (tmp_path / "net/tcp").write_text(head + "".join(form % row for row in rows))
    units = {
        71: "shiftmaster-worker@blue.service",
        72: "staging.service",
        73: "session-1.scope",
        74: "x.service",
        75: "y.service",
    }
    for pid, unit in units.items():
        process(tmp_path, pid, "python3 take.py redis://shiftmaster:pass-word@h/0", unit=unit)
        (tmp_path / str(pid) / "fd").mkdir()
        (tmp_path / str(pid) / "fd" / "7").symlink_to("socket:[%d]" % pid)
        (tmp_path / str(pid) / "environ").write_text("HOME=/\0")
    process_command(tmp_path, 73, "python3 AnsiballZ_shiftmaster_diagnose.py pass-word")
    # Of another application, with its own login.
    process_command(tmp_path, 74, "python3 own.py")
    monkeypatch.setattr(network, "_broker_password", lambda _setting: "pass-word")
    setting = Setting({"redis_ports": [[6379, False]], "proc_path": str(tmp_path)})
    (found,) = network.redis_clients(setting)
    # The server has no other end of the fifth one's connection: it is at a Redis elsewhere.
    assert (found["pid"], found["unit"]) == (72, "staging.service") and "pass-word" not in found["command"]
    assert network.redis_clients(Setting({"proc_path": str(tmp_path)})) == []


def process_command(directory, pid, command):
    (directory / str(pid) / "cmdline").write_text("\0".join(command.split()) + "\0")


def test_an_interpreter_in_a_closed_directory_is_a_matter_of_rights(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("/usr/bin/env")
    tmp_path.chmod(0o700)
    found = application._interpreter(str(tmp_path / "bin/python"), "nobody")
    assert (found["works"], found["error"]) == (None, "rights")


def test_rights_by_mode(tmp_path):
    path = tmp_path / "x"
    path.write_text("")
    path.chmod(0o640)
    status = path.stat()
    me, mine = status.st_uid, {status.st_gid}
    assert application.may(status, 0, set(), 7)
    if me:
        assert application.may(status, me, set(), 6) and not application.may(status, me, set(), 1)
    assert application.may(status, 4711, mine, 4) and not application.may(status, 4711, mine, 2)
    assert not application.may(status, 4711, {4711}, 4)


def test_the_blocking_directory_is_named(tmp_path, monkeypatch):
    inner = tmp_path / "closed" / "log"
    inner.mkdir(parents=True)
    inner.chmod(0o707)
    mine, really = {(tmp_path / "closed").stat().st_ino, inner.stat().st_ino}, application.may
    monkeypatch.setattr(application, "groups_of", lambda user: (4711, {4711}))
    # Directories above that of this test do not matter.
    monkeypatch.setattr(application, "may", lambda status, *how: status.st_ino not in mine or really(status, *how))
    (tmp_path / "closed").chmod(0o700)
    found = application.obstacle(str(inner), "shiftmaster", 7)
    assert found["path"] == str(tmp_path / "closed") and found["problem"] == "rights"
    assert (found["mode"], found["need"]) == ("0700", "x")
    # To pass through a directory, entering is enough.
    (tmp_path / "closed").chmod(0o701)
    assert application.obstacle(str(inner), "shiftmaster", 7) is None
    assert application.obstacle(str(inner / "gone"), "shiftmaster", 7)["problem"] == "missing"
    inner.chmod(0o705)
    assert application.obstacle(str(inner), "shiftmaster", 7)["need"] == "rwx"
    # A group that has the right, and the user is no member of it; root's group is for nobody else.
    inner.chmod(0o770)
    assert application.obstacle(str(inner), "shiftmaster", 7)["lacks_group"] == ""
    os.chown(inner, 0, grp.getgrnam("www-data").gr_gid)
    assert application.obstacle(str(inner), "shiftmaster", 7)["lacks_group"] == "www-data"


CELERY_LOG = """[2026-01-31 08:00:00,000: INFO/MainProcess] Connected to redis://shiftmaster:**@localhost:6379/0
[2026-01-31 08:00:01,000: INFO/MainProcess] Task roster.tasks.x[1] received
[2026-01-31 08:00:02,000: INFO/ForkPoolWorker-1] Task roster.tasks.x[1] succeeded in 0.1s: None
[2026-01-31 08:00:03,000: ERROR/MainProcess] consumer: Cannot connect to redis://localhost:6379/0: Error 111
"""


def test_the_last_task_of_the_worker(tmp_path):
    path = tmp_path / "celery.log"
    path.write_text(CELERY_LOG)
    found = application.worker_log(str(path))
    assert (found["received"], found["ended"], found["failed"], found["broker_lost"]) == (1, 1, 0, True)
    path.write_text(CELERY_LOG + CELERY_LOG.splitlines()[0] + "\n")
    assert application.worker_log(str(path))["broker_lost"] is False
    assert "problem" in application.worker_log(str(tmp_path / "gone"))


def test_the_worker_s_lines_are_in_the_journal_where_the_application_logs_by_itself(tmp_path, monkeypatch):
    journal = "".join(f"1769846403.5 app1 celery[77]: {line}\n" for line in CELERY_LOG.splitlines())
    requested = []
    monkeypatch.setattr(
        application.probe, "run", lambda command, _seconds: (requested.append(command), (0, journal, ""))[1]
    )
    found = application.worker_log(str(tmp_path / "gone"), "shiftmaster-worker@blue.service")
    assert (found["received"], found["ended"], found["broker_lost"]) == (1, 1, True)
    assert found["path"] == "journalctl -u shiftmaster-worker@blue.service" and found["last"].endswith("Error 111")
    assert "--unit=shiftmaster-worker@blue.service" in requested[0]
    # A file with nothing in it is as good as none.
    (tmp_path / "empty").touch()
    assert application.worker_log(str(tmp_path / "empty"), "shiftmaster-worker@blue.service")["received"] == 1
    journal = ""
    assert "problem" in application.worker_log(str(tmp_path / "gone"), "shiftmaster-worker@blue.service")


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        (
            '[{"w": [{"name": "a.b", "time_start": 900.0}]}, {"w": [{}, {}]}, {"w": ["a.b [rate_limit=1/h]", "a.c"]}]',
            {"tasks": [{"name": "a.b", "seconds": 100}], "scheduled": 2, "limits": ["a.b [rate_limit=1/h]"]},
        ),
        ('[{"w": []}, {"w": []}, {"w": []}]', {"tasks": [], "scheduled": 0, "limits": []}),
        # No worker responded in time, or the application does not start.
        ("[null, null, null]", {}),
        ("Traceback", {}),
    ],
)
def test_what_the_workers_do(monkeypatch, printed, found):
    commands = []

    class Code:
        def __init__(self, path, user):
            assert path == "/srv/x/active/release" and user == "shiftmaster"

        def run(self, argv, timeout):
            commands.append(argv)
            return SimpleNamespace(stdout=printed)

    monkeypatch.setattr(application, "ReleaseCode", Code)
    monkeypatch.setattr(application.time, "time", lambda: 1000.0)
    setting = Setting({"app_root": "/srv/x", "celery_application": "site"})
    assert application.of_workers(setting, ["w"]) == found
    assert commands[0][-2:] == ["site", "w"]


def test_the_largest_keys_of_redis_are_named_without_secrets():
    keys = {
        "0": ["celery", "_kombu.binding"],
        "1": ["etl:export", ":1:django.contrib.sessions.cache" + "k3" * 16, "9f8a7c6b5d"],
    }
    sizes = {"celery": 100, "_kombu.binding": 5, "etl:export": 90000000}
    selected = []

    class Talk:
        def say(self, *words):
            if words[0] == "SELECT":
                selected.append(words[1])
                return "OK"
            return ["0", keys[selected[-1]]]

        def number(self, *words):
            return sizes.get(words[2], 7000)

    found = application.largest_keys(Talk(), ["0", "1"])
    assert [(one["name"], one["database"]) for one in found] == [
        ("etl...", "1"), (":1:django...", "1"), ("...", "1"),
    ]  # fmt: skip


def test_tasks_that_a_worker_holds_are_a_suspicion():
    for broker, expected in (({"held": 3}, True), ({"held": 0}, False), ({"queues": {"celery": 2}}, False)):
        assert suspicions({"redis": {"broker": broker}}) is expected


def test_errors_of_a_worker_in_the_journal_are_read_with_their_traceback(monkeypatch):
    journal = (
        "Started shiftmaster-worker@blue.service - ShiftMaster Celery worker (blue).\n"
        "2026-11-29 20:35:27,084 [ERROR] celery.worker: Received unregistered task of type 'gone'.\n"
        "Traceback (most recent call last):\nKeyError: 'gone'\n"
    )
    monkeypatch.setattr(logs.probe, "run", lambda _command, _seconds: (0, journal, ""))
    (problem,) = logs.of_journal("shiftmaster-worker@blue.service", 0.0)["problems"]
    assert "unregistered task" in problem["text"] and problem["exception"] == "KeyError: 'gone'"


def process(directory, pid, command, parent=1, unit="shiftmaster-beat@blue.service", state="S"):
    place = directory / str(pid)
    place.mkdir()
    (place / "stat").write_text(stat_line(pid, "celery", state, parent=parent))
    (place / "cmdline").write_text("\0".join(command.split()) + "\0")
    (place / "cgroup").write_text(f"0::/system.slice/{unit}\n")


def test_schedulers_and_workers_are_counted_without_their_children(tmp_path):
    proc, root = tmp_path / "proc", tmp_path / "app"
    proc.mkdir()
    root.mkdir()
    process(proc, 10, "/v/bin/python /v/bin/celery -A shiftmaster beat --loglevel=INFO")
    process(proc, 11, "/v/bin/celery -A shiftmaster beat", unit="session-1.scope")
    process(proc, 20, "/v/bin/celery -A shiftmaster worker -n worker-blue", unit="shiftmaster-worker@blue.service")
    process(proc, 21, "/v/bin/celery -A shiftmaster worker -n worker-blue", parent=20)
    process(proc, 30, "/usr/bin/python3 report.py")
    process(proc, 31, "tail -f /var/log/shiftmaster/celery-beat.log")
    process(proc, 32, "/v/bin/celery -A shiftmaster inspect ping --destination worker")
    # The application chooses the arguments of its processes: no finding may have the web processes stopped.
    process(proc, 33, "/v/bin/celery -A shiftmaster beat", unit="shiftmaster-web@blue.service")
    process(proc, 34, "/v/bin/celery -A shiftmaster beat", unit="shiftmaster-worker@blue.service")
    found = application.celery(Setting({"proc_path": str(proc), "app_root": str(root), "log_dir": str(tmp_path)}))
    assert [(one["pid"], one["unit"]) for one in found["beats"]] == [
        (10, "shiftmaster-beat@blue.service"), (11, "session-1.scope"),
    ]  # fmt: skip
    assert [one["pid"] for one in found["workers"]] == [20]


def test_the_command_that_keeps_redis_busy(monkeypatch):
    timestamps = iter([0.0, 1.0])
    monkeypatch.setattr(application.time, "monotonic", lambda: next(timestamps))
    monkeypatch.setattr(application.time, "sleep", lambda _seconds: None)
    texts = iter(
        [
            "cmdstat_get:calls=10,usec=100,usec_per_call=10\r\ncmdstat_eval:calls=2,usec=600000\r\n",
            "cmdstat_get:calls=90,usec=900,usec_per_call=10\r\ncmdstat_eval:calls=5,usec=1500000\r\n",
        ]
    )
    talk = SimpleNamespace(say=lambda *_words: next(texts))
    assert application.busiest_command(talk) == {"command": "eval", "percent": 90.0, "ms": 300.0}


def test_keys_of_a_wrong_type_are_noted(monkeypatch):
    talk = application.Conversation.__new__(application.Conversation)
    talk._wire, talk._stream, talk.wrong_type = None, None, set()

    def refuse(_wire, _stream, *words):
        raise probe.RedisError("WRONGTYPE Operation against a key" if words[1] == "celery" else "ERR other")

    monkeypatch.setattr(application.probe, "redis_command", refuse)
    assert talk.number("LLEN", "celery") == 0 and talk.number("LLEN", "mail") == 0 and talk.wrong_type == {"celery"}


def test_the_worker_is_queried_only_where_tasks_wait():
    assert not suspicions({}) and not suspicions({"redis": {"broker": {"queues_later": {"celery": 0}}}})
    assert suspicions({"redis": {"broker": {"queues": {"celery": 3}, "queues_later": {"celery": 3}}}})
    assert not suspicions({"redis": {"broker": {"queues": {"celery": 9}, "queues_later": {"celery": 3}}}})


# --- services ------------------------------------------------------------------------------------------------------------


def test_errors_of_the_journal_are_grouped():
    lines = [
        json.dumps({"MESSAGE": f"failed {number}", "UNIT": "a.service", "__REALTIME_TIMESTAMP": str(number * 10**6)})
        for number in (1, 2)
    ]
    found = services.parse_journal("\n".join([*lines, json.dumps({"MESSAGE": [1, 2]}), "broken", "7"]))
    assert found == [{"unit": "a.service", "count": 2, "text": "failed 2", "last": 2.0}]


def test_containers_of_docker_and_podman():
    text = (
        json.dumps({"Names": "a", "Image": "x", "State": "running", "Status": "Up"})
        + "\n"
        + json.dumps({"Names": ["b"]})
    )
    assert [(one["name"], one["state"]) for one in services.parse_containers(text)] == [("a", "running"), ("b", "")]


def test_stopped_processes_of_a_unit(tmp_path):
    group = tmp_path / "cgroup" / "system.slice" / "x.service"
    group.mkdir(parents=True)
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    for pid, state, lines in (
        (5, "T (stopped)", "0::/system.slice/x.service\n"),
        # As older kernels have it, and in a group below the unit's.
        (6, "S (sleeping)", "4:memory:/system.slice/x.service/inner\n1:name=systemd:/system.slice/x.service\n"),
        (7, "T (stopped)", "0::/system.slice/x.service2\n"),
    ):
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "status").write_text(f"Name: x\nState:\t{state}\n")
        (tmp_path / "proc" / str(pid) / "cgroup").write_text(lines)
    setting = Setting({"proc_path": str(tmp_path / "proc"), "cgroup_path": str(tmp_path / "cgroup")})
    groups = services.processes_by_group(setting.proc)
    found = services.unit_processes(setting, "/system.slice/x.service", groups)
    assert (found["stopped"], found["waiting_for_disk"], found["frozen"]) == (1, 0, 0)
    assert services.unit_processes(setting, "", groups)["processes"] == 0
    # By a control group that is not the unit's own.
    (tmp_path / "proc" / "6" / "status").write_text("Name: x\nState:\tD (disk sleep)\n")
    (tmp_path / "proc" / "6" / "wchan").write_text("__refrigerator")
    found = services.unit_processes(setting, "/system.slice/x.service", groups)
    assert (found["waiting_for_disk"], found["frozen"]) == (0, 1) and "freezer" not in found
    (tmp_path / "proc" / "6" / "cgroup").write_text("4:memory:/system.slice/x.service\n7:freezer:/held\n")
    assert services.unit_processes(setting, "/system.slice/x.service", groups)["freezer"] == "/held"


def test_units_that_another_one_stops_again_and_again():
    # The lines of one stop are in two periods of five seconds.
    setting, now = Setting({}), int(time.time()) // 5 * 5 + 4.3

    def stops(other, times):
        lines = []
        for number in range(times):
            at = now - 600 + 30 * number
            lines += [
                f"{at:.6f} h systemd[1]: Starting {other}...",
                f"{at + 0.5:.6f} h systemd[1]: Stopping shiftmaster-web@blue.service - ShiftMaster web processes...",
                f"{at + 0.9:.6f} h systemd[1]: Stopped shiftmaster-web@blue.service - ShiftMaster web processes.",
                f"{at + 9:.6f} h systemd[1]: Started far.service.",
            ]
        # journalctl begins with the newest.
        return services.restarted(setting, "\n".join(reversed(lines)), now - 900)

    (row,) = stops("keep.service - Keep", 4)
    assert (row["by"], row["count"]) == ("keep.service", 4) and row["unit"].startswith("shiftmaster-web@blue")
    assert stops("keep.service", 2) == [] and stops("shiftmaster-beat@blue.service", 4) == []


def test_settings_of_a_unit_without_the_values_of_its_environment(tmp_path):
    path = tmp_path / "x.conf"
    path.write_text("[Service]\n# no\nProtectSystem=strict\nEnvironment=DB_PASSWORD=geheim\nEnvironmentFile=/etc/x\n")
    assert services._unit_settings(str(path)) == ["ProtectSystem=strict", "Environment=...", "EnvironmentFile=/etc/x"]


def test_the_unit_of_a_process():
    assert host.unit_of("0::/system.slice/system-x.slice/a@b.service\n") == "a@b.service"
    assert host.unit_of("4:memory:/system.slice/a.service\n0::/\n") == "a.service"
    assert host.unit_of("0::/\n") == ""


# --- what goes wrong slowly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("collect", [upkeep.logins, upkeep.rights_changed, host.kills, host.kernel])
def test_a_journal_that_cannot_be_read_is_not_empty(monkeypatch, collect):
    for response in ((1, "", "No journal files were opened due to insufficient permissions."), (3, "", "")):
        monkeypatch.setattr(probe, "run", lambda *_arguments, response=response: response)
        with pytest.raises(probe.ProbeError):
            collect(Setting({}))
    monkeypatch.setattr(probe, "run", lambda *_arguments: (1, "", ""))
    assert collect(Setting({}))


def test_backups_are_read_from_their_manifests():
    def run(hour, *parts):
        entries = {
            name: {"result": result, "ended": "2026-11-26T%02d:30:00Z" % hour, "size_bytes": size,
                   "verified": [{"how": "restore_test", "good": verified, "at": "2026-11-26T%02d:40:00Z" % hour}]}
            for name, result, size, verified in parts
        }  # fmt: skip
        return {"ended": "2026-11-26T%02d:50:00Z" % hour, "parts": entries}

    now = 1795737600.0  # 2026-11-27 00:00 UTC
    killed = dict(run(23, ("files", "running", 1, False)), ended=None)
    found = upkeep.parse_backups(
        [
            run(2, ("database", "succeeded", 900, True), ("logical", "succeeded", 700, True)),
            run(3, ("database", "failed", 0, False), ("files", "warning", 50, True), ("logical", "skipped", 0, False)),
            killed,
        ],
        now,
    )
    assert found["parts"] == [
        {"name": "database", "daily": True, "hours_ago": 21.5, "bytes": 900, "failed": True},
        {"name": "logical", "daily": False, "hours_ago": 21.5, "bytes": 700, "failed": False},
        {"name": "files", "daily": True, "hours_ago": 20.5, "bytes": 50, "failed": False},
    ]
    assert found["verified_hours_ago"] == 21.3
    assert upkeep.parse_backups([], now) == {"parts": [], "verified_hours_ago": None}


def ecs_line(at, level="ERROR", message="Internal Server Error: /shifts/", **more):
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at))
    event = {"@timestamp": stamp, "log": {"level": level, "logger": "django.request"}, "message": message, **more}
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False) + "\n"


TRACE = (
    'Traceback (most recent call last):\n  File "/x/views.py", line 9, in shifts\n    Shift.objects.get()\n'
    "django.db.utils.ProgrammingError: relation does not exist"
)


def test_an_exception_is_found_in_lines_of_the_schema(tmp_path):
    """Where logs are collected, error.log has gunicorn's own lines only."""
    now = time.time()
    (tmp_path / "error.log").write_text(line_of(now - 300, "[INFO] Booting worker"))
    (tmp_path / "app.log").write_text(
        ecs_line(now - 200, "INFO", "printed ERROR before") + ecs_line(now - 150, "INFO", "two\u2028lines\x85ERROR")
        + '{"@timestamp":"torn\n{"@timestamp":1}\n'
        + ecs_line(now - 100, error={"stack_trace": TRACE}) + ecs_line(now - 50, error={"stack_trace": TRACE})
    )  # fmt: skip
    setting = Setting({"hours": 14, "log_dir": str(tmp_path), "app_root": str(tmp_path)})
    setting.logs = {"application": setting.logs["application"]}
    found = logs.logs(setting)["files"]["application"]
    (problem,) = found["problems"]
    assert problem["exception"] == "django.db.utils.ProgrammingError: relation does not exist" and problem["count"] == 2
    assert problem["where"] == 'File "/x/views.py", line 9, in shifts' and abs(problem["last"] - (now - 50)) < 1.1
    assert problem["text"].endswith("[ERROR] django.request: Internal Server Error: /shifts/")
    assert found["path"] == str(tmp_path / "app.log") and found["reached"]
    (tmp_path / "error.log").write_text(line_of(now - 10))
    found = logs.logs(setting)["files"]["application"]
    assert found["path"] == str(tmp_path / "error.log") and [one["count"] for one in found["problems"]] == [1, 2]
    (tmp_path / "app.log").unlink()
    (tmp_path / "app.log").mkdir()
    assert [one["count"] for one in logs.logs(setting)["files"]["application"]["problems"]] == [1]


def test_an_exception_is_found_in_the_published_application_s_own_log(tmp_path):
    now = time.time()
    own = tmp_path / "shared/logs/django.log"
    own.parent.mkdir(parents=True)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now - 100))
    own.write_text(
        f"INFO {stamp},123 views 71 140 no ERROR at all\nERROR {stamp},124 log 71 140 Internal Server Error: /\n{TRACE}\n"
        f"WARNING {stamp},125 log 71 140 Not Found: /nothing/\n"
    )
    setting = Setting({"hours": 1, "log_dir": str(tmp_path / "log"), "app_root": str(tmp_path)})
    found = logs.logs(setting)["files"]["application"]
    assert found["path"] == str(own) and found["reached"]
    (problem,) = found["problems"]
    assert problem["exception"].startswith("django.db.utils.ProgrammingError") and problem["count"] == 1
    assert abs(problem["last"] - (now - 100)) < 1.1


# --- the logs' own edges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["error", "crit", "alert", "emerg"])
def test_each_bad_level_of_nginx_is_bad_and_no_other(level):
    assert logs.is_bad("2026/01/01 00:00:00 [%s] 1#1: x" % level)
    assert not any(logs.is_bad("2026/01/01 00:00:00 [%s] 1#1: error" % fine) for fine in ("notice", "info", "warn"))


def test_an_access_log_is_summed_up_by_slot_and_status():
    now = 100000.0
    found = [
        logs.symptoms.Request(now - age, status, seconds)
        for age, status, seconds in ((10, 500, 0.5), (10, 499, 0.1), (299, 200, 0.1), (301, 503, 9.0), (7300, 200, 1))
    ]
    made = logs.summary(found, now, 2.0, slots=4)
    assert [one["page"] for one in made["recent"].pop("failing")] == [""] and made["recent"].pop("refused") == []
    assert made["recent"].pop("own_p95_seconds") is None and made["recent"].pop("slow_pages") == []
    assert made["recent"].pop("rising") == [] and not made["recent"].pop("sent_slowly")
    assert made["requests"] == 5 and made["by_status"] == {"200": 2, "499": 1, "500": 1, "503": 1}
    assert made["recent"] == {
        "requests": 3, "errors": 1, "p95_seconds": 0.5, "usual_p95_seconds": 9.0, "slower": False, "by_status": {"200": 1, "499": 1, "500": 1},
    }  # fmt: skip
    assert [one["p95_seconds"] for one in made["series"]] == [1, 0, 0, 9]
    # Older requests are counted in the first slot.
    assert [(one["requests"], one["errors"], one["at"]) for one in made["series"]] == [
        (1, 0, 94600), (0, 0, 96400), (0, 0, 98200), (4, 2, 100000),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("usual", "now", "slower"), [(0.03, 0.6, True), (0.03, 0.4, False), (0.3, 0.9, False), (0.3, 2.0, True)]
)
def test_pages_are_slow_by_comparison_with_the_hours_before(usual, now, slower):
    before = [logs.symptoms.Request(float(at), 200, usual) for at in range(100)]
    made = logs.summary([*before, *(logs.symptoms.Request(900.0 + at, 200, now) for at in range(30))], 1000.0, 1.0)
    assert made["recent"]["slower"] is slower
    assert logs.summary([*before[1:], logs.symptoms.Request(900.0, 200, now)], 1000.0, 1.0)["recent"]["slower"] is False


@pytest.mark.parametrize(
    ("seconds", "requests", "slow"), [(3.0, 5, True), (3.0, 4, False), (0.9, 5, False), (1.1, 5, True)]
)
def test_one_page_is_slow_by_comparison_with_the_hours_before(seconds, requests, slow):
    before = [logs.symptoms.Request(float(at), 200, 0.2, "/login/") for at in range(10)]
    others = [logs.symptoms.Request(900.0 + at, 200, 0.1, "/") for at in range(90)]
    now = [logs.symptoms.Request(950.0 + at, 200, seconds, "/login/") for at in range(requests)]
    pages = logs.summary([*before, *others, *now], 1000.0, 1.0)["recent"]["slow_pages"]
    expected = {"page": "/login/", "seconds": seconds, "usual_seconds": 0.2, "requests": requests}
    assert pages == ([expected] if slow else [])
    assert logs.summary([*before[1:], *now], 1000.0, 1.0)["recent"]["slow_pages"] == []


@pytest.mark.parametrize(
    ("page", "count", "before", "usual"),
    [
        ("/health/deep/", 180, [], None),
        ("/health/deep/", 179, [], "silent"),
        ("/", 600, [], "silent"),
        # By comparison with the minutes before.
        ("/", 180, range(400), "silent"),
        ("/", 180, range(0, 400, 4), 0.25),
        ("/health/", 180, range(400), "silent"),
    ],
)
def test_a_page_is_requested_far_more_often_than_before(page, count, before, usual):
    earlier = [logs.symptoms.Request(float(at), 200, 0.1, page) for at in before]
    now = [logs.symptoms.Request(990.0, 200, 0.1, page)] * count
    found = logs.summary([*earlier, *now], 1000.0, 1.0)["recent"]["rising"]
    expected = {"page": page, "per_second": count / 60, "usual": usual}
    assert found == ([] if usual == "silent" else [expected])


def test_the_time_of_the_application_is_that_of_its_last_response():
    """nginx has tried one server and then another; a page of its own has none."""
    lines = [access(990.0, upstream_response_time=one) for one in ("0.010, 0.250", "-", "", "0.030")]
    found = logs.parsed_requests(lines, 0.0)
    assert [one.own_seconds for one in found] == [0.25, None, None, 0.03]
    assert logs.summary(found, 1000.0, 1.0)["recent"]["own_p95_seconds"] == 0.25
    # nginx or the network takes the rest; a slow application does not count.
    for own, sent_slowly in ((0.1, True), (3.0, False)):
        slow = [logs.symptoms.Request(990.0, 200, 4.0, "/", own_seconds=own)] * 21
        assert logs.summary(slow, 1000.0, 1.0)["recent"]["sent_slowly"] is sent_slowly


@pytest.mark.parametrize(("served", "new"), [(10, False), (9, True)])
def test_a_page_that_this_release_has_served_for_long_fails_for_another_reason(served, new):
    """The release before served it, too: a rollback is no remedy."""
    before = [logs.symptoms.Request(float(at), 200, 0.1, "/x/") for at in range(20)]
    since = [logs.symptoms.Request(100.0 + at, 200, 0.1, "/x/") for at in range(served)]
    failed = [logs.symptoms.Request(950.0 + at, 500, 0.1, "/x/", True) for at in range(9)]
    (page,) = logs.summary([*before, *since, *failed], 1000.0, 1.0, switch=(0.0, 100.0))["recent"]["failing"]
    assert page["new"] is new


def access(at, status=200, **more):
    return json.dumps(dict({"msec": at, "status": status, "request_time": "0.1"}, **more)) + "\n"


def test_requests_are_read_out_of_the_rotated_access_log_too(tmp_path, monkeypatch):
    now = time.time()
    log = tmp_path / "access.log"
    setting = SimpleNamespace(access_log=str(log), hours=1, app_root=str(tmp_path))
    with pytest.raises(logs.Absent):
        logs.requests(setting)
    log.write_text(access(now - 10) + access(now - 4000))
    assert logs.requests(setting)["requests"] == 1
    with gzip.open(str(log) + ".2.gz", "wb") as stream:
        stream.write(access(now - 30, 502).encode())
    assert logs.requests(setting)["by_status"] == {"200": 1, "502": 1}
    # With 64 KiB of its own it needs no packed one.
    lines = access(now - 10)
    log.write_text(lines + "x" * ((1 << 16) - len(lines) - 1) + "\n")
    assert logs.requests(setting)["by_status"] == {"200": 1}
    (tmp_path / "access.log.1").write_text(access(now - 20, 404))
    assert logs.requests(setting)["by_status"] == {"200": 1, "404": 1}


RELEASE = "20260101T000000Z-aaaaaaa"


def test_the_release_before_is_known_by_the_audit_log(tmp_path):
    """Errors of a page count as new only where the same page worked before the switch."""
    now, log = time.time(), tmp_path / "access.log"
    layout = logs.Layout(str(tmp_path))
    for directory in (layout.state, layout.release(RELEASE)):
        os.makedirs(directory)
    layout.point_slot("blue", RELEASE)
    layout.activate("blue")

    def clock(at):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))

    event = {"event": "switched", "target": RELEASE, "time": clock(now - 60)}
    audit = Path(layout.state, "audit.jsonl")
    setting = SimpleNamespace(access_log=str(log), hours=1, app_root=str(tmp_path))
    for before, audited, new in ((200, True, True), (500, True, False), (200, False, False)):
        audit.write_text("nonsense\n[]\n" + json.dumps(event) + "\n" if audited else "")
        log.write_text(
            "".join(access(now - 200 + at, before, path="/x/") for at in range(20)) + access(now - 5, 500, path="/x/")
        )
        (page,) = logs.requests(setting)["recent"]["failing"]
        assert page["new"] == new, (before, audited)
    # An attempt that failed in between is no baseline.
    attempt = [{"event": "live", "time": clock(now - 300)}, {"event": "reverted", "time": clock(now - 120)}, event]
    audit.write_text("".join(json.dumps(one) + "\n" for one in attempt))
    lines = [access(now - 200 + at, 500, path="/x/") for at in range(20)]
    lines += [access(now - 100 + at, 200, path="/y/") for at in range(20)]
    log.write_text("".join(lines) + access(now - 5, 500, path="/x/"))
    assert logs.requests(setting)["recent"]["failing"][0]["new"]


def test_times_of_an_access_log_in_every_form_it_has():
    lines = [
        access(100.5), access("100.5"), json.dumps({"time_iso8601": "1970-01-01T00:01:40+00:00", "status": "200"}),
        json.dumps({"@timestamp": "1970-01-01T00:01:40Z", "status": 200, "request_time": "-"}),
        json.dumps({"time": "nonsense", "msec": 100.0, "status": 200}), json.dumps({"status": 200}), "5", "{", access(99),
        access(float("inf")),
    ]  # fmt: skip
    assert [one[:3] for one in logs.parsed_requests(lines, 100.0)] == [
        (100.5, 200, 0.1), (100.5, 200, 0.1), (100.0, 200, 0.0), (100.0, 200, 0.0), (100.0, 200, 0.0),
    ]  # fmt: skip


def test_a_packed_log_that_is_damaged_is_an_error(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"x" * 100000)[:60])
    with pytest.raises(OSError, match="is damaged"):
        logs.unpacked(str(path), 1 << 20)


def test_a_problem_of_a_log_has_a_length_limit():
    line = "2026-11-26 12:00:00 [ERROR] %s" % ("x" * 999)
    text = '%s\n  File "/%s", line 1\nValueError: %s\n' % (line, "f" * 999, "y" * 999)
    (problem,) = logs.problems(text, 0)
    assert (problem["text"], problem["exception"]) == (line[:300], ("ValueError: " + "y" * 999)[:300])
    assert problem["where"] == ('File "/' + "f" * 999)[:200]
