"""service_config: checked in a copy, swapped, loaded and verified, or rolled back; and what it queries for that."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import stat
import threading
import time
import types

import pytest
import service_config as sc
from ansible.module_utils.shiftmaster.host import configuration, points, units, webconfig
from ansible.module_utils.shiftmaster.host.configuration import Failed
from ansible.module_utils.shiftmaster.monitoring import metrics, prometheus

ME, MINE = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
OLD, NEW = "value: 1\n", "value: 2\n"
URL = "http://127.0.0.1:1/metrics"
TARGETS = "http://127.0.0.1:1/targets"


class Host:
    """A unit that reads one file, as systemd and the service's own metrics show it."""

    def __init__(self, directory):
        self.file = directory / "etc" / "service.yml"
        self.active, self.enabled, self.there = True, True, True
        self.invocation, self.started, self.restarts = "one", time.time(), 0
        self.loaded, self.loaded_at, self.successful = None, 0.0, 1
        self.daemon_reload = False
        self.password = None
        self.refuses = ()
        self.stuck = False
        self.done = []
        # instance -> health, as the configuration that is loaded has it
        self.targets = {}
        self.unasked = ()

    def read(self):
        text = self.file.read_text() if self.file.exists() else ""
        if text in self.refuses:
            self.successful = 0
            return False
        self.loaded, self.loaded_at, self.successful = text, time.time(), 1
        return True

    def start(self):
        self.invocation += "+"
        self.started = time.time()
        self.active = self.read()

    def systemctl(self, *arguments, timeout=180):
        self.done.append(arguments[0])
        if arguments[0] == "restart":
            self.start()
        elif arguments[0] == "reload" and not self.stuck:
            # As kill -HUP: it reports nothing of what became of it.
            self.read()
        elif arguments[0] == "stop":
            self.active = False
        elif arguments[0] == "enable":
            self.enabled = True
        elif arguments[0] == "daemon-reload":
            self.daemon_reload = False

    def facts(self, _unit):
        when = time.gmtime(self.started)
        fraction = ("%.6f" % (self.started % 1))[1:]
        return {
            "LoadState": "loaded" if self.there else "not-found",
            "ActiveState": "active" if self.active else "failed",
            "MainPID": "7",
            "InvocationID": self.invocation,
            "NRestarts": str(self.restarts),
            "NeedDaemonReload": "yes" if self.daemon_reload else "no",
            "UnitFileState": "enabled" if self.enabled else "disabled",
            "ExecMainStartTimestamp": time.strftime("Thu %Y-%m-%d %H:%M:%S", when) + fraction + " UTC",
        }

    def get(self, url, ca_file=None, user=None, password=None, timeout=5.0):
        if not self.active:
            raise OSError("refused")
        if self.password is not None and (user is None or password != self.password):
            return 401, ""
        if url == TARGETS:
            found = [
                {
                    "labels": {"job": "node", "instance": name},
                    "health": health(self.loaded) if callable(health) else health,
                    "lastError": "connection refused",
                    "lastScrape": "2999-01-01T00:00:00Z" if name not in self.unasked else "2020-01-01T00:00:00Z",
                    "scrapeInterval": "100ms",
                }
                for name, health in self.targets.items()
            ]
            return 200, json.dumps({"data": {"activeTargets": found}})
        return 200, "ok %d\nat %r\n" % (self.successful, self.loaded_at)

    def did(self):
        done = [verb for verb in self.done if verb not in ("reset-failed",)]
        self.done.clear()
        return done


@pytest.fixture
def host(tmp_path, monkeypatch):
    host = Host(tmp_path)
    host.file.parent.mkdir()
    host.file.write_text(OLD)
    host.read()
    tmp_path.chmod(0o755)
    monkeypatch.setattr(units, "systemctl", host.systemctl)
    monkeypatch.setattr(sc, "unit_facts", host.facts)
    monkeypatch.setattr(units, "journal", lambda *_arguments, since: "it logged this")
    monkeypatch.setattr(configuration, "NOTES", str(tmp_path / "run"))
    monkeypatch.setattr(sc, "STABLE_SECONDS", 0.0)
    monkeypatch.setattr(sc, "DISCOVERY_SECONDS", 0.0)
    monkeypatch.setattr(prometheus, "get", host.get)
    return host


@pytest.fixture
def apply(host, run_module):
    def entry(path, content, **more):
        return dict({"path": str(path), "content": content, "owner": ME, "group": MINE}, **more)

    def apply(content=NEW, check_mode=False, verify=None, **parameters):
        files = [entry(host.file, content)] + [entry(*more) for more in parameters.pop("more_files", [])]
        return run_module(
            sc,
            check_mode=check_mode,
            unit="example.service",
            root=str(host.file.parent),
            files=files,
            verify=dict(
                {
                    "url": URL,
                    "metric": "ok",
                    "timestamp_metric": "at",
                    "timeout_seconds": 1,
                    "start_timeout_seconds": 1,
                },
                **(verify or {}),
            ),
            **parameters,
        )

    apply.entry = entry
    return apply


# --- swap, load, verify -----------------------------------------------------------------------------------------------


def test_a_changed_file_is_reloaded_once(apply, host):
    result = apply()
    assert result["changed"] and result["action"] == "reload" and host.did() == ["reload"]
    assert host.loaded == NEW
    again = apply()
    assert not again["changed"] and again["reasons"] == [] and host.did() == []


def test_check_mode_reports_the_same_with_a_diff_and_changes_nothing(apply, host):
    result = apply(check_mode=True)
    assert result["changed"] and result["action"] == "reload" and host.did() == []
    assert result["diff"][0]["before"] == OLD and result["diff"][0]["after"] == NEW
    assert host.file.read_text() == OLD


def test_check_mode_works_where_nothing_is_installed(apply, host):
    host.there, host.active = False, False
    host.file.unlink()
    result = apply(
        check_mode=True,
        secrets=[apply.entry(host.file.parent / "s", "x" * 12, owner="nobody-yet", group="nobody-yet")],
        checks=[["no-such-program", "{root}/service.yml"]],
        references={"user": "nobody-yet"},
    )
    assert result["changed"] and result["action"] == "start" and result["checked"] == []
    assert not host.file.exists()


def test_a_missing_unit_is_reported_before_anything_is_written(apply, host):
    host.there = host.active = False
    result = apply()
    assert result["failed"] and "nothing was changed: there is no unit" in result["msg"]
    assert host.file.read_text() == OLD


def test_a_stopped_unit_is_started_and_a_disabled_one_enabled(apply, host):
    host.active, host.enabled = False, False
    result = apply(OLD)
    assert result["action"] == "start" and result["enabled"] and host.did() == ["restart", "enable"]
    assert host.active


