"""nginx_tree: checked in a copy, placed, loaded, verified or rolled back, on a fake nginx."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nginx_tree
import pytest
from ansible.module_utils.shiftmaster.host import configuration, probe, units

MINE = grp.getgrgid(os.getegid()).gr_name
ME = pwd.getpwuid(os.geteuid()).pw_name


class Nginx:
    """A master with workers that has loaded the markers of its directory; time passes by sleeping."""

    def __init__(self, directory):
        self.root, self.log = directory / "nginx", directory / "log/error.log"
        self.root.mkdir()
        (self.root / "nginx.conf").write_text("old")
        self.log.parent.mkdir()
        self.binary = directory / "sbin-nginx"
        self.binary.touch(mode=0o755)
        self.master, self.number, self.groups, self.old = 100, 1, {os.getegid()}, set()
        self.loaded, self.served, self.passed, self.commands = {}, b"", 0.0, []
        self.refuses, self.stuck, self.lingers, self.stale, self.replaced = "", "", False, False, False
        self.tested, self.fails, self.enabled = None, set(), "enabled"

    # The module's queries of a host.
    def master_pid(self, _path):
        return self.master

    def workers(self, master):
        assert master == self.master
        return dict.fromkeys({self.number} | self.old, self.groups)

    def running_hash(self, address, location):
        assert address == "127.0.0.1:8081"
        return self.loaded.get(location, "")

    def kill(self, pid, number):
        assert pid == self.master and number == nginx_tree.signal.SIGHUP
        self.commands.append("HUP")
        self.load()

    def load(self):
        if self.replaced:
            self.master += 1
        if self.stuck and content(self) == self.stuck:
            with self.log.open("a") as stream:
                stream.write("2026 [notice] x\n2026 [emerg] cannot load\n")
            return
        self.old = {self.number} if self.lingers else set()
        self.number += 1
        self.groups = {os.getegid()}
        for location, name in (("/config", "marker.conf"), ("/servers", "servers.conf.marker")):
            path = self.root / name
            if path.exists():
                self.loaded[location] = path.read_text().split('"')[1].removesuffix("\\n")
        certificate = self.root / "chain.pem"
        self.served = certificate.read_bytes() if certificate.exists() else b""

    def run(self, command, **more):
        program, *words = command
        out, code = b"", 0
        if program == str(self.binary) and words == ["-v"]:
            out = b"nginx version: nginx/1.26.3\n"
        elif program == str(self.binary):
            main = Path(words[-1])
            assert words[:3] == ["-t", "-q", "-c"] and main.name == "nginx.conf" and main.parent != self.root
            self.tested = {
                path.name: os.readlink(path) if path.is_symlink() else path.read_text()
                for path in main.parent.iterdir()
            }  # fmt: skip
            self.copy = str(main.parent)
            out, code = (self.refuses.replace("ROOT", self.copy).encode(), 1) if self.refuses else (b"", 0)
        elif program == "systemctl":
            verb = words[0]
            assert words[-1] in ("nginx.service", "daemon-reload")
            if verb == "show":
                out = b"NeedDaemonReload=%s\nUnitFileState=%s\n" % (
                    b"yes" if self.stale else b"no",
                    self.enabled.encode(),
                )
            else:
                self.commands.append(verb)
                code = int(verb in self.fails)
                if verb in ("start", "restart") and not code:
                    self.master = 200
                    self.load()
                self.stale = self.stale and verb != "daemon-reload"
        return subprocess.CompletedProcess(command, code, out, b"")

    def sleep(self, seconds):
        self.passed += seconds


@pytest.fixture
def nginx(tmp_path, monkeypatch):
    os.chmod(tmp_path, 0o755)
    nginx = Nginx(tmp_path)
    for name in ("master_pid", "workers", "running_hash"):
        monkeypatch.setattr(nginx_tree, name, getattr(nginx, name))
    monkeypatch.setattr(
        nginx_tree, "serves_another", lambda path, address, name: Path(path).read_bytes() != nginx.served
    )
    monkeypatch.setattr(configuration, "NOTES", str(tmp_path / "run"))
    monkeypatch.setattr(nginx_tree.os, "kill", nginx.kill)
    names = {name: getattr(subprocess, name) for name in ("PIPE", "STDOUT", "DEVNULL", "TimeoutExpired")}
    for module in (nginx_tree, units):
        monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=nginx.run, **names))
    clock = SimpleNamespace(
        monotonic=lambda: nginx.passed, sleep=nginx.sleep, strftime=nginx_tree.time.strftime, gmtime=lambda: (0,) * 9
    )
    monkeypatch.setattr(nginx_tree, "time", clock)
    monkeypatch.setattr(nginx_tree, "LOG_GROUP", MINE)
    return nginx


@pytest.fixture
def apply(nginx, run_module, monkeypatch):
    root = nginx.root
    host = {
        "config_root": str(root), "main_file": str(root / "nginx.conf"), "binary": str(nginx.binary), "user": ME,
        "error_log": str(nginx.log), "servers_file": str(root / "servers.conf"),
        "pid_file": str(root.parent / "nginx.pid"),
    }  # fmt: skip
    for name, value in host.items():
        monkeypatch.setitem(nginx_tree.HOST, name, value)

    def apply(content="new", check_mode=False, **parameters):
        for name in nginx_tree.HOST.keys() & parameters.keys():
            monkeypatch.setitem(nginx_tree.HOST, name, parameters.pop(name))
        given = {
            "files": [{"path": str(root / "nginx.conf"), "content": content}], "marker_file": str(root / "marker.conf"),
        }  # fmt: skip
        if content is None:
            del given["files"]
        return run_module(nginx_tree, check_mode=check_mode, **dict(given, **parameters))

    return apply


def content(nginx, name="nginx.conf"):
    path = nginx.root / name
    return path.read_text() if path.exists() else None


def test_a_new_configuration_is_tested_in_a_copy_placed_and_loaded_once(apply, nginx):
    result = apply()
    assert result["changed"] and result["action"] == "reload" and nginx.commands == ["HUP"]
    assert content(nginx) == "new" and nginx.tested["nginx.conf"] == "new" and "marker.conf" in nginx.tested
    assert nginx.loaded["/config"] == result["config_hash"] and not os.path.exists(os.path.dirname(nginx.copy))
    again = apply()
    assert not again["changed"] and again["action"] == "none" and again["reasons"] == [] and nginx.commands == ["HUP"]
    # The marker is no news for anybody.
    assert [one["before_header"] for one in result["diff"]] == [str(nginx.root / "nginx.conf")]
    assert (nginx.root / "marker.conf").read_text() == 'return 200 "%s\\n";\n' % result["config_hash"]


def test_check_mode_reports_the_same_and_changes_nothing(apply, nginx, monkeypatch):
    warned = []
    monkeypatch.setattr(nginx_tree.QuietModule, "warn", lambda _module, text: warned.append(text))
    result = apply(check_mode=True)
    assert result["changed"] and result["action"] == "reload" and nginx.commands == []
    assert result["diff"][0]["before"] == "old" and result["diff"][0]["after"] == "new"
    assert content(nginx) == "old" and nginx.tested["nginx.conf"] == "new" and warned == []
    nginx.refuses = "unknown directive in ROOT/nginx.conf"
    apply(check_mode=True)
    assert len(warned) == 1 and "unknown directive in %s/nginx.conf" % nginx.root in warned[0]


def test_a_configuration_that_nginx_refuses_changes_nothing(apply, nginx):
    nginx.refuses = "unknown directive in ROOT/nginx.conf:1"
    result = apply(directories=[{"path": str(nginx.root.parent / "cache")}], log_files=[str(nginx.log)])
    assert result["failed"] and "unknown directive in %s/nginx.conf:1" % nginx.root in result["msg"]
    assert content(nginx) == "old" and nginx.commands == [] and not (nginx.root.parent / "cache").exists()


def test_links_of_the_copy_point_into_the_copy(apply, nginx):
    (nginx.root / "available").write_text("x")
    (nginx.root / "inside").symlink_to(nginx.root / "available")
    (nginx.root / "outside").symlink_to("/usr/share/nginx")
    links = [{"path": str(nginx.root / "new-link"), "target": "available"}]
    apply(links=links, absent=[str(nginx.root / "gone")])
    assert nginx.tested["inside"] == nginx.copy + "/available" and nginx.tested["outside"] == "/usr/share/nginx"
    assert nginx.tested["new-link"] == "available" and os.readlink(nginx.root / "new-link") == "available"


def test_absent_paths_are_removed(apply, nginx):
    (nginx.root / "default").write_text("x")
    result = apply(absent=[str(nginx.root / "default")])
    assert content(nginx, "default") is None and "default" not in nginx.tested
    (entry,) = [one for one in result["diff"] if one["before"] == "x"]
    assert entry["after_header"].endswith("(absent)") and entry["after"] == ""


def test_a_reload_that_does_not_take_effect_is_rolled_back(apply, nginx):
    apply("first")
    nginx.stuck, before = "second", nginx.passed
    result = apply("second")
    assert (
        result["failed"] and "another configuration" in result["msg"] and "back in place and in use." in result["msg"]
    )
    assert "cannot load" in result["msg"] and "[notice]" not in result["msg"]
    assert content(nginx) == "first" and nginx.commands == ["HUP"] * 3
    assert 20 <= nginx.passed - before < 21
    # Only what is logged from then on.
    assert result["msg"].count("cannot load") == 1
    assert apply("second")["msg"].count("cannot load") == 1


def test_old_workers_that_stay_are_no_reload(apply, nginx):
    nginx.lingers = True
    result = apply(verify_timeout_seconds=3)
    assert result["failed"] and "old workers still take connections: [1]" in result["msg"] and content(nginx) == "old"
    # The earlier files are verified as well, and their workers stay, too.
    assert "back in place, but: " in result["msg"] and 6 <= nginx.passed < 8


def test_a_master_that_was_replaced_is_no_reload(apply, nginx):
    nginx.replaced = True
    result = apply()
    assert result["failed"] and "the master process was replaced (101, before 100)" in result["msg"]
    assert nginx.passed < 1


def test_a_reload_must_be_seen_three_times(apply, nginx):
    apply()
    assert nginx.passed == pytest.approx(0.04)


@pytest.mark.parametrize("how", ["gone", "no workers"])
def test_a_missing_master_or_one_without_workers_is_no_reload(apply, nginx, monkeypatch, how):
    load = nginx.load

    def broken():
        load()
        if how == "gone":
            nginx.master = None
        else:
            monkeypatch.setattr(nginx_tree, "workers", lambda _master: {})

    nginx.load = broken
    result = apply(verify_timeout_seconds=2)
    assert result["failed"]
    assert how == "gone" or "there are no workers" in result["msg"]


def test_nginx_that_does_not_run_is_started(apply, nginx):
    nginx.master = None
    result = apply()
    assert result["action"] == "start" and nginx.commands == ["reset-failed", "start"] and "does not run" in str(result)


def test_a_start_that_fails_is_rolled_back_by_a_restart(apply, nginx):
    nginx.master, nginx.fails = None, {"start"}
    result = apply()
    assert result["failed"] and "systemctl start nginx.service" in result["msg"] and content(nginx) == "old"
    assert nginx.commands == ["reset-failed", "start", "reset-failed", "restart"]
    nginx.master, nginx.fails = None, {"start", "restart"}
    assert "but: the restart of nginx did not take effect" in apply()["msg"]


def test_a_start_with_another_configuration_is_rolled_back(apply, nginx):
    """systemd reports a start that succeeded; the verification alone finds what runs."""
    nginx.master, nginx.stuck = None, "new"
    result = apply()
    assert result["failed"] and "the start of nginx did not take effect: " in result["msg"], result
    assert "another configuration" in result["msg"] and content(nginx) == "old" and nginx.commands[-1] == "restart"


def test_a_new_drop_in_restarts(apply, nginx, tmp_path):
    drop_in = tmp_path / "unit.d/own.conf"
    files = [{"path": str(drop_in), "content": "[Service]\n"}]
    result = apply(files=files, unit_drop_in=str(drop_in))
    assert result["action"] == "restart" and nginx.commands == ["daemon-reload", "reset-failed", "restart"]
    assert not apply(files=files, unit_drop_in=str(drop_in))["changed"]
    nginx.stale = True
    assert apply(files=files, unit_drop_in=str(drop_in))["action"] == "restart"
    nginx.stale = True
    assert not apply(files=files)["changed"]


def test_another_comment_in_the_drop_in_restarts_nothing(apply, nginx, tmp_path):
    drop_in = tmp_path / "unit.d/own.conf"
    apply(files=[{"path": str(drop_in), "content": "# Old.\n[Service]\nNice=-10\n"}], unit_drop_in=str(drop_in))
    nginx.commands.clear()
    files = [{"path": str(drop_in), "content": "# New.\n\n[Service]\nNice=-10\n"}]
    result = apply(files=files, unit_drop_in=str(drop_in))
    assert (result["changed"], result["action"], nginx.commands) == (True, "none", ["daemon-reload"])
    # With something to reload, too; systemd has read it before anything can fail.
    nginx.commands.clear()
    files[0]["content"] = "# Newer.\n[Service]\nNice=-10\n"
    main = {"path": str(nginx.root / "nginx.conf"), "content": "another"}
    assert apply(files=[*files, main], unit_drop_in=str(drop_in))["action"] == "reload"
    assert nginx.commands == ["daemon-reload", "HUP"]
    files[0]["content"] = "# New.\n\n[Service]\nNice=-5\n"
    assert apply(files=files, unit_drop_in=str(drop_in))["action"] == "restart"


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        ("Nice=-10\nUMask=0027", "UMask=0027\nNice=-10", "none"),
        ("Environment=A=1 \\\n  B=2\nNice=5", "Nice=5\nEnvironment=A=1 \\\n# Why.\n  B=2", "none"),
        ("Environment=A=1 \\\n  B=2\nC=3", "Environment=A=1 \\\n  C=3\nB=2", "restart"),
        # A later value of the same setting can revoke the effect of an earlier one.
        ("SystemCallFilter=@a\nSystemCallFilter=~@b", "SystemCallFilter=~@b\nSystemCallFilter=@a", "restart"),
        ("ReadWritePaths=\nReadWritePaths=/run", "ReadWritePaths=/run\nReadWritePaths=", "restart"),
        ("Nice=-10", "", "restart"),
        ("Nice=-10", "[Unit]\nNice=-10", "restart"),
    ],
)
def test_the_order_of_different_settings_restarts_nothing(apply, tmp_path, before, after, action):
    drop_in = str(tmp_path / "unit.d/own.conf")
    apply(files=[{"path": drop_in, "content": f"[Service]\n{before}\n"}], unit_drop_in=drop_in)
    result = apply(files=[{"path": drop_in, "content": f"[Service]\n{after}\n"}], unit_drop_in=drop_in)
    assert result["action"] == action


def test_a_file_elsewhere_needs_no_reload(apply, nginx, tmp_path):
    apply()
    files = [
        {"path": str(nginx.root / "nginx.conf"), "content": "new"},
        {"path": str(tmp_path / "page.html"), "content": "x", "mode": "0640"},
    ]
    result = apply(files=files)
    assert result["changed"] and result["action"] == "none" and (tmp_path / "page.html").stat().st_mode & 0o777 == 0o640
    result = apply(files=[files[0], dict(files[1], mode="0644")])
    assert "(mode 0640 -> 0644)" in result["diff"][0]["after_header"]


PEM = "-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n"


def test_a_certificate_that_is_not_the_served_one_reloads(apply, nginx):
    apply()
    (nginx.root / "chain.pem").write_text(PEM % "AAEC")
    more = {"certificate": str(nginx.root / "chain.pem"), "tls_address": "127.0.0.1:443"}
    result = apply(**more)
    assert result["action"] == "reload" and "another certificate" in str(result["reasons"])
    assert not apply(**more)["changed"]
    assert not apply(certificate=more["certificate"])["changed"]


def test_workers_without_a_group_reload(apply, nginx):
    apply(groups=[MINE])
    nginx.groups = {99999}
    result = apply(groups=[MINE, "no-such-group"])
    assert result["action"] == "reload" and "not in the group %s" % MINE in str(result["reasons"])


def test_directories_and_logs_have_their_modes(apply, nginx, tmp_path):
    new, there = tmp_path / "cache", tmp_path / "there"
    there.mkdir(mode=0o700)
    directories = [{"path": str(new), "mode": "0750"}, {"path": str(there)}]
    logs = [str(tmp_path / "log/access.log"), str(tmp_path / "none/access.log")]
    expected = apply(directories=directories, log_files=logs, check_mode=True)
    assert not new.exists() and not os.path.exists(logs[0])
    result = apply(directories=directories, log_files=logs)
    assert result["diff"] == expected["diff"] and result["changed"]
    assert (new.stat().st_mode & 0o777, there.stat().st_mode & 0o777) == (0o750, 0o755)
    status = os.stat(logs[0])
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, os.geteuid(), os.getegid())
    assert not os.path.exists(logs[1])
    again = apply(directories=directories, log_files=logs)
    assert not again["changed"] and again["diff"] == []
    os.chmod(logs[0], 0o644)
    os.chmod(new, 0o777)
    result = apply(directories=directories, log_files=logs)
    assert result["changed"] and result["action"] == "none" and len(result["diff"]) == 2
    assert os.stat(logs[0]).st_mode & 0o777 == 0o640 and new.stat().st_mode & 0o777 == 0o750


def test_a_log_in_a_directory_of_another_user_is_refused(apply, nginx, tmp_path):
    os.chmod(tmp_path / "log", 0o777)
    result = apply(log_files=[str(tmp_path / "log/access.log")])
    assert result["failed"] and "others than root can change" in result["msg"] and content(nginx) == "old"


def test_paths_that_are_neither_file_nor_link_are_rejected(apply, nginx):
    (nginx.root / "odd").mkdir()
    result = apply(files=[{"path": str(nginx.root / "odd"), "content": "x"}])
    assert result["failed"] and "neither a file nor a link" in result["msg"]


def test_passwords_become_hashes_that_are_kept(apply, nginx):
    path = nginx.root / "users"
    users = [{"name": "ops", "password": "one"}]
    result = apply(password_files=[{"path": str(path), "users": users, "group": MINE}])
    first = path.read_text()
    assert first.startswith("ops:$6$") and path.stat().st_mode & 0o777 == 0o640
    assert [one["after"] for one in result["diff"] if one["before_header"].startswith(str(path))] == ["ops:(a hash)\n"]
    assert not apply(password_files=[{"path": str(path), "users": users, "group": MINE}])["changed"]
    users[0]["password"] = "two"
    result = apply(password_files=[{"path": str(path), "users": users, "group": MINE}])
    assert result["action"] == "reload" and "ops:(another hash)" in str(result["diff"])
    assert path.read_text() != first
    users[0]["name"] = "a:b"
    result = apply(password_files=[{"path": str(path), "users": users, "group": MINE}])
    assert result["failed"] and "nothing was changed" in result["msg"]


def test_nginx_must_be_installed(apply, nginx):
    nginx.binary.unlink()
    nginx.master = None
    expected = apply(check_mode=True)
    assert expected["action"] == "start" and "not installed" in str(expected["reasons"]) and nginx.tested is None
    result = apply()
    assert result["failed"] and "install nginx first" in result["msg"] and content(nginx) == "old"


# --- servers --------------------------------------------------------------------------------------------------------

SERVERS = "server 10.0.0.1:8443 max_fails=1;\nserver 10.0.0.2:8443 max_fails=1;\n"


@pytest.fixture
def servers(apply, nginx):
    files = [
        {"path": str(nginx.root / "nginx.conf"), "content": "new"},
        {"path": str(nginx.root / "servers.conf"), "content": SERVERS},
    ]
    apply(files=files)
    nginx.commands.clear()

    def change(state, server="10.0.0.1:8443", **more):
        return apply(None, state=state, server=server, marker_file=None, **more)

    change.files = files
    return change


def test_a_server_is_drained_and_restored(servers, nginx, apply):
    marker = nginx.loaded["/config"]
    result = servers("server_out", reason="patched  by\nme")
    assert result["changed"] and nginx.commands == ["HUP"]
    first, second = content(nginx, "servers.conf").splitlines()
    assert first.startswith("server 10.0.0.1:8443 max_fails=1 down; # ") and first.endswith(": patched by me")
    assert second == "server 10.0.0.2:8443 max_fails=1;"
    assert nginx.loaded["/config"] == marker and len(nginx.loaded["/servers"]) == 32
    assert not servers("server_out")["changed"]
    assert not servers("server_in", reason="other")["changed"]
    found = apply(None, state="query")
    assert list(found["servers_down"]) == ["10.0.0.1:8443"] and "patched by me" in str(found["servers_down"])
    assert servers("server_in", reason="patched by me")["changed"] and content(nginx, "servers.conf") == SERVERS


def test_a_drained_server_without_a_reason_gets_one(servers, nginx):
    servers("server_out")
    assert content(nginx, "servers.conf").splitlines()[0].endswith(": taken out")


def test_an_nginx_that_runs_with_other_servers_or_files_reloads(servers, apply, nginx):
    for location, words in (("/servers", "other servers"), ("/config", "another configuration")):
        nginx.loaded[location] = "x"
        result = apply(files=servers.files)
        assert result["action"] == "reload" and result["reasons"] == ["the running nginx has " + words]


def test_the_last_server_stays_in(servers, nginx):
    servers("server_out")
    result = servers("server_out", "10.0.0.2:8443")
    assert result["failed"] and "last server" in result["msg"]
    assert "no server 10.0.0.9:1" in servers("server_out", "10.0.0.9:1")["msg"]


def test_without_servers_none_can_be_drained(apply, nginx):
    result = apply(None, state="server_out", server="10.0.0.1:8443", marker_file=None)
    assert result["failed"] and "balances over no servers" in result["msg"]


# --- queries ---------------------------------------------------------------------------------------------------------


def test_a_query_returns_the_current_state(servers, apply, nginx, monkeypatch):
    monkeypatch.setattr(nginx_tree, "can_bind", lambda family, address: address == "::1")
    found = apply(None, state="query", groups=[MINE, "no-such-group"])
    assert not found["changed"] and found["installed"] and found["version"] == "1.26.3" and found["running"]
    assert found["enabled"] and found["servers"] == ["10.0.0.1:8443", "10.0.0.2:8443"] and found["servers_down"] == {}
    assert (found["ipv6"], found["ipv6_loopback"]) == (False, True) and found["problems"] == []
    assert found["groups_present"] == [MINE]
    assert found["groups_lacking"] == ([] if ME in grp.getgrnam(MINE).gr_mem else [MINE])
    nginx.enabled, nginx.master = "disabled", None
    found = apply(None, state="query")
    assert not found["enabled"] and not found["running"]
    nginx.binary.unlink()
    found = apply(None, state="query")
    assert (found["installed"], found["version"], found["enabled"]) == (False, "", False)


def test_a_port_of_another_program_is_a_problem(apply, nginx, monkeypatch):
    found = {80: {("nginx", 1), ("b", 3), ("a", 2)}, 443: {("nginx", 1)}}
    monkeypatch.setattr(nginx_tree.listeners, "holders", lambda ports: {port: found[port] for port in ports})
    assert apply(None, state="query", ports=[443, 80])["problems"] == ["port 80 is taken by a, b"]
    assert apply(None, state="query", ports=[443])["problems"] == []


def test_a_certificate_and_a_key_that_cannot_be_used_are_problems(apply, nginx, tmp_path):
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def problems(**more):
        found = apply(None, state="query", certificate=str(certificate), **more)
        assert found["problems"] == found["certificate_problems"]
        return found["problems"]

    assert problems(certificate_key=str(key)) == [
        "the certificate %s is missing" % certificate, "the key %s is missing" % key,
    ]  # fmt: skip
    certificate.write_text("nothing")
    key.write_text("nothing")
    assert problems() == ["%s holds no certificate in PEM form" % certificate]
    certificate.write_text(PEM % "AAEC")
    assert "cannot be used together" in problems(certificate_key=str(key))[0] and problems() == []


def test_the_hash_of_a_running_nginx_is_read_at_its_address(monkeypatch):
    requested = []

    def http_get(target, path, timeout):
        requested.append((target, path))
        return probe.HttpResult(404 if path == "/none" else 200, 0.0, "abcdef\n", None)

    monkeypatch.setattr(probe, "http_get", http_get)
    assert nginx_tree.running_hash("[::1]:8081", "/config") == "abcdef"
    assert nginx_tree.running_hash("[::1]:8081", "/none") == ""
    assert requested == [("http://[::1]:8081", "/config"), ("http://[::1]:8081", "/none")]


def test_only_a_process_of_nginx_is_its_master(tmp_path):
    path = tmp_path / "nginx.pid"
    assert nginx_tree.master_pid(str(path)) is None
    path.write_text("%d\n" % os.getpid())
    assert nginx_tree.master_pid(str(path)) is None
    path.write_text("nonsense")
    assert nginx_tree.master_pid(str(path)) is None
    assert nginx_tree.workers(os.getpid()) == {}


def test_a_server_that_shows_no_certificate_has_another_one(monkeypatch):
    requested, responses = [], [False, True, None]
    monkeypatch.setattr(probe, "serves_another", lambda *words, timeout: requested.append(words) or responses.pop(0))
    found = [nginx_tree.serves_another("/c", "[::1]:443", "shift.example") for _ in range(3)]
    assert found == [False, True, True] and requested[0] == ("/c", "::1", 443, "shift.example")


# --- what is read of texts and of /proc -------------------------------------------------------------------------------


def test_the_hash_of_a_set_is_of_contents_modes_and_links_in_any_order():
    files = [{"path": "/a", "content": "1"}, {"path": "/b", "content": "2", "mode": "0600"}]
    links = [{"path": "/c", "target": "a"}, {"path": "/d", "target": "b"}]
    found = nginx_tree.config_hash(files, links, ["/x", "/y"])
    assert found == nginx_tree.config_hash(files[::-1], links[::-1], ["/y", "/x"]) and len(found) == 32
    assert found == nginx_tree.config_hash([dict(files[0], mode="0644"), files[1]], links, ["/x", "/y"])
    others = [
        ([dict(files[0], **{key: "z"}), files[1]], links, ["/x", "/y"]) for key in ("path", "content", "mode")
    ] + [(files, [dict(links[0], **{key: "z"}), links[1]], ["/x", "/y"]) for key in ("path", "target")]
    others += [(files, links, ["/x"]), (files, links[:1], ["/x", "/y"]), (files[:1], links, ["/x", "/y"])]
    assert len({found, *(nginx_tree.config_hash(*one) for one in others)}) == 9


LINES = "# by hand\nserver a:1 weight=2;\nserver b:1 down; # 2026: patched\n server c:1;\nserver d:1 down;\n"


def test_servers_are_the_lines_of_servers():
    assert nginx_tree.servers_of(LINES) == {"a:1": (False, ""), "b:1": (True, "2026: patched"), "d:1": (True, "")}


def test_a_server_alone_changes_its_line():
    back = LINES.replace("server b:1 down; # 2026: patched", "server b:1;")
    assert nginx_tree.with_server(LINES, "b:1", False, "") == back
    assert nginx_tree.with_server(LINES, "b:1", False, " patched ") == back
    # Out for another reason, out already, and in already.
    for server, out, reason in (("b:1", False, "atched"), ("b:1", False, "x"), ("b:1", True, "x"), ("a:1", False, "")):
        assert nginx_tree.with_server(LINES, server, out, reason) == LINES
    assert nginx_tree.with_server(back, "a:1", True, "two\n words", "now") == back.replace(
        "server a:1 weight=2;", "server a:1 weight=2 down; # now: two words"
    )
    for server, words in (("a:1", "the last server"), ("c:1", "there are: a:1, b:1, d:1")):
        with pytest.raises(ValueError, match=words):
            nginx_tree.with_server(LINES, server, True, "x")


def test_a_hash_is_kept_while_it_is_that_of_the_password():
    users = [{"name": "a.b@c-d_1", "password": "one"}, {"name": "other", "password": "two"}]
    first = nginx_tree.password_lines(users, "other:plain\nnonsense\n")
    assert [line.split(":")[0] for line in first.splitlines()] == ["a.b@c-d_1", "other"] and first.count(":$6$") == 2
    assert nginx_tree.password_lines(users, first) == first
    second = nginx_tree.password_lines([users[0], dict(users[1], password="three")], first)
    assert [one in first.splitlines() for one in second.splitlines()] == [True, False]
    for name in ("a:b", "", "a b"):
        with pytest.raises(nginx_tree.webconfig.PasswordError, match="user %s: " % name):
            nginx_tree.password_lines([{"name": name, "password": "x"}], "")
    # A new salt each time.
    assert nginx_tree.new_hash("one") != nginx_tree.new_hash("one")


def test_a_diff_of_passwords_shows_no_hash():
    assert nginx_tree.mask_passwords("a:1\nb:2\n", "a:1\nb:3\nc:4\n") == (
        "a:(a hash)\nb:(a hash)\n", "a:(a hash)\nb:(another hash)\nc:(another hash)\n",
    )  # fmt: skip
    assert nginx_tree.mask_passwords(None, "a:1\n") == ("", "a:(a hash)\n")
    assert nginx_tree.mask_passwords("a:1\n", None) == ("a:(a hash)\n", "")


def test_workers_are_the_children_that_take_connections(tmp_path, monkeypatch):
    for pid, parent, title, status in (
        (11, 100, "nginx: worker process", "Name:\tx\nGroups:\t4 33 \nSeccomp: 7\n"),
        (12, 100, "nginx: worker process", "Name:\tx\n"),
        (13, 100, "nginx: worker process is shutting down", "Groups:\t4\n"),
        (14, 100, "nginx: cache manager process", "Groups:\t4\n"),
        (15, 101, "nginx: worker process", "Groups:\t4\n"),
        (16, 100, None, "Groups:\t4\n"),
    ):
        directory = tmp_path / str(pid)
        directory.mkdir()
        (directory / "stat").write_text("%d (nginx) S) S %d 5 6" % (pid, parent))
        (directory / "status").write_text(status)
        if title:
            (directory / "cmdline").write_text(title)
    (tmp_path / "17").mkdir()
    (tmp_path / "17/stat").write_text("nonsense")
    requested = []
    directories = sorted((str(path) for path in tmp_path.iterdir()), reverse=True)
    monkeypatch.setattr(nginx_tree.glob, "glob", lambda pattern: requested.append(pattern) or directories)
    assert nginx_tree.workers(100) == {11: {4, 33}, 12: set()}
    assert requested == ["/proc/[0-9]*"]


def test_groups_addresses_and_sockets_of_this_host():
    assert nginx_tree.group_ids(["no-such-group", MINE]) == {MINE: os.getegid()}
    assert nginx_tree.can_bind(nginx_tree.socket.AF_INET, "127.0.0.1")
    assert not nginx_tree.can_bind(nginx_tree.socket.AF_INET, "192.0.2.1")
    assert nginx_tree.split_address("127.0.0.1:8081") == ("127.0.0.1", 8081)


def test_a_process_called_nginx_is_the_master(tmp_path):
    program, path = tmp_path / "nginx", tmp_path / "pid"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "30"]) as child:
        try:
            path.write_text("%d\n" % child.pid)
            comm = Path("/proc/%d/comm" % child.pid)
            for _ in range(500):
                if comm.read_text() == "nginx\n":
                    break
                nginx_tree.time.sleep(0.01)
            assert nginx_tree.master_pid(str(path)) == child.pid
        finally:
            child.kill()


def tree(**parameters):
    made = nginx_tree.Tree.__new__(nginx_tree.Tree)
    made.p = parameters
    return made


def test_the_last_errors_that_nginx_has_logged_are_shown(tmp_path):
    log = tmp_path / "error.log"
    lines = [
        "2026 [%s] %d" % (level, at) for at, level in enumerate(["emerg", "notice", "alert", "crit"] + ["error"] * 9)
    ]
    log.write_text("before [error]\n" + "".join(line + "\n" for line in lines))
    assert tree(error_log=str(log)).log_since(15).splitlines() == [lines[3], *lines[4:]]
    assert tree(error_log=str(log)).log_since(15 + len(lines[0]) + 1).splitlines()[0] == lines[3]
    short = tmp_path / "short.log"
    short.write_text("x [emerg] a\nx [alert] b\nx [warn] c\n")
    assert tree(error_log=str(short)).log_since(0) == "x [emerg] a\nx [alert] b"
    assert tree(error_log=str(tmp_path / "none")).log_since(0) == ""


def test_files_created_by_the_configuration_test_are_removed(apply, nginx, monkeypatch, tmp_path):
    names = ("new.log", "there.log", "written.log", "nginx.pid")
    (tmp_path / "there.log").touch()
    run = nginx_tree.subprocess.run

    def test_creates(command, **more):
        if "-t" in command:
            for name in names:
                (tmp_path / name).touch()
            (tmp_path / "written.log").write_text("x")
        return run(command, **more)

    monkeypatch.setattr(nginx_tree.subprocess, "run", test_creates)
    text = "  access_log %s/new.log main;\nerror_log %s/there.log;\n error_log %s/written.log warn;\n"
    assert apply(text % ((str(tmp_path),) * 3))["action"] == "reload"
    assert [name for name in names if (tmp_path / name).exists()] == ["there.log", "written.log"]


def test_a_test_that_does_not_end_changes_nothing(apply, nginx, monkeypatch):
    run = nginx_tree.subprocess.run

    def hangs(command, **more):
        if "-t" in command:
            raise subprocess.TimeoutExpired(command, more["timeout"])
        return run(command, **more)

    monkeypatch.setattr(nginx_tree.subprocess, "run", hangs)
    result = apply()
    assert result["failed"] and "did not end" in result["msg"] and content(nginx) == "old" and nginx.commands == []


@pytest.mark.parametrize("there", [True, False])
def test_the_ocsp_address_of_a_certificate_is_queried_where_openssl_is(apply, nginx, monkeypatch, there):
    (nginx.root / "chain.pem").write_text(PEM % "AAEC")
    run, commands = nginx_tree.subprocess.run, []

    def openssl(command, **more):
        if command[0] == "openssl":
            commands.append(command[1:])
            return subprocess.CompletedProcess(command, 0, b"http://ocsp.example\n", b"")
        return run(command, **more)

    monkeypatch.setattr(nginx_tree.subprocess, "run", openssl)
    monkeypatch.setattr(nginx_tree.shutil, "which", lambda name: name if there and name == "openssl" else None)
    path = str(nginx.root / "chain.pem")
    assert apply(None, state="query", certificate=path)["ocsp_uri"] == ("http://ocsp.example" if there else "")
    assert commands == ([["x509", "-in", path, "-noout", "-ocsp_uri"]] if there else [])
    assert apply(None, state="query")["ocsp_uri"] == "" and len(commands) == there


def test_the_diff_of_a_log_contains_its_mode_and_owner(apply, tmp_path):
    log = tmp_path / "log/access.log"
    log.touch()
    log.chmod(0o600)
    (entry,) = [one for one in apply(log_files=[str(log)])["diff"] if one["before_header"] == str(log)]
    owner = "%s:%s" % (os.geteuid(), os.getegid())
    assert entry["before"] == "log, mode 0600, owner %s\n" % owner
    assert entry["after"] == "log, mode 0640, owner %s\n" % owner and entry["after_header"] == str(log)
