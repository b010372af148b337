"""The deploy lock: never two owners, never one without a name, and a dead owner's is taken over."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils.shiftmaster.release import lock


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lock.json")


def take(path, run_id, **more):
    return lock.acquire(path, "ops@here", run_id, "deploy", {"pid": 1}, poll_seconds=0.05, **more)


def test_acquiring_and_releasing(path):
    outcome = take(path, "one")
    assert outcome.acquired and outcome.taken_over is None
    with open(path, encoding="utf-8") as stream:
        holder = json.load(stream)
    assert holder == outcome.holder
    assert (holder["owner"], holder["run_id"], holder["operation"]) == ("ops@here", "one", "deploy")
    assert 1790 < holder["expires"] - time.time() <= 1800
    assert lock.release(path, "one") is True
    assert lock.read(path) is None and lock.release(path, "one") is False


def test_an_unreadable_lock_has_an_unknown_holder_and_is_expired(path):
    for text in ("", "{", "[]", "5"):
        Path(path).write_text(text)
        holder = {"owner": "unknown", "run_id": "", "operation": "unknown", "expires": 0, "controller": {}}
        assert lock.read(path) == holder and lock.expired(holder)
    assert take(path, "one").taken_over == holder


def test_without_waiting_the_holder_is_reported_at_once(path, monkeypatch):
    take(path, "one")
    monkeypatch.setattr(lock.time, "sleep", lambda _seconds: pytest.fail("it waited"))
    assert not lock.acquire(path, "ops", "two", "deploy", {}).acquired


def test_another_run_reports_the_holder_of_the_lock(path):
    take(path, "one")
    outcome = take(path, "two")
    assert not outcome.acquired and outcome.holder["run_id"] == "one"
    assert lock.read(path)["run_id"] == "one"


def test_the_lock_of_another_run_is_not_released(path):
    take(path, "one")
    assert lock.release(path, "two") is False and lock.read(path)["run_id"] == "one"


def test_a_full_disk_leaves_no_file(path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        take(path, "one")
    assert os.listdir(os.path.dirname(path)) == []


def test_acquiring_again_extends_the_expiry(path):
    first = take(path, "one", ttl_seconds=10).holder
    again = take(path, "one", ttl_seconds=100)
    assert again.acquired and again.holder["since"] == first["since"]
    assert lock.read(path)["expires"] > first["expires"] + 80


def test_releasing_where_no_host_is_configured_yet(tmp_path):
    absent = str(tmp_path / "absent" / "lock.json")
    assert lock.release(absent, "one") is False


def test_waiting_until_it_is_free(path):
    take(path, "one")
    started = time.monotonic()
    threading.Timer(0.3, lock.release, (path, "one")).start()
    assert take(path, "two", wait_seconds=20).acquired
    assert 0.2 < time.monotonic() - started < 10


def test_waiting_ends(path):
    take(path, "one")
    started = time.monotonic()
    assert not take(path, "two", wait_seconds=0.2).acquired
    assert time.monotonic() - started < 10


def test_an_expired_lock_is_replaced(path):
    take(path, "one", ttl_seconds=-1)
    outcome = take(path, "two")
    assert outcome.acquired and outcome.taken_over["run_id"] == "one"
    assert lock.read(path)["run_id"] == "two"


def test_only_the_named_ended_owner_is_replaced(path):
    take(path, "one")
    assert not take(path, "two", interrupted_run_id="other").acquired
    outcome = take(path, "two", interrupted_run_id="one")
    assert outcome.acquired and outcome.taken_over["run_id"] == "one"


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '"x"', "\xff"])
def test_an_invalid_lock_file_is_replaced(path, content):
    with open(path, "w", encoding="latin-1") as stream:
        stream.write(content)
    outcome = take(path, "one")
    assert outcome.acquired and outcome.taken_over["owner"] == "unknown"


def test_one_of_many_acquires_it_and_no_other_file_remains(path):
    for round_number in range(5):
        take(path, "dead%d" % round_number, ttl_seconds=-1)
        barrier, won = threading.Barrier(8), []

        def race(number, prefix=round_number, barrier=barrier, won=won):
            barrier.wait()
            if take(path, "run%d-%d" % (prefix, number)).acquired:
                won.append(number)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(won) == 1
        assert lock.read(path)["run_id"] == "run%d-%d" % (round_number, won[0])
        assert os.listdir(os.path.dirname(path)) == ["lock.json"]
        os.unlink(path)


def test_a_running_and_an_ended_controller():
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as child:
        process = lock._process(child.pid)
        identity = dict(lock.controller_identity(), pid=child.pid, start=process["start"])
        assert lock.controller_alive(identity) is True
        assert lock.controller_alive(dict(identity, start=identity["start"] + 1)) is False, "another process by now"
        assert lock.controller_alive(dict(identity, machine="elsewhere")) is None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert lock.controller_alive(identity) is False, "dead, and nobody has asked for its exit code"
    assert lock.controller_alive(identity) is False
    assert lock.controller_alive({}) is None


def test_a_machine_is_known_by_its_name_boot_and_processes():
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert lock._machine() == "%s %s %s" % (os.uname().nodename, boot, os.readlink("/proc/self/ns/pid"))


def test_the_name_of_a_process_may_contain_parentheses(tmp_path):
    program = tmp_path / "a) S (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen((program, "-c", "input()"), stdin=subprocess.PIPE) as child:
        assert lock._process(child.pid)["parent"] == os.getpid()


def test_the_outermost_ansible_process_is_the_controller(tmp_path):
    """ansible-playbook forks workers with its own words; the lock is the parent's."""
    directory = os.path.join(os.path.dirname(lock.__file__), "..", "..", "..")
    inner = (
        "import sys, json; sys.path.insert(0, %r)\nfrom module_utils.shiftmaster.release import lock\n"
        "print(json.dumps(lock.controller_identity()))" % os.path.abspath(directory)
    )
    outer = tmp_path / "ansible-playbook"
    outer.write_text(
        "import os, subprocess, sys\nprint(os.getpid(), flush=True)\n"
        "if len(sys.argv) < 3:\n    subprocess.run([sys.executable, sys.argv[0], 'x', 'worker'])\n"
        "else:\n    subprocess.run([sys.executable, '-c', %r])\n" % inner
    )
    lines = subprocess.run(
        (sys.executable, str(outer), "x"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.splitlines()
    assert json.loads(lines[2])["pid"] == int(lines[0]) != int(lines[1])


def test_the_controller_is_the_outermost_of_nested_runs_and_may_have_ended(monkeypatch):
    me = os.getpid()
    ansible = ["/usr/bin/python3", "/usr/bin/ansible-playbook"]
    processes = {
        me: {"parent": 40, "start": 5, "words": ["python3", "module", "ansible-playbook"]},
        40: {"parent": 30, "start": 4, "words": ansible},
        30: {"parent": 20, "start": 3, "words": ansible},
        20: {"parent": 1, "start": 2, "words": ["bash"]},
    }
    monkeypatch.setattr(lock, "_process", processes.get)
    found = lock.controller_identity()
    assert (found["pid"], found["start"], found["machine"]) == (30, 3, lock._machine())
    assert lock.controller_alive(found) is True
    processes[30] = dict(processes[30], start=99)
    # Another process has its number since.
    assert lock.controller_alive(found) is False
    del processes[30]
    assert lock.controller_alive(found) is False and lock.controller_identity()["pid"] == 40
    processes.clear()
    assert lock.controller_identity() == {"machine": lock._machine(), "pid": me, "start": 0}
    assert lock.controller_alive(dict(found, machine="another")) is lock.controller_alive({"pid": 0}) is None


# The module has the same name.
specification = importlib.util.spec_from_file_location(
    "lock_action", Path(__file__).resolve().parents[3] / "plugins/action/shiftmaster_lock.py"
)
action = importlib.util.module_from_spec(specification)
specification.loader.exec_module(action)


class Locked(action.ActionModule):
    """The action without a host: what the module was given, and what it returns."""

    def _execute_module(self, module_args, task_vars):
        self.given = module_args
        return {"acquired": module_args["run_id"] == "one", "holder": {"controller": self.owner}}


def test_the_action_names_this_run_and_shows_whether_the_owner_lives(run_module):
    mine = lock.controller_identity()
    for owner, alive in ((mine, True), (dict(mine, start=1), False), (dict(mine, machine="elsewhere"), None)):
        plugin = SimpleNamespace(ActionModule=type("Case", (Locked,), {"owner": owner}))
        assert run_module(plugin, state="present", run_id="two")["owner_alive"] is alive
    assert "owner_alive" not in run_module(plugin, state="present", run_id="one")


def test_the_action_passes_the_process_of_this_run_to_the_module(monkeypatch, run_module):
    given = []
    monkeypatch.setattr(Locked, "owner", {}, raising=False)
    monkeypatch.setattr(
        Locked, "_execute_module", lambda _self, module_args, task_vars: given.append(module_args) or {"acquired": True}
    )
    plugin = SimpleNamespace(ActionModule=Locked)
    for arguments in ({"state": "present"}, {"state": "present", "controller": {"pid": 7}}, {"state": "absent"}):
        run_module(plugin, **arguments)
    assert [one.get("controller") for one in given] == [lock.controller_identity(), {"pid": 7}, None]