def test_a_reload_that_the_service_refused_is_reverted(apply, host):
    host.refuses = (NEW,)
    result = apply()
    assert result["failed"] and "ok is 0 instead of 1" in result["msg"] and "it logged this" in result["msg"]
    assert "are back in place and in use" in result["msg"]
    assert host.file.read_text() == OLD and host.loaded == OLD and host.did() == ["reload", "reload"]
    assert not apply(OLD)["changed"]


def test_a_reload_that_never_came_is_no_success(apply, host):
    apply(OLD)
    host.stuck = True
    result = apply()
    assert result["failed"] and "at is not younger than the swap" in result["msg"]


def test_a_service_that_did_not_run_is_stopped_again(apply, host):
    host.active, host.refuses = False, (NEW,)
    result = apply()
    assert result["failed"] and "stopped, as before" in result["msg"]
    assert not host.active and host.did()[-1] == "stop" and host.file.read_text() == OLD


def test_a_service_that_exits_repeatedly_is_detected_at_once(apply, host, monkeypatch):
    began = time.monotonic()
    monkeypatch.setattr(sc, "unit_facts", lambda unit: dict(host.facts(unit), NRestarts=next(count)))
    count = iter(map(str, range(100)))
    result = apply(verify={"timeout_seconds": 60})
    assert result["failed"] and "again and again" in result["msg"] and time.monotonic() - began < 20


def test_a_certificate_of_another_authority_is_not_waited_for(apply, host, monkeypatch):
    def get(*_arguments):
        raise prometheus.Untrusted("unable to get local issuer certificate")

    monkeypatch.setattr(prometheus, "get", get)
    began = time.monotonic()
    result = apply(verify={"timeout_seconds": 60})
    assert result["failed"] and "local issuer certificate" in result["msg"]
    # The rollback cannot verify more than the change, and reports so.
    assert "back in place, but: " in result["msg"] and time.monotonic() - began < 20


# --- what runs decides ------------------------------------------------------------------------------------------------


@pytest.fixture
def killed(apply):
    """A run that ends, as by SIGKILL, between the swap and the reload."""

    def killed(*arguments, **parameters):
        # The kernel's time for files is some milliseconds coarse.
        time.sleep(0.02)
        child = os.fork()
        if child == 0:
            points.reach = lambda _point: os._exit(9)
            with contextlib.suppress(BaseException):
                apply(*arguments, **parameters)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    return killed


def test_a_run_killed_between_swap_and_reload_is_repaired(apply, host, killed):
    apply(OLD)
    killed(NEW)
    assert host.file.read_text() == NEW and host.loaded == OLD
    result = apply()
    assert result["action"] == "reload" and result["diff"] == []
    assert result["reasons"] == ["the running service has not loaded the present files"]
    assert host.loaded == NEW and not apply()["changed"]


def test_a_file_removed_by_a_killed_run_counts_too(apply, host, killed):
    managed = [{"directory": str(host.file.parent), "pattern": "*.yml"}]
    apply(NEW, managed=managed)
    (host.file.parent / "old.yml").write_text("")
    killed(NEW, managed=managed)
    assert os.listdir(host.file.parent) == ["service.yml"]
    assert apply(NEW, managed=managed)["action"] == "reload"
    assert not apply(NEW, managed=managed)["changed"]


def test_a_reboot_needs_nothing(apply, host):
    apply()
    os.unlink(os.path.join(configuration.NOTES, "example.service.json"))
    host.start()
    assert not apply()["changed"]


def test_a_reload_of_other_content_by_another_process_is_detected(apply, host):
    apply()
    host.file.write_text(OLD)
    host.read()
    time.sleep(0.02)
    host.file.write_text(NEW)
    assert apply()["action"] == "reload" and host.loaded == NEW


def test_a_last_reload_that_failed_is_repeated(apply, host):
    apply()
    host.successful = 0
    result = apply()
    assert result["action"] == "reload" and result["reasons"] == ["the running service reports ok 0"]
    assert host.successful == 1


def test_a_drop_in_restarts_after_systemd_has_read_it(apply, host, tmp_path):
    parameters = {"unit_files": [apply.entry(tmp_path / "d" / "x.conf", "[Service]\n")]}
    assert apply(OLD, **parameters)["action"] == "restart"
    assert host.did() == ["daemon-reload", "restart"]
    assert not apply(OLD, **parameters)["changed"]


def test_a_drop_in_that_a_killed_run_left_unread_restarts(apply, host, tmp_path):
    parameters = {"unit_files": [apply.entry(tmp_path / "d" / "x.conf", "[Service]\n")]}
    apply(OLD, **parameters)
    os.unlink(os.path.join(configuration.NOTES, "example.service.json"))
    host.daemon_reload = True
    assert apply(OLD, **parameters)["action"] == "restart"
    # Read by systemd, but not by the process: it is older than the file.
    os.unlink(os.path.join(configuration.NOTES, "example.service.json"))
    host.started -= 3600
    assert apply(OLD, **parameters)["action"] == "restart"


def test_a_certificate_of_others_restarts_what_reads_it_once(apply, host, tmp_path):
    certificate = tmp_path / "host.crt"
    certificate.write_text("one")
    parameters = {"watch": [str(certificate)], "apply": "restart"}
    apply(OLD, **parameters)
    assert not apply(OLD, **parameters)["changed"]
    certificate.write_text("two")
    assert apply(OLD, **parameters)["action"] == "restart"
    assert not apply(OLD, **parameters)["changed"]


def test_a_file_that_the_service_reads_by_itself_needs_no_reload(apply, host, tmp_path):
    apply(OLD)
    host.did()
    more = [dict(apply.entry(tmp_path / "t.json", "[]"), apply="none")]
    result = apply(OLD, secrets=more)
    assert result["changed"] and result["action"] == "none" and host.did() == []
    assert not apply(OLD, secrets=more)["changed"]


def test_a_copy_follows_its_file_and_is_never_shown(apply, host, tmp_path):
    source, copy = tmp_path / "host.key", host.file.with_name("host.key")
    wanted = {"src": str(source), "path": str(copy), "owner": ME, "group": MINE, "mode": "0600", "apply": "none"}
    missing = apply(NEW, copies=[wanted])
    assert (
        missing["failed"] and "nothing was changed" in missing["msg"] and "host.key cannot be copied" in missing["msg"]
    )
    assert host.file.read_text() == OLD and not copy.exists()
    # Its producer has created nothing in check mode.
    assert apply(NEW, check_mode=True, copies=[wanted])["changed"]
    apply(OLD)
    host.did()
    for text in ("first-of-all\n", "second-of-all\n"):
        source.write_text(text)
        result = apply(OLD, copies=[wanted])
        assert result["changed"] and host.did() == [] and "of-all" not in json.dumps(result)
        assert copy.read_text() == text and stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert not apply(OLD, copies=[wanted])["changed"]


def test_unknown_files_of_a_managed_directory_go(apply, host):
    directory = host.file.parent
    (directory / "old.yml").write_text("")
    (directory / "kept.txt").write_text("")
    result = apply(OLD, managed=[{"directory": str(directory), "pattern": "*.yml"}])
    assert result["action"] == "reload" and sorted(os.listdir(directory)) == ["kept.txt", "service.yml"]


def test_modes_and_owners_are_kept(apply, host):
    host.file.chmod(0o600)
    result = apply(OLD)
    assert "mode 0600 -> 0644" in result["diff"][0]["after_header"]
    assert stat.S_IMODE(host.file.stat().st_mode) == 0o644


# --- checks -----------------------------------------------------------------------------------------------------------


def test_checks_read_the_new_set_and_its_paths(apply, host):
    directory = host.file.parent
    (directory / "alerts").mkdir()
    (directory / "alerts" / "gone.yml").write_text("")
    content = f"rules: {directory}/alerts/new.yml\nother: /x{directory}/alerts/new.yml\n"
    script = 'grep -q "^rules: $0/alerts/new.yml$" "$0/service.yml" && test "$(ls "$0/alerts")" = new.yml'
    script += f' && grep -q "^other: /x{directory}/" "$0/service.yml" && test -e "{directory}/alerts/gone.yml"'
    result = apply(
        content,
        more_files=[(directory / "alerts/new.yml", "x")],
        managed=[{"directory": str(directory / "alerts"), "pattern": "*.yml"}],
        checks=[["sh", "-c", script, "{root}"]],
    )
    assert result.get("msg", "") == "" and result["checked"]
    assert host.file.read_text() == content
    assert os.listdir(configuration.NOTES) == ["example.service.json"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may be somebody else")
def test_checks_run_as_a_user_that_can_read_the_set_but_not_its_secrets(apply, host, tmp_path, public_dir, monkeypatch):
    """As the service's user, in a directory of its own; Logstash refuses root."""
    secret = host.file.parent / "secrets.env"
    own = host.file.parent / "own.key"
    own.write_text("for root")
    own.chmod(0o600)
    monkeypatch.setattr(configuration, "NOTES", str(public_dir / "run"))
    # By a shell: another user may have no way to the Python that runs the tests.
    script = (
        'test "$(id -u)" = 1 && cat "$1/service.yml" && : >"$2/log" || exit 1; '
        'for one in secrets.env own.key; do if test -r "$1/$one" || cat "$1/$one"; then exit 2; fi; done; '
        'if test -w "$1" || touch "$1/new"; then exit 3; fi'
    )
    reply = apply(
        secrets=[apply.entry(secret, "secret", mode="0600")],
        checks=[["sh", "-c", script, "check", "{root}", "{work}"]],
        check_as={"user": pwd.getpwuid(1).pw_name},
    )
    assert not reply.get("failed") and len(reply["checked"]) == 1, reply
    assert not list((public_dir / "run").glob("stage*"))
    reply = apply("other", checks=[["true"]], check_as={"user": "nobody-of-this-name"})
    assert reply["failed"] and "there is no user nobody-of-this-name" in reply["msg"]


def test_an_error_of_a_check_is_reported_with_the_live_paths_and_nothing_changes(apply, host):
    result = apply(checks=[["sh", "-c", 'echo "$0/service.yml is bad"; exit 1', "{root}"]])
    assert result["failed"] and f"{host.file} is bad" in result["msg"] and "nothing was changed" in result["msg"]
    assert host.file.read_text() == OLD and host.did() == []


def test_the_first_check_that_refuses_is_the_last(apply, host):
    result = apply(checks=[["sh", "-c", "echo one; exit 1"], ["sh", "-c", "echo two; exit 1"]])
    assert "one" in result["msg"] and "two" not in result["msg"]


def test_a_check_without_its_program_is_no_pass(apply, host):
    result = apply(checks=[["no-such-program"]])
    assert result["failed"] and "there is no no-such-program" in result["msg"]


def test_check_mode_warns_of_what_would_be_refused(apply, host, monkeypatch):
    warnings = []
    monkeypatch.setattr(sc.QuietModule, "warn", lambda _module, text: warnings.append(text))
    result = apply(check_mode=True, checks=[["sh", "-c", "echo bad; exit 1"]])
    assert result["changed"] and "bad" in result["refused"][0]
    assert len(warnings) == 1 and "example.service would be rejected: sh -c" in warnings[0]


def test_no_check_runs_where_nothing_differs(apply, host):
    apply(OLD)
    assert apply(OLD, checks=[["sh", "-c", "exit 1"]])["checked"] == []


@pytest.mark.parametrize(
    ("key", "prepare", "problem"),
    [
        ("password_file", None, "does not exist"),
        ("password_file", (b"secret", 0o644), "can be read by everybody"),
        ("password_file", (b"", 0o640), "is empty"),
        ("password_file", (b"secret", 0o640), None),
        ("ca_file", (b"certificate", 0o644), None),
    ],
)
def test_named_files_are_checked(apply, host, tmp_path, key, prepare, problem):
    named = tmp_path / "named"
    if prepare:
        named.write_bytes(prepare[0])
        named.chmod(prepare[1])
    result = apply(f"a:\n  - {key}: '{named}'\n# {key}: /nowhere\n", references={"user": ME})
    if problem:
        assert result["failed"] and f"{key} {named} {problem}" in result["msg"]
        assert host.file.read_text() == OLD
    else:
        assert host.file.read_text() != OLD


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_named_file_must_be_readable_for_the_services_user(apply, host, tmp_path):
    named = tmp_path / "named"
    named.write_text("secret")
    named.chmod(0o640)
    result = apply(f"password_file: {named}\n", references={"user": "nobody"})
    assert result["failed"] and "cannot be read by nobody (mode 0640)" in result["msg"]


def test_named_files_in_all_spellings():
    text = 'a: {ca_file: /a, key_file: "/b c"}\n  # x_file: /c\n- credentials_file: \'/d\' # why\nbody_file: ""\n'
    assert list(sc.named_files(text)) == [("ca_file", "/a"), ("key_file", "/b c"), ("credentials_file", "/d")]


# --- targets, logins, responses ---------------------------------------------------------------------------------------


def test_a_target_that_the_new_set_loses_reverts_it(apply, host):
    host.targets = {"app1": lambda text: "down" if text == NEW else "up", "app2": "up"}
    result = apply(verify={"targets_url": TARGETS})
    assert result["failed"] and "node app1 (connection refused)" in result["msg"] and "app2" not in result["msg"]
    assert host.loaded == OLD


def test_targets_that_were_down_or_are_no_longer_scraped_do_not_count(apply, host):
    host.targets = {"app1": "down"}
    assert apply(verify={"targets_url": TARGETS})["changed"]
    before = {("a", "x"): {"health": "up"}, ("a", "y"): {"health": "up"}, ("a", "z"): {"health": "down"}}
    now = {("a", "x"): {"health": "unknown", "scraped": 0}, ("a", "z"): {"health": "down", "scraped": 9}}
    assert set(metrics.lost(before, now, 5)) == {("a", "x")}


def test_a_target_is_up_only_when_it_was_queried_again(apply, host):
    """A reload with a wrong password leaves its health as it was until then."""
    host.targets, host.unasked = {"app1": "up", "app2": "up"}, ("app1",)
    result = apply(verify={"targets_url": TARGETS})
    assert result["failed"] and "node app1" in result["msg"] and "app2" not in result["msg"]


def test_the_new_targets_are_waited_for(apply, host, monkeypatch):
    """Right after a reload the earlier targets are still there, and up."""
    host.targets = {"app1": lambda text: "down" if text == NEW and time.time() > host.loaded_at + 0.5 else "up"}
    monkeypatch.setattr(sc, "DISCOVERY_SECONDS", 1.0)
    assert "app1" in apply(verify={"targets_url": TARGETS})["msg"]


def test_targets_are_still_watched_after_a_new_password(apply, host, monkeypatch):
    """The web configuration is in use once it is written, so it is the first file of the swap."""
    web = host.file.parent / "web.yml"
    host.password = "old"
    host.targets = {"app1": lambda text: "down" if text == NEW else "up"}
    place = configuration.place_all

    def placed(states):
        place(states)
        if str(web) in states:
            host.password = "new-password"

    monkeypatch.setattr(configuration, "place_all", placed)
    users = [{"name": "admin", "password": "new-password"}]
    result = apply(
        web_config={"path": str(web), "users": users, "owner": ME, "group": MINE, "cost": 4},
        verify={"user": "admin", "password": "new-password", "targets_url": TARGETS},
    )
    assert result["failed"] and "app1" in result["msg"]


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_and_no_hash_is_shown(apply, host):
    directory = host.file.parent
    web = {
        "path": str(directory / "web.yml"),
        "users": [{"name": "admin", "password": "correct-horse"}],
        "owner": ME,
        "group": MINE,
        "cost": 4,
    }
    secrets = [apply.entry(directory / "scrape", "battery-staple")]
    result = apply(OLD, web_config=web, secrets=secrets)
    assert result["changed"]
    hashed = webconfig.users_of((directory / "web.yml").read_text())["admin"]
    shown = json.dumps({key: value for key, value in result.items() if key != "invocation"})
    assert hashed not in shown and "battery-staple" not in shown and "correct-horse" not in shown
    assert stat.S_IMODE((directory / "scrape").stat().st_mode) == 0o640
    assert not apply(OLD, web_config=web, secrets=secrets)["changed"]
    web["users"][0]["password"] = "another-horse"
    changed = apply(OLD, web_config=web, secrets=secrets)
    assert changed["changed"] and changed["action"] == "none"
    assert "not all as before" in changed["diff"][0]["after"]


def test_no_argument_is_written_to_the_hosts_log(apply, host, monkeypatch):
    """Ansible would print what is nested as Python does, with a quote inside of a secret not as it is (test_quiet)."""
    lines = []
    monkeypatch.setattr("ansible.module_utils.basic.has_journal", False)
    monkeypatch.setattr(sc.QuietModule, "_log_to_syslog", lambda _module, message: lines.append(message))
    assert apply(secrets=[apply.entry(host.file.parent / "scrape", "it's\na \\ secret")])["changed"]
    assert lines == ["Invoked"]


@pytest.mark.parametrize(
    ("users", "problem"),
    [
        ([{"name": "a", "password": ""}], "it is empty"),
        ([{"name": "a", "password": "x" * 73}], "it has 73 bytes"),
        ([{"name": "a", "password": "x"}, {"name": "a", "password": "y"}], "names a user twice"),
    ],
)
def test_passwords_that_would_not_protect_are_refused(apply, host, users, problem):
    result = apply(web_config={"path": str(host.file.parent / "web.yml"), "users": users, "owner": ME, "group": MINE})
    assert result["failed"] and problem in result["msg"] and host.file.read_text() == OLD


def test_a_hash_is_kept_while_it_matches_and_has_the_cost():
    users = [{"name": "on", "password": "pässword"}]
    first = webconfig.hashes(users, "", 4)
    text = webconfig.render("/c", "/k", first, {"tls_server_config": {"min_version": "TLS13"}})
    assert webconfig.users_of(text) == first
    assert webconfig.hashes(users, text, 4) == first
    assert webconfig.hashes(users, text, 5)["on"][4:6] == "05"
    assert webconfig.hashes([{"name": "on", "password": "other"}], text, 4) != first
    assert webconfig.matches("pässword", first["on"]) and not webconfig.matches("password", first["on"])


def test_the_web_configuration_is_yaml_with_the_given_values():
    yaml = pytest.importorskip("yaml")
    http = {"http2": True, "headers": {"X": "y"}}
    settings = {
        "tls_server_config": {"min_version": "TLS13"},
        "http_server_config": http,
    }
    text = webconfig.render("/c rt", "/k", {"on": "$2b$04$" + "a" * 53}, settings)
    assert yaml.safe_load(text) == {
        "tls_server_config": {"cert_file": "/c rt", "key_file": "/k", "min_version": "TLS13"},
        "http_server_config": http,
        "basic_auth_users": {"on": "$2b$04$" + "a" * 53},
    }
    assert "$2b$" not in webconfig.without_hashes(text)
    assert yaml.safe_load(webconfig.render(None, None, {}, {})) is None


# --- reading a service ------------------------------------------------------------------------------------------------


def test_metrics_are_read_by_name():
    text = '# HELP up x\nup_more 5\nup{a="1"} 0\nup{a="2"} 1.5e+09\nreload_seconds 1.7322e+09\nbad x\n'
    assert metrics.value_of(text, "up") == 0
    assert metrics.value_of(text, 'up{a="2"}') == 1.5e9
    assert metrics.value_of(text, "reload_seconds") == 1.7322e9
    assert metrics.value_of(text, "reload") is None and metrics.value_of(text, "bad") is None


def test_durations_and_targets():
    assert [metrics.seconds_of(text) for text in ("15s", "1m30s", "500ms", "")] == [15, 90, 0.5, 0]
    target = {"labels": {"job": "j", "instance": "i"}, "health": "down", "scrapeInterval": "5s", "lastScrape": ""}
    reply = json.dumps({"data": {"activeTargets": [target, dict(target, health="up"), target]}})
    assert metrics.targets_of(reply) == {("j", "i"): {"health": "up", "error": "", "interval": 5.0, "scraped": 0.0}}
    assert metrics.targets_of("no json") == {}


def test_gos_time_is_that_of_the_host():
    assert metrics.timestamp_of("2026-11-26T12:22:42.647422001Z") == pytest.approx(1795695762.647422, abs=1e-6)
    assert (
        metrics.timestamp_of("2026-11-26T21:22:42+09:00")
        == metrics.timestamp_of("2026-11-26T09:22:42-03:00")
        == 1795695762
    )
    assert metrics.timestamp_of("0001-01-01T00:00:00Z") == metrics.timestamp_of("") == 0


def test_systemds_time():
    assert sc.timestamp("Thu 2026-11-26 12:22:42.647422 UTC") == pytest.approx(1795695762.647422, abs=1e-6)
    assert sc.timestamp("Thu 2026-11-26 12:22:42 UTC") == 1795695762.0
    assert sc.timestamp("2026-11-26 JST") == sc.timestamp("") == 0.0


@pytest.mark.parametrize(
    "more",
    [
        {"files": [{"path": "relative", "content": ""}]},
        {"files": [{"path": "/x/a", "content": ""}, {"path": "/x/a", "content": ""}]},
        {"files": [{"path": "/x/a", "content": "", "mode": "rw"}]},
        {"files": [{"path": "/x/a", "content": "", "owner": "nobody-yet"}]},
    ],
)
def test_sets_that_make_no_sense_are_refused(host, run_module, more):
    result = run_module(sc, unit="example.service", root="/x", **more)
    assert result["failed"] and "nothing was changed" in result["msg"]


def test_two_runs_at_once_do_it_one_after_the_other(apply, host):
    """The copies of both have one name: each would remove what the other one checks."""
    held, seen = threading.Event(), []

    def another():
        with configuration.lock():
            held.set()
            time.sleep(0.5)
            seen.append(host.file.read_text())

    threading.Thread(target=another, daemon=True).start()
    assert held.wait(5)
    result = apply()
    assert seen == [OLD] and result["changed"] and host.file.read_text() == NEW


@pytest.mark.parametrize("who", [{"owner": "nobody-here"}, {"group": "nobody-here"}])
def test_a_directory_of_an_unknown_owner_is_refused_before_anything_changes(apply, host, tmp_path, who):
    directory = dict({"path": str(tmp_path / "new"), "owner": ME, "group": MINE, "mode": "0750"}, **who)
    result = apply(directories=[directory])
    assert result["failed"] and "nobody-here" in result["msg"]
    assert host.file.read_text() == OLD and host.did() == [] and not (tmp_path / "new").exists()
    # Check mode runs where the package that makes the user is not installed yet.
    assert not apply(check_mode=True, directories=[directory]).get("failed")


def test_the_hash_of_what_a_process_has_loaded_is_of_path_content_and_mode():
    """With the owner in it, a user that got another number would restart every service."""
    base = sc.set_hash([("/a", ("file", b"1", 0o640, 0, 5)), ("/b", ("file", b"2", 0o640, 0, 5))])
    assert sc.set_hash([("/b", ("file", b"2", 0o640, 7, 8)), ("/a", ("file", b"1", 0o640, 7, 8))]) == base
    for path, content, mode in (("/c", b"1", 0o640), ("/a", b"3", 0o640), ("/a", b"1", 0o600)):
        assert sc.set_hash([(path, ("file", content, mode, 0, 5)), ("/b", ("file", b"2", 0o640, 0, 5))]) != base


def test_directories_have_their_modes_and_owners(apply, host, tmp_path):
    new, there, plain = tmp_path / "new/below", tmp_path / "there", tmp_path / "plain"
    there.mkdir(mode=0o700)
    plain.touch()

    def entries(*paths):
        return [{"path": str(path), "owner": ME, "group": MINE, "mode": "0750"} for path in paths]

    assert apply(check_mode=True, content=OLD, directories=entries(new, there))["changed"]
    assert not new.exists() and there.stat().st_mode & 0o777 == 0o700
    before = os.umask(0o077)
    try:
        assert apply(content=OLD, directories=entries(new, there))["changed"]
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (new, there)] == [0o750, 0o750]
    assert not apply(content=OLD, directories=entries(new, there))["changed"]
    result = apply(directories=entries(plain))
    assert result["failed"] and str(plain) in result["msg"] and host.file.read_text() == OLD


@pytest.mark.parametrize(
    ("mode", "owner", "group", "reads"),
    [
        (0o400, 5, 9, True), (0o044, 5, 6, False), (0o040, 8, 6, True), (0o404, 8, 6, False), (0o004, 8, 9, True),
        (0o440, 8, 9, False),
    ],
)  # fmt: skip
def test_readers_of_a_file_that_is_not_yet_written(mode, owner, group, reads):
    reader = {"user": 5, "group": 6, "extra_groups": [6, 7]}
    assert configuration.lets_read(("file", b"", mode, owner, group), reader) is reads


def test_the_facts_of_a_unit_are_complete_also_where_systemd_knows_none(monkeypatch):
    output = "ActiveState=active\nMainPID=7\nother\n"
    monkeypatch.setattr(units, "systemctl", lambda *words: output)
    facts = sc.unit_facts("x.service")
    assert set(facts) == set(sc.PROPERTIES) and (facts["ActiveState"], facts["MainPID"]) == ("active", "7")
    assert facts["InvocationID"] == ""


# --- step by step, with a clock of its own ----------------------------------------------------------------------------

EXPECTS = {
    "url": URL, "ca_file": "/ca", "user": "admin", "password": "x", "closed": False, "metric": None, "value": 1.0,
    "timestamp_metric": None, "responses": [], "targets_url": None, "timeout_seconds": 20, "start_timeout_seconds": 60,
}  # fmt: skip


class Steps:
    """A Service without a module, whose unit reports one state after the other; time passes by sleeping."""

    def __init__(self, monkeypatch):
        self.passed, self.naps, self.states, self.queries, self.commands = 0.0, [], [{}], [], []
        self.responses = {URL: (200, "ok 1\nat 100\n")}
        names = {name: getattr(time, name) for name in ("strptime",)}
        clock = dict(names, monotonic=lambda: self.passed, time=lambda: 1000.0 + self.passed, sleep=self.sleep)
        monkeypatch.setattr(sc, "time", types.SimpleNamespace(**clock))
        monkeypatch.setattr(sc, "unit_facts", self.facts)
        monkeypatch.setattr(prometheus, "get", self.get)
        monkeypatch.setattr(units, "systemctl", lambda *words, **more: self.commands.append((words, more)))

    def sleep(self, seconds):
        assert len(self.naps) < 1000
        self.naps.append(seconds)
        self.passed += seconds

    def facts(self, unit):
        assert unit == "x.service"
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"ActiveState": "active", "MainPID": "7", "NRestarts": "", **state}

    def get(self, *words):
        self.queries.append(words)
        response = self.responses[words[0]]
        if isinstance(response, Exception):
            raise response
        return response

    def service(self, verify=None, **parameters):
        made = sc.Service.__new__(sc.Service)
        made.p, made.unit = {"apply": "reload", "watch": [], "managed": [], **parameters}, "x.service"
        made.expects = None if verify is None else {**EXPECTS, **verify}
        made.module, made.files = types.SimpleNamespace(check_mode=False), configuration.FileSet()
        made.apply, made.secret, made.unit_paths, made.root = {}, set(), set(), "/etc/x"
        return made


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


def test_without_a_verification_of_its_own_a_unit_must_stay_active(steps):
    steps.states = [{}, {}, {"MainPID": "8"}, {}, {"ActiveState": "activating"}, {}]
    steps.service().verify("start", 0, 0)
    # Seen with one process, then another, then the first again, then starting; from then on for a second.
    assert steps.passed - sum(steps.naps[:5]) >= sc.STABLE_SECONDS and len(steps.naps) < 12
    assert steps.naps[:3] == pytest.approx([0.1, 0.15, 0.225]) and max(steps.naps) <= 1.0


@pytest.mark.parametrize(
    ("state", "words", "waited"),
    [
        ({"ActiveState": "failed"}, "x.service is failed", 0),
        ({"ActiveState": "inactive"}, "x.service is inactive", 0),
        ({"ActiveState": "activating"}, r"x.service is activating \(waited 120 s\)", 120),
        ({"NRestarts": "3"}, "again and again", 0),
    ],
)
def test_a_unit_that_does_not_stay_active_has_failed(steps, state, words, waited):
    steps.states = [state]
    with pytest.raises(Failed, match=words):
        steps.service().verify("start", 0, 2)
    assert waited <= steps.passed < waited + 1.001


@pytest.mark.parametrize(("action", "seconds"), [("reload", 20), ("none", 20), ("start", 60), ("restart", 60)])
def test_a_verification_waits_as_its_options_specify(steps, action, seconds):
    steps.responses[URL] = OSError("refused")
    with pytest.raises(Failed, match=r"refused \(waited %d s\)" % seconds):
        steps.service({}).verify(action, 0, 0)
    assert seconds <= steps.passed < seconds + 1.001
    # As many restarts as before are none.
    steps.responses[URL], steps.states = (200, ""), [{"NRestarts": "2"}]
    steps.service({}).verify(action, 0, 2)


EXPECTED = {"url": "/flags", "path": ["a", "b"], "value": "1"}


@pytest.mark.parametrize(
    ("verify", "response", "problem"),
    [
        ({}, (200, ""), None),
        ({}, (401, ""), "returns 401"),
        ({}, (503, ""), "returns 503"),
        ({"metric": "ok"}, (200, "ok 1\n"), None),
        ({"metric": "ok", "value": 2.0}, (200, "ok 1\n"), "ok is 1 instead of 2"),
        ({"metric": "ok"}, (200, ""), "ok is absent instead of 1"),
        ({"timestamp_metric": "at"}, (200, "at 500\n"), None),
        ({"timestamp_metric": "at"}, (200, "at 499\n"), "at is not younger"),
        ({"timestamp_metric": "at"}, (200, ""), "at is not younger"),
        ({"responses": [EXPECTED]}, (200, ""), "/flags: a.b is 2 instead of 1"),
        ({"responses": [dict(EXPECTED, url="/none")]}, (200, ""), "a.b is without a response (404) instead of 1"),
        ({"responses": [dict(EXPECTED, value="2")]}, (200, ""), None),
        ({"closed": True}, (200, ""), "returns 200 without a login"),
    ],
)
def test_responses_of_a_service_are_compared(steps, verify, response, problem):
    steps.responses.update({URL: response, "/flags": (200, '{"a": {"b": 2}}'), "/none": (404, "")})
    found = steps.service(verify).unverified("reload", 500, False)
    assert (found is None) == (problem is None) and (problem or "") in (found or "")
    assert steps.queries[0] == (URL, "/ca", "admin", "x", 10.0)
    if verify.get("closed"):
        assert steps.queries[-1] == (URL, "/ca", None, "x", 10.0)


def test_earlier_files_are_verified_less_strictly(steps):
    service = steps.service({"timestamp_metric": "at", "responses": [EXPECTED], "closed": True, "metric": "ok"})
    assert service.unverified("none", 500, True) is None and len(steps.queries) == 1
    assert "not younger" in service.unverified("reload", 500, True)
    steps.responses[URL] = (401, "")
    assert service.unverified("reload", 500, True) is None
    steps.responses[URL] = prometheus.Untrusted("unknown authority")
    with pytest.raises(Failed, match="%s: unknown authority" % URL):
        service.unverified("reload", 500, True)


def test_a_page_that_requires_a_login_is_closed(steps, monkeypatch):
    monkeypatch.setattr(prometheus, "get", lambda _url, _ca, user, *_more: (200, "") if user else (401, ""))
    assert steps.service({"closed": True}).unverified("reload", 0, False) is None


def targets(**health):
    return {
        ("node", name): {"health": state, "error": "", "interval": 5.0, "scraped": 2000.0}
        for name, state in health.items()
    }


def test_targets_are_waited_for_two_intervals(steps, monkeypatch):
    service = steps.service({})
    replies = [targets(a="down"), targets(a="up")]
    monkeypatch.setattr(service, "targets", lambda: replies.pop(0) if len(replies) > 1 else replies[0])
    service.verify_targets(targets(a="up", b="down"), 1000.0)
    assert steps.naps == [sc.DISCOVERY_SECONDS, 1.0]
    replies[:] = [targets(**{"t%02d" % number: "down" for number in range(11)})]
    del steps.naps[:]
    with pytest.raises(Failed) as caught:
        service.verify_targets(targets(**{"t%02d" % number: "up" for number in range(11)}), 500.0)
    assert steps.naps == [0.0] + [1.0] * 10
    assert str(caught.value).count("(down)") == 10 and str(caught.value).endswith("; …")
    replies[:] = [{}]
    with pytest.raises(Failed, match="cannot be read any more"):
        service.verify_targets(targets(a="up"), 500.0)
    del steps.naps[:]
    service.verify_targets(targets(a="down"), 500.0)
    assert steps.naps == []


@pytest.mark.parametrize(
    ("action", "unit_changed", "verbs"),
    [
        ("start", True, ["daemon-reload", "reset-failed x.service", "restart x.service"]),
        ("restart", False, ["reset-failed x.service", "restart x.service"]),
        ("reload", False, ["reload x.service"]),
        ("none", True, ["daemon-reload"]),
        ("none", False, []),
    ],
)
@pytest.mark.parametrize(("verify", "limit"), [({}, 60), (None, 120)])
def test_a_unit_is_brought_up_by_the_commands_of_its_action(steps, action, unit_changed, verbs, verify, limit):
    steps.states = [{"NRestarts": "4"}]
    assert steps.service(verify).bring_up(action, unit_changed) == (1000.0, 4)
    assert [" ".join(words) for words, _more in steps.commands] == verbs
    assert not verbs or "re" not in verbs[-1][:2] or steps.commands[-1][1] == {"timeout": limit + 120}


def test_a_unit_that_was_never_loaded_cannot_be_reset_and_is_started(steps, monkeypatch):
    def systemctl(*words, **_more):
        if words[0] == "reset-failed":
            raise units.UnitError("not loaded")
        steps.commands.append(words)

    monkeypatch.setattr(units, "systemctl", systemctl)
    assert steps.service().bring_up("start", False) == (1000.0, 0)
    assert steps.commands == [("restart", "x.service")]


FACTS = {
    "LoadState": "loaded", "ActiveState": "active", "NeedDaemonReload": "no", "InvocationID": "i",
    "ExecMainStartTimestamp": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "changes", "stale", "action"),
    [
        ({}, {}, "none", "none"),
        ({}, {}, "reload", "reload"),
        ({}, {}, "restart", "restart"),
        ({"ActiveState": "reloading"}, {}, "none", "none"),
        ({"ActiveState": "failed"}, {}, "none", "start"),
        ({"LoadState": "not-found"}, {}, "none", "start"),
        ({"NeedDaemonReload": "yes"}, {}, "none", "restart"),
        ({}, {"/a": "reload"}, "none", "reload"),
        ({}, {"/a": "none"}, "none", "none"),
        ({}, {"/a": "reload", "/b": "restart"}, "none", "restart"),
        ({}, {"/a": "none"}, "restart", "restart"),
    ],
)
def test_the_action_depends_on_files_unit_and_process(steps, monkeypatch, facts, changes, stale, action):
    service = steps.service()
    service.apply, service.files.changes = changes, dict.fromkeys(changes, ("none",))
    monkeypatch.setattr(service, "stale", lambda _facts: (stale, ["stale"] if stale != "none" else []))
    found, reasons = service.decide({**FACTS, **facts})
    assert found == action and bool(reasons) == (action != "none" or bool(changes))


@pytest.mark.parametrize(
    ("note", "metrics", "youngest", "result"),
    [
        ({}, (None, None), {"restart": 0, "reload": 0}, "none"),
        ({}, (None, None), {"restart": 51, "reload": 0}, "restart"),
        ({}, (None, None), {"restart": 50, "reload": 51}, "reload"),
        ({}, (1.0, 60.0), {"restart": 50, "reload": 60}, "none"),
        ({}, (1.0, 60.0), {"restart": 50, "reload": 61}, "reload"),
        ({}, (0.0, 60.0), {"restart": 0, "reload": 0}, "reload"),  # It reports that it did not load.
        ({"invocation": "i"}, (None, None), {"restart": 99, "reload": 99}, "none"),
        ({"invocation": "i", "restart": "other"}, (None, None), {}, "restart"),
        ({"invocation": "i", "reload": "other"}, (None, None), {}, "reload"),
        ({"invocation": "i", "timestamp": 60.0}, (1.0, 60.0), {"restart": 99, "reload": 99}, "none"),
        ({"invocation": "i", "timestamp": 60.0}, (1.0, 70.0), {"restart": 0, "reload": 99}, "reload"),
        ({"invocation": "i", "timestamp": 60.0}, (1.0, 70.0), {"restart": 0, "reload": 70}, "none"),
        ({"invocation": "other"}, (None, None), {"restart": 0, "reload": 99}, "reload"),
    ],
)
def test_a_process_is_compared_with_the_note_or_with_the_times_of_files(
    steps, monkeypatch, note, metrics, youngest, result
):
    service = steps.service({"metric": "ok", "value": 1.0})
    if note.get("invocation") == "i":
        note = {"restart": "r", "reload": "l", **note}
    monkeypatch.setattr(configuration, "read_note", lambda unit: note if unit == "x.service" else None)
    monkeypatch.setattr(service, "hashes", lambda: {"restart": "r", "reload": "l"})
    monkeypatch.setattr(service, "own_metrics", lambda: metrics)
    monkeypatch.setattr(service, "youngest", youngest.get)
    facts = dict(FACTS, ExecMainStartTimestamp="Thu 1970-01-01 00:00:50 UTC")
    found, reasons = service.stale(facts)
    assert found == result and bool(reasons) == (result != "none")


def test_a_process_that_is_restarted_does_not_report_its_last_reload(steps, monkeypatch):
    service = steps.service({"metric": "ok", "value": 1.0}, apply="restart")
    monkeypatch.setattr(configuration, "read_note", lambda _unit: {})
    monkeypatch.setattr(service, "own_metrics", lambda: (0.0, None))
    assert service.stale(FACTS)[0] == "none"


def test_metrics_of_a_process_are_those_that_are_named(steps):
    assert steps.service().own_metrics() == (None, None) and steps.service({}).own_metrics() == (None, None)
    assert steps.queries == []
    assert steps.service({"metric": "ok"}).own_metrics() == [1.0, None]
    assert steps.service({"metric": "ok", "timestamp_metric": "at"}).own_metrics() == [1.0, 100.0]
    for response in ((503, "ok 1"), OSError("refused")):
        steps.responses[URL] = response
        assert steps.service({"metric": "ok"}).own_metrics() == (None, None)


def test_without_a_response_there_are_no_targets(steps):
    target = {"labels": {"job": "j", "instance": "i"}, "health": "up", "scrapeInterval": "5s"}
    steps.responses[TARGETS] = (200, json.dumps({"data": {"activeTargets": [target]}}))
    assert list(steps.service({"targets_url": TARGETS}).targets()) == [("j", "i")]
    assert steps.queries == [(TARGETS, "/ca", "admin", "x", 30.0)]
    for response in ((503, steps.responses[TARGETS][1]), OSError("refused")):
        steps.responses[TARGETS] = response
        assert steps.service({"targets_url": TARGETS}).targets() == {}
    assert steps.service().targets() == steps.service({}).targets() == {}


def test_the_newest_file_that_a_process_must_load(steps, tmp_path):
    path = {name: str(tmp_path / name / "x") for name in ("file", "restart", "watched", "managed")}
    for number, one in enumerate(path.values()):
        os.makedirs(os.path.dirname(one))
        open(one, "w").close()
        os.utime(os.path.dirname(one), (1, 2_000_000_000 + number))
    managed = [{"directory": os.path.dirname(path["managed"])}]
    service = steps.service(watch=[path["watched"], "/nowhere"], managed=managed)
    assert service.youngest("reload") == 2_000_000_003.0  # When the directory of what was removed changed.
    service.p["managed"] = []
    assert service.youngest("reload") == os.stat(path["watched"]).st_ctime and service.youngest("restart") == 0.0
    service.p["watch"] = []
    assert service.youngest("reload") == 0.0
    service.files.want(path["file"], ("file", b"", 0o644, None, None))
    service.files.want(path["restart"], ("file", b"", 0o644, None, None))
    service.files.want("/link", ("link", "x"))
    service.apply = {path["restart"]: "restart"}
    assert service.youngest("reload") == os.stat(path["file"]).st_ctime
    assert service.youngest("restart") == os.stat(path["restart"]).st_ctime
    hashes = service.hashes()
    assert hashes == {
        "reload": sc.set_hash([(path["file"], ("file", b"", 0o644))]),
        "restart": sc.set_hash([(path["restart"], ("file", b"", 0o644))]),
    }
    # Also of what belongs to others, as it is, and where it is not there.
    service.p["watch"] = [path["watched"], "/nowhere"]
    assert service.hashes()["reload"] != hashes["reload"] and service.hashes()["restart"] == hashes["restart"]
    before = service.hashes()["reload"]
    with open(path["watched"], "w") as stream:
        stream.write("x")
    assert service.hashes()["reload"] != before


@pytest.mark.parametrize(
    ("name", "mode", "content", "public", "problem"),
    [
        ("there", 0o640, "x", False, None), ("there", 0o644, "x", True, None),
        ("there", 0o641, "x", False, "everybody"),
        ("there", 0o640, "", False, "is empty"), ("there", 0o644, "", True, "is empty"),
        ("none", 0, None, False, "does not exist"), ("directory", 0, None, False, "is no file"),
        ("planned", 0o640, "x", False, None), ("planned", 0o642, "x", False, "everybody"),
        ("planned", 0o640, " \n", False, "is empty"), ("planned", 0o040, "x", False, r"read by me \(mode 0040\)"),
        ("removed", 0, None, False, "does not exist"),
    ],
)  # fmt: skip
def test_a_named_file_must_be_usable(steps, tmp_path, name, mode, content, public, problem):
    service, path = steps.service(references={"user": "me"}), tmp_path / name
    (tmp_path / "directory").mkdir()
    if name == "there":
        path.write_text(content)
        path.chmod(mode)
    elif name == "planned":
        service.files.want(str(path), ("file", content.encode(), mode, os.geteuid(), None))
    elif name == "removed":
        path.write_text("x")
        service.files.want(str(path), ("none",))
    reader = {"user": os.geteuid(), "group": os.getegid(), "extra_groups": []}
    found = service.reference_problem(str(path), public, reader)
    assert (found is None) == (problem is None) and re.search(problem or "", found or "")


def test_names_in_secrets_and_in_other_files_are_not_checked(steps, monkeypatch):
    service = steps.service(references={"user": "me", "extra_groups": ["more"]})
    requested = []
    monkeypatch.setattr(sc.service_user, "process_of", lambda *words: requested.append(words) or "reader")
    monkeypatch.setattr(service, "reference_problem", lambda *words: requested.append(words) or "is bad")
    for path in ("/b.yaml", "/a.yml", "/secret.yml", "/c.txt"):
        service.files.want(path, ("file", b"ca_file: sub/../ca\nkey_file: /key\n", 0o640, None, None))
    service.files.want("/link.yml", ("link", "x"))
    service.secret = {"/secret.yml"}
    assert service.reference_problems() == [
        "%s: %s %s is bad" % (source, key, path)
        for source in ("/a.yml", "/b.yaml") for key, path in (("ca_file", "/etc/x/ca"), ("key_file", "/key"))
    ]  # fmt: skip
    assert requested[:3] == [("me", ["more"]), ("/etc/x/ca", True, "reader"), ("/key", False, "reader")]

    def unknown(*_words):
        raise KeyError("me")

    monkeypatch.setattr(sc.service_user, "process_of", unknown)
    assert service.reference_problems() == ["there is no user me"]
    service.module.check_mode = True
    assert service.reference_problems() == []
    assert steps.service(references=None).reference_problems() == []


def test_checks_have_a_limit_of_time_and_output(apply, host):
    result = apply(checks=[["sh", "-c", "sleep 60"]], check_timeout_seconds=1)
    assert result["failed"] and "did not end within 1 s" in result["msg"]
    result = apply(checks=[["sh", "-c", "head -c 3999 /dev/zero | tr '\\0' x; echo yz; exit 3"]])
    assert "x" * 3998 + "yz" in result["msg"] and "x" * 3999 not in result["msg"]
    result = apply(checks=[["sh", "-c", "exit 3"]])
    assert "it ended with 3" in result["msg"] and host.file.read_text() == OLD


def test_a_new_hash_is_distinguished_from_an_earlier_one():
    one, two = ("on: $2b$04$%s\n" % (sign * 53) for sign in "ab")
    hidden, new = "(hash of a password)", "(hash of a password, not all as before)"
    assert [text.count(hidden) for text in sc.mask_hashes(one, one)] == [1, 1]
    shown = sc.mask_hashes(one, one + two)
    assert shown[0].count(hidden) == 1 and shown[1].count(new) == 2 and "$2b$" not in "".join(shown)
    assert new not in sc.mask_hashes(None, one)[1] and sc.mask_hashes(one, None)[1] == ""


@pytest.mark.parametrize(
    ("web", "words"),
    [({"certificate": "/c"}, "both a certificate and a key"), ({"key": "/k"}, "both a certificate and a key")],
)
def test_a_certificate_needs_its_key(apply, host, web, words):
    result = apply(web_config=dict({"path": str(host.file.parent / "web.yml"), "owner": ME, "group": MINE}, **web))
    assert result["failed"] and words in result["msg"] and host.file.read_text() == OLD
