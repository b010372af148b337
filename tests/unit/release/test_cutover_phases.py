"""The cutover phase by phase, each failure of a phase and the rollback, on a fake host: units, probes, tasks, clock."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.host import points, units
from ansible.module_utils.shiftmaster.host.probe import HttpResult
from ansible.module_utils.shiftmaster.host.units import UnitError, UnitTimeoutError
from ansible.module_utils.shiftmaster.release import cutover, gate, releases, revert, slots, workers
from ansible.module_utils.shiftmaster.release.layout import Layout
from ansible.module_utils.shiftmaster.release.releasecode import ReleaseCodeError
from ansible.module_utils.shiftmaster.release.state import State

ONE, TWO = "20260101T000000Z-aaaaaaa", "20260202T000000Z-bbbbbbb"
NODE = os.uname().nodename
BLUE, GREEN = ("worker-%s@%s" % (slot, NODE) for slot in ("blue", "green"))
CANARY = "shiftmaster.canary.%s.green" % NODE
KINDS = ("beat", "worker", "web")


def unit(text):
    """web@blue is shiftmaster-web@blue.service."""
    return "shiftmaster-%s.service" % text


def short(name):
    return name.replace("shiftmaster-", "").replace(".service", "") or name


class FakeHost:
    """systemd, nginx's link, the releases' Celery and health, and a clock; everything that is done is in `done`."""

    def __init__(self, layout, monkeypatch):
        self.layout, self.done, self.states, self.passed = layout, [], {}, 0.0
        self.fails, self.properties, self.restarts, self.waiting = set(), {}, {}, []
        self.responses = {
            "ping": {"alive": True}, "canary": {"ran": True, "stored": True}, "cancel": {"confirmed": True},
            "consume": {"confirmed": True}, "quarantine": {"quarantined": []}, "replay": {"replayed": []},
        }  # fmt: skip
        self.requests, self.drivers, self.limits, self.yields, self.hook_output = [], 0, {}, [], []
        self.health, self.probes, self.naps, self.meanwhile = [], [], [], lambda: None
        self.phases, self.resumed, self.killed, self.endless = [], [], [], set()
        monkeypatch.setattr(units, "systemctl", self.systemctl)
        monkeypatch.setattr(units, "journal", lambda name, lines=15: "journal of %s" % short(name))
        monkeypatch.setattr(units, "yielding", self.yielding)
        monkeypatch.setattr(units, "resume", lambda *names: self.resumed.append(list(map(short, names))))
        monkeypatch.setattr(units, "yield_to_others", lambda name, yields: self.yields.append((short(name), yields)))
        monkeypatch.setattr(gate.probe, "http_get", self.http_get)
        monkeypatch.setattr(releases, "run_hooks", self.run_hooks)
        monkeypatch.setattr(workers, "Driver", self.driver)
        for module in (slots, gate, revert):
            monkeypatch.setattr(module, "time", self)
        monkeypatch.setattr(workers, "RUN", layout.root + "/run")
        monkeypatch.setattr(slots, "accept_queue", self.accept_queue)
        monkeypatch.setattr(points, "reach", self.reach)

    # The module `time`.
    def monotonic(self):
        return self.passed

    def sleep(self, seconds):
        assert seconds >= 0 and self.passed < 10000
        self.naps.append(seconds)
        self.passed += seconds
        self.meanwhile()

    def fail(self, *words):
        if " ".join(words) in self.fails:
            raise UnitError("%s failed" % " ".join(words))

    def systemctl(self, verb, *words, timeout=90):
        names = [word for word in words if not word.startswith("-")]
        if verb == "show":
            if "--value" in words:
                return "".join(self.states.get(short(name), "inactive") + "\n" for name in names)
            (name,) = names
            found = {
                "ActiveState": self.states.get(short(name), "inactive"), "Result": "exit-code",
                "NRestarts": str(self.restarts.get(short(name), 0)),
            }  # fmt: skip
            return "".join("%s=%s\n" % one for one in found.items())
        if verb == "kill":
            assert words[0] == "--signal=KILL"
            self.killed += map(short, names)
            self.endless -= set(self.killed)
            return ""
        if verb == "stop" and self.endless & set(map(short, names)):
            raise UnitTimeoutError("stop: no end")
        for name in map(short, names):
            self.done.append("%s %s" % (verb, name) + (" --no-block" if "--no-block" in words else ""))
            self.limits["%s %s" % (verb, name)] = timeout
            self.fail(verb, name)
            after = {"start": "active", "restart": "active", "stop": "inactive", "reset-failed": "inactive"}[verb]
            self.states[name] = "deactivating" if "--no-block" in words else after
        return ""

    @contextlib.contextmanager
    def yielding(self, name, seconds):
        self.yields.append((short(name), seconds))
        yield

    def http_get(self, target, **more):
        self.probes.append((target, more))
        if self.health:
            return self.health.pop(0) if len(self.health) > 1 else self.health[0]
        slot = "green" if "green" in target else "blue"
        return HttpResult(200, 0.1, json.dumps({"release": self.layout.release_of(slot)}), None)

    def run_hooks(self, path, hooks, phase, user):
        assert hooks == ["hooks"] and user == "shiftmaster"
        self.done.append("hook %s %s" % (phase, "one" if path.endswith(ONE) else "two"))
        self.fail("hook", phase)
        return self.hook_output

    def driver(self, code, module, environment):
        assert module is workers.celery_driver and environment == {"SHIFTMASTER_CELERY_APPLICATION": "app"}
        self.drivers += 1
        host, of = self, "one" if code.path.endswith(ONE) else "two"

        class Driver:
            def call(self, request, timeout):
                host.requests.append((of, request, timeout))
                host.done.append(("%s %s" % (request["op"], request.get("worker", ""))).strip())
                if request["op"] in host.fails:
                    raise ReleaseCodeError("no response")
                response = host.responses[request["op"]]
                return (
                    (response.pop(0) if len(response) > 1 else response[0]) if isinstance(response, list) else response
                )

            def close(self):
                host.drivers -= 1

        return Driver()

    def accept_queue(self, path):
        self.done.append("queue of %s" % path)
        return self.waiting.pop(0) if self.waiting else 0

    def reach(self, point):
        path = Path(self.layout.state, "state.json")
        step = path.exists() and json.loads(path.read_text())["transition"]
        if step:
            self.phases.append((point, step["phase"]))
        if point == "switched":
            self.done.append("active: %s" % self.layout.active_slot())
        self.fail("reach", point)


class Site:
    """Release ONE is live in the slot blue, release TWO is built; engine is the cutover."""

    def __init__(self, tmp_path, monkeypatch):
        self.layout = Layout(str(tmp_path / "root"))
        for directory in (self.layout.state, self.layout.shared + "/unknown-tasks", self.layout.root + "/run"):
            os.makedirs(directory)
        self.make(ONE, "1.0", ["a", "b"], ["celery", "mail"])
        self.make(TWO, "2.0", ["a", "c"], ["celery", "reports"])
        self.host = FakeHost(self.layout, monkeypatch)
        self.options = {
            "user": "shiftmaster", "celery_application": "app", "beat": True, "several_hosts": False, "health_path":
            "/health", "health_host": "shift.example", "watch_paths": ["/"],
            "gate_attempts": 3, "gate_delay_seconds": 2, "gate_timeout_seconds": 5,
            "worker_gate_seconds": 40, "drain_grace_seconds": 0, "drain_limit_seconds": 3, "worker_stop_seconds": 30,
            "web_stop_seconds": 50, "hooks": ["hooks"], "run_id": "run-1", "who": "me",
            "logs": [str(tmp_path / "*.log")],
        }  # fmt: skip
        self.state = State(self.layout)
        self.engine = cutover.Cutover(self.layout, self.state, self.options)

    def make(self, name, version, tasks, queues):
        directory = Path(self.layout.release(name))
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text(json.dumps({"version": version, "tasks": tasks, "queues": queues}))

    def live(self, release=ONE, slot="blue"):
        self.layout.point_slot(slot, release)
        self.layout.activate(slot)
        self.state.set_status(release, "live")
        for kind in KINDS:
            self.host.states["%s@%s" % (kind, slot)] = "active"
        return self

    def running(self):
        return {name for name, state in self.host.states.items() if state == "active"}

    def events(self, name):
        path = Path(self.layout.state, "audit.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [one for one in found if one["event"] == name]

    def queue_file(self, slot):
        return Path(self.layout.root, "run", "worker-%s.env" % slot)

    def in_phase(self, phase, active="blue", **more):
        """As a run that was killed in a phase has left it."""
        self.layout.point_slot("green", TWO)
        self.layout.activate(active)
        step = {"kind": "deploy", "from": ONE, "to": TWO, "from_slot": "blue", "to_slot": "green", "run_id": "dead"}
        self.state.begin(**dict(step, phase=phase, **more))
        self.host.states.update({"web@green": "active", "worker@green": "active"})
        return self

    def is_back(self, bad=True):
        """The old release is live with its tasks, nothing of the new one runs, and nothing is left to finish."""
        assert self.layout.active_slot() == "blue" and self.layout.current() == ONE
        assert self.running() - {"shiftmaster"} == {"web@blue", "worker@blue", "beat@blue"}
        assert not self.queue_file("blue").exists() and self.host.drivers == 0
        again = State(self.layout)
        assert again.transition is None and again.status(ONE) == "live"
        assert (again.status(TWO) == "bad") == bad
        return True


@pytest.fixture
def empty(tmp_path, monkeypatch):
    return Site(tmp_path, monkeypatch)


@pytest.fixture
def site(empty):
    return empty.live()


# --- the way forward --------------------------------------------------------------------------------------------------


def test_a_deploy_goes_through_its_phases_in_order(site):
    done = site.host.done
    site.engine.prepare(TWO, "deploy")
    assert done == [
        "hook before_cutover two", "start worker@green", "start web@green",
        "ping " + GREEN, "canary " + GREEN, "stop beat@blue", "cancel " + BLUE,
    ]  # fmt: skip
    assert site.layout.active_slot() == "blue" and site.running() >= {"web@blue", "worker@blue"}
    # Until it takes over, the new worker takes the canary alone.
    assert site.queue_file("green").read_text() == 'SHIFTMASTER_QUEUES_OPTION="-Q %s"\n' % CANARY
    assert site.queue_file("green").stat().st_mode & 0o777 == 0o644
    assert site.state.transition["from"] == ONE and site.state.transition["to"] == TWO
    assert site.state.transition["kind"] == "deploy" and site.state.transition["run_id"] == "run-1"
    del done[:]
    site.engine.move()
    socket = site.layout.socket("blue")
    assert done == [
        "active: green", "queue of " + socket, "stop worker@blue", "quarantine", "consume " + GREEN, "cancel " + GREEN,
        "start beat@green", "hook after_cutover two",
    ]  # fmt: skip
    assert not site.queue_file("green").exists() and site.host.drivers == 0 and site.engine.notes == []
    del done[:]
    site.engine.finish()
    assert done == ["stop web@blue"] and site.running() == {"web@green", "worker@green", "beat@green"}
    again = State(site.layout)
    assert again.transition is None and again.status(TWO) == "live" and again.was_live(TWO)
    assert again.releases[TWO]["previous"] == ONE
    (event,) = site.events("live")
    assert {key: event[key] for key in ("previous", "source", "target", "kind", "run_id", "who")} == {
        "previous": ONE, "source": ONE, "target": TWO, "kind": "deploy", "run_id": "run-1", "who": "me",
    }  # fmt: skip
    assert len(site.events("cutover_started")) == len(site.events("switched")) == 1


def test_each_phase_is_on_disk_before_it_begins(site):
    site.engine.switch(TWO, "deploy")
    site.engine.finish()
    phases = ["start", "gate", "quiesce", "switch", "drain", "handover", "watch", "finish"]
    assert [point for point, _phase in site.host.phases if point in phases] == phases
    assert all(point == phase for point, phase in site.host.phases if point in phases)
    assert set(site.engine.timings) == {*phases, "until_switched"}


@pytest.fixture
def published(site):
    """A function that lists what is published; each release has a file of its own."""
    for name in (ONE, TWO):
        static = Path(site.layout.release(name), "static")
        static.mkdir()
        (static / ("%s.js" % name[-7:])).write_text(name)
    Path(site.layout.union).mkdir()
    return lambda: sorted(path.name for path in Path(site.layout.union).iterdir())


def test_static_files_are_published_before_the_traffic_moves_and_earlier_ones_stay(site, published):
    site.engine.prepare(TWO, "deploy")
    assert site.layout.current() == ONE and published() == ["aaaaaaa.js", "bbbbbbb.js"]
    site.engine.move()
    site.engine.finish()
    assert published() == ["aaaaaaa.js", "bbbbbbb.js"]


def test_a_release_that_fails_its_gate_publishes_nothing(site, published):
    site.host.health = [HttpResult(503, 0.1, "{}", None)]
    with pytest.raises(slots.CutoverError):
        site.engine.prepare(TWO, "deploy")
    assert "bbbbbbb.js" not in published() and site.is_back()


def test_a_reverted_release_leaves_nothing_published(site, published):
    site.engine.switch(TWO, "deploy")
    site.engine.revert("it is slow")
    assert published() == ["aaaaaaa.js"] and site.is_back()


@pytest.mark.parametrize("phase", ["quiesce", "revert"])
def test_a_run_interrupted_with_static_files_published_is_recovered_without_them(site, published, phase):
    releases.publish_static(site.layout, site.state, TWO)
    assert published() == ["aaaaaaa.js", "bbbbbbb.js"]
    site.in_phase(phase).engine.recover()
    assert published() == ["aaaaaaa.js"] and site.is_back(bad=False)


def test_requests_of_the_driver_name_workers_queues_and_seconds(site):
    site.engine.switch(TWO, "deploy")
    requests = [request for _of, request, _timeout in site.host.requests]
    assert requests == [
        {"op": "ping", "worker": GREEN, "seconds": 1},
        {"op": "canary", "worker": GREEN, "queue": CANARY, "seconds": 40},
        {"op": "cancel", "worker": BLUE, "queues": ["celery", "mail"]},
        {
            "op": "quarantine",
            "queues": ["celery", "mail", "reports"],
            "directory": site.layout.shared + "/unknown-tasks",
        },
        {"op": "consume", "worker": GREEN, "queues": ["celery", "reports"]},
        {"op": "cancel", "worker": GREEN, "queues": [CANARY]},
    ]
    assert {of for of, _request, _timeout in site.host.requests} == {"two"}
    assert [timeout for _of, _request, timeout in site.host.requests] == [61, 100, 60, 60, 60, 60]


def test_queues_that_are_set_take_the_place_of_the_releases_own(site):
    site.options["celery_queues"] = ("all",)
    site.engine.switch(TWO, "deploy")
    assert [one["queues"] for _of, one, _timeout in site.host.requests if "queues" in one] == [
        ["all"], ["all"], ["all"], [CANARY],
    ]  # fmt: skip


def test_the_new_release_has_a_lower_priority_until_it_has_passed(site):
    site.engine.prepare(TWO, "deploy")
    assert site.host.yields == [
        ("worker@green", True), ("web@green", 15), ("web@green", False), ("worker@green", False),
    ]  # fmt: skip
    assert site.host.limits["start web@green"] == 95


def test_a_first_deploy_has_nothing_to_end(empty):
    empty.engine.switch(TWO, "deploy")
    assert empty.layout.active_slot() == "blue" and empty.layout.current() == TWO
    assert not any(one.startswith(("stop", "queue", "quarantine")) for one in empty.host.done)
    empty.engine.finish()
    assert State(empty.layout).releases[TWO]["status"] == "live" and empty.running() == {
        "web@blue", "worker@blue", "beat@blue",
    }  # fmt: skip


def test_without_celery_only_web_processes_run(site):
    site.options["celery_application"] = ""
    site.host.states = {"web@blue": "active"}
    site.engine.switch(TWO, "deploy")
    site.engine.finish()
    assert site.host.requests == [] and site.running() == {"web@green"}
    assert not any("worker" in one for one in site.host.done)


def test_a_host_without_beat_neither_stops_nor_starts_it(site):
    site.options["beat"] = False
    site.host.states.pop("beat@blue")
    site.engine.switch(TWO, "deploy")
    site.engine.finish()
    assert not any("beat" in one for one in site.host.done)


def test_tasks_that_both_know_are_not_inspected_and_the_old_worker_exits_by_itself(site):
    site.make("20260303T000000Z-ccccccc", "3", ["a", "b", "z"], ["celery"])
    site.engine.switch("20260303T000000Z-ccccccc", "deploy")
    assert "stop worker@blue --no-block" in site.host.done and "quarantine" not in site.host.done


def test_tasks_that_the_new_release_does_not_know_are_quarantined_and_reported(site):
    site.host.responses["quarantine"] = {"quarantined": [{"task": "b", "id": "1", "queue": "mail"}]}
    site.engine.switch(TWO, "deploy")
    (event,) = site.events("task_quarantined")
    assert (event["task"], event["id"], event["queue"]) == ("b", "1", "mail")
    assert len([note for note in site.engine.notes if "1 task(s)" in note]) == 1


def test_quarantined_tasks_that_are_known_again_are_run(site):
    Path(site.layout.shared, "unknown-tasks/1.json").touch()
    site.host.responses["replay"] = {"replayed": [{"task": "c", "id": "2", "queue": "reports"}]}
    site.engine.switch(TWO, "deploy")
    (event,) = site.events("task_replayed")
    assert (event["task"], event["id"], event["queue"]) == ("c", "2", "reports")
    assert {"op": "replay", "directory": site.layout.shared + "/unknown-tasks"} in [
        one for _of, one, _limit in site.host.requests
    ]


def test_an_old_worker_that_does_not_confirm_is_stopped_before_new_code_sends_tasks(site):
    site.host.responses["cancel"] = {"confirmed": False}
    site.engine.prepare(TWO, "deploy")
    assert site.host.done[-2:] == ["cancel " + BLUE, "stop worker@blue"] and len(site.engine.notes) == 1


def test_an_old_worker_that_does_not_run_is_not_queried(site):
    site.host.states["worker@blue"] = "inactive"
    site.engine.prepare(TWO, "deploy")
    assert "cancel " + BLUE not in site.host.done
    del site.host.done[:]
    site.engine.move()
    assert not any("worker@blue" in one for one in site.host.done if "--no-block" not in one)


def test_a_new_worker_that_does_not_confirm_its_queues_is_restarted(site):
    site.host.responses["consume"] = {"confirmed": False}
    site.engine.switch(TWO, "deploy")
    at = site.host.done.index("stop worker@green")
    assert site.host.done[at + 1] == "start worker@green" and len(site.engine.notes) == 1
    assert site.host.limits["stop worker@green"] == 45


def test_hooks_of_a_rollback_have_their_own_phase_and_their_output_is_recorded(site):
    site.host.hook_output = [{"name": "warm", "output": ""}, {"name": "cdn", "output": "purged"}]
    site.engine.switch(TWO, "rollback")
    assert [one for one in site.host.done if one.startswith("hook")] == [
        "hook before_cutover two",
        "hook after_rollback two",
    ]
    assert site.engine.notes[:2] == ["hook warm (before_cutover): done", "hook cdn (before_cutover): purged"]
    site.engine.finish()
    assert "previous" not in State(site.layout).releases[TWO]


def test_a_restart_of_the_same_release_is_no_rollback(site):
    site.engine.switch(ONE, "deploy")
    site.engine.finish()
    assert "previous" not in State(site.layout).releases[ONE] and site.layout.active_slot() == "green"


def test_running_units_of_the_idle_slot_are_stopped_first(site):
    site.host.states.update({"web@green": "active", "worker@green": "failed", "beat@green": "activating"})
    site.engine.prepare(TWO, "deploy")
    assert site.host.done[:3] == ["stop beat@green", "reset-failed worker@green", "stop web@green"]
    assert (site.host.limits["stop web@green"], site.host.limits["stop beat@green"]) == (65, 35)
    # Web processes without traffic disturb nothing while they end; a worker ends at its own pace.
    assert site.host.yields[0] == ("web@green", 15) and ("worker@green", 15) not in site.host.yields


def test_web_processes_that_do_not_stop_are_killed(site):
    """gunicorn belongs to the release: it can request more time from systemd without end (EXTEND_TIMEOUT_USEC)."""
    site.engine.switch(TWO, "deploy")
    site.host.endless.add("web@blue")
    site.engine.finish()
    assert site.host.killed == ["web@blue"]
    assert site.host.states["web@blue"] == "inactive" and State(site.layout).transition is None


@pytest.mark.parametrize("fails", ["reach gate", "reach handover"])
def test_processes_of_the_other_slot_that_a_release_suspends_are_resumed(site, fails):
    """By SIGSTOP: the processes of both slots have one user."""
    site.host.fails.add(fails)
    with pytest.raises(slots.CutoverError):
        site.engine.switch(TWO, "deploy")
    assert site.host.done[-1] in ("stop web@green", "hook after_rollback one")
    assert site.host.resumed[-1] == ["web@blue", "worker@blue", "beat@blue"]


def test_a_failed_umbrella_unit_is_started_again(site):
    site.host.states["shiftmaster"] = "failed"
    site.engine.switch(TWO, "deploy")
    assert "start shiftmaster" not in site.host.done
    site.engine.finish()
    assert site.host.done[-1] == "start shiftmaster"


def test_traffic_alone_moves_where_other_hosts_send_old_tasks(site):
    site.engine.prepare(TWO, "deploy")
    site.engine.move(with_tasks=False)
    assert (
        site.layout.active_slot() == "green" and "worker@blue" in site.running() and "quarantine" not in site.host.done
    )
    assert site.state.transition["phase"] == "drain" and "beat@green" not in site.running()
    site.engine.end_tasks()
    assert "worker@blue" not in site.running()
    site.engine.take_tasks()
    assert site.state.transition["phase"] == "watch" and "beat@green" in site.running()


def test_a_first_release_ends_no_earlier_tasks(empty):
    empty.engine.prepare(TWO, "deploy")
    done = list(empty.host.done)
    empty.engine.end_tasks()
    assert empty.host.done == done and empty.engine.old_tasks() == []


def test_old_tasks_are_those_that_the_new_release_does_not_know(site):
    site.engine.prepare(TWO, "deploy")
    assert site.engine.old_tasks() == ["b"]


# --- the drain --------------------------------------------------------------------------------------------------------


def test_requests_that_wait_on_the_old_socket_are_served(site):
    site.host.waiting = [2, 1, 0]
    site.engine.options["drain_grace_seconds"] = 0.08
    site.engine._drain("blue")
    assert len(site.host.done) == 5 and site.host.naps == [0.05] * 4
    assert set(site.host.done) == {"queue of " + site.layout.socket("blue")}


def test_a_late_request_is_served(site):
    site.host.waiting = [0, 0, 1]
    site.engine.options["drain_grace_seconds"] = 0.08
    site.engine._drain("blue")
    assert site.host.waiting == [] and len(site.host.done) == 6


def test_a_socket_without_a_server_is_waited_for_up_to_the_limit(site):
    site.host.waiting = [5] * 1000
    site.engine._drain("blue")
    assert 3 <= site.host.passed < 3.1


# --- the gate ---------------------------------------------------------------------------------------------------------


def refused(body="", status=503, error=None):
    return HttpResult(status, 0.1, body, error)


def abandoned(site):
    """Nothing was touched but the idle slot."""
    assert site.layout.active_slot() == "blue" and State(site.layout).transition is None
    assert site.running() >= {"web@blue", "worker@blue", "beat@blue"} and not site.queue_file("green").exists()
    assert not {"web@green", "worker@green", "beat@green"} & site.running() and site.host.drivers == 0
    assert State(site.layout).status(TWO) == "bad" and len(site.events("gate_failed")) == 1
    assert not any(one.endswith("blue") for one in site.host.done)
    return True


def test_the_health_check_uses_the_private_socket_and_sends_the_tls_header(site):
    site.engine.prepare(TWO, "deploy")
    assert site.host.probes == [
        (
            "unix:" + site.layout.socket("green"),
            {
                "path": "/health", "host": "shift.example", "timeout": 5,
                "headers": {"X-Forwarded-Proto": "https"},
            },
        ),
        (
            "unix:" + site.layout.socket("green"),
            {
                "path": "/", "host": "shift.example", "timeout": pytest.approx(5, abs=1),
                "headers": {"X-Forwarded-Proto": "https"}, "verify": True,
            },
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (HttpResult(500, 0.1, "", None), "/: HTTP 500"),
        (HttpResult(None, 5.0, "", "no response within 5 s"), "/: no response within 5 s"),
        (HttpResult(302, 0.1, "", None, "", {"location": "/login/?next=/"}), "/: HTTP 503"),
    ],
)
def test_a_page_that_fails_or_hangs_abandons_the_release_regardless_of_its_health(site, monkeypatch, page, problem):
    """The health pages that role shiftmaster supplies are a middleware in front of the application."""
    requested = []

    def http_get(target, **more):
        requested.append(more["path"])
        return {"/health": HttpResult(200, 0.1, "{}", None), "/": page}.get(
            more["path"], HttpResult(503, 0.1, "", None)
        )

    monkeypatch.setattr(gate.probe, "http_get", http_get)
    with pytest.raises(slots.CutoverError, match="shiftmaster_watch_paths is not served: %s" % problem):
        site.engine.prepare(TWO, "deploy")
    assert abandoned(site) and requested[:2] == ["/health", "/"]
    assert page.status != 302 or requested[2] == "/login/?next=/"


@pytest.mark.parametrize("status", [200, 302, 403, 404])
def test_a_page_that_requires_a_login_is_served(site, status):
    site.host.health = [HttpResult(200, 0.1, "{}", None), HttpResult(status, 0.1, "", None)]
    site.engine.prepare(TWO, "deploy")


@pytest.mark.parametrize("body", ["", "{}", '{"release": ""}', '{"release": "%s"}' % TWO, "<html>"])
def test_a_healthy_response_of_this_release_or_without_a_name_passes(site, body):
    site.host.health = [HttpResult(200, 0.1, body, None)]
    site.engine.prepare(TWO, "deploy")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (refused(json.dumps({"checks": {"cache": {"status": "down"}}})), "HTTP 503 cache: down"),
        (refused(status=None, error="connection refused"), "connection refused"),
        (refused(status=None), "no response"),
        (HttpResult(200, 0.1, json.dumps({"release": ONE}), None), "release %s responds on the socket of" % ONE),
    ],
)
def test_a_health_check_that_fails_each_time_abandons_the_release(site, result, message):
    site.host.health = [result]
    with pytest.raises(slots.CutoverError, match=message) as caught:
        site.engine.prepare(TWO, "deploy")
    assert "failed 3 times" in str(caught.value) and "version 2.0 (release %s)" % TWO in str(caught.value)
    assert not caught.value.reverted and len(site.host.probes) == 3 and abandoned(site)
    # A pause between two attempts, and none after the last.
    assert sum(site.host.naps) == 4


def test_a_health_check_may_fail_before_it_passes(site):
    site.host.health = [refused(), refused(), HttpResult(200, 0.1, "{}", None)]
    site.engine.prepare(TWO, "deploy")
    assert [more["path"] for _target, more in site.host.probes] == ["/health"] * 3 + ["/"]


def test_without_an_attempt_no_check_passes(site):
    site.options["gate_attempts"] = 0
    with pytest.raises(slots.CutoverError, match="no attempt was made"):
        site.engine.prepare(TWO, "deploy")


@pytest.mark.parametrize("how", ["failed", "restarted"])
def test_web_processes_that_die_are_not_waited_for(site, how):
    site.options["gate_delay_seconds"] = 500
    site.host.health = [refused()]

    def die():
        if how == "failed":
            site.host.states["web@green"] = "failed"
        else:
            site.host.restarts["web@green"] = 1

    site.host.meanwhile = die
    with pytest.raises(slots.CutoverError, match="web@green.service ended .exit-code."):
        site.engine.prepare(TWO, "deploy")
    assert site.host.passed <= 1 and len(site.host.probes) == 1 and abandoned(site)


def test_web_processes_that_reload_are_alive(site):
    site.host.health = [refused(), HttpResult(200, 0.1, "{}", None)]
    site.host.meanwhile = lambda: site.host.states.update({"web@green": "reloading"})
    site.engine.prepare(TWO, "deploy")


def test_web_processes_that_do_not_start_abandon_the_release(site):
    site.host.fails = {"start web@green"}
    with pytest.raises(slots.CutoverError, match="does not start: start web@green failed\njournal of web@green"):
        site.engine.prepare(TWO, "deploy")
    assert abandoned(site) and site.host.probes == []


@pytest.mark.parametrize("step", ["hook before_cutover", "start worker@green", "ping", "canary", "reach gate"])
def test_any_failure_before_the_gate_is_passed_abandons_the_release(site, step):
    site.host.fails = {step}
    with pytest.raises(slots.CutoverError) as caught:
        site.engine.prepare(TWO, "deploy")
    assert not caught.value.reverted and abandoned(site)


def test_a_release_that_was_live_before_is_not_bad_for_a_failed_gate(site):
    site.state.set_status(TWO, "live")
    site.host.health = [refused()]
    with pytest.raises(slots.CutoverError):
        site.engine.prepare(TWO, "rollback")
    assert State(site.layout).status(TWO) == "live" and State(site.layout).transition is None


def test_the_reason_of_a_bad_release_is_one_line(site):
    site.host.health = [refused()]
    with pytest.raises(slots.CutoverError):
        site.engine.prepare(TWO, "deploy")
    reason = State(site.layout).releases[TWO]["reason"]
    assert "failed 3 times" in reason and "\n" not in reason


def test_a_worker_may_respond_late(site):
    site.host.responses["ping"] = [{"alive": False}, {"alive": False}, {"alive": True}]
    site.engine.prepare(TWO, "deploy")
    assert site.host.done.count("ping " + GREEN) == 3


def test_a_worker_that_does_not_respond_abandons_the_release(site):
    site.host.responses["ping"] = {"alive": False}
    site.host.reach = lambda point: None
    query = site.engine._call

    def slow(request):
        site.host.passed += 10
        return query(request)

    site.engine._call = slow
    with pytest.raises(slots.CutoverError, match="does not respond"):
        site.engine.prepare(TWO, "deploy")
    assert 40 < site.host.passed <= 60 and abandoned(site)


@pytest.mark.parametrize("how", ["failed", "restarted"])
def test_a_worker_that_exits_is_not_waited_for(site, how):
    site.host.responses["ping"] = {"alive": False}
    query = site.engine._call

    def dying(request):
        site.host.states["worker@green"] = "failed" if how == "failed" else "activating"
        site.host.restarts["worker@green"] = how == "restarted"
        return query(request)

    site.host.restarts = {"worker@green": 0}
    site.engine._call = dying
    if how == "restarted":
        site.host.restarts["worker@green"] = 1
    with pytest.raises(slots.CutoverError, match="does not start"):
        site.engine.prepare(TWO, "deploy")
    assert site.host.done.count("ping " + GREEN) == 1 and abandoned(site)


@pytest.mark.parametrize(
    ("ran", "message"), [(False, "did not run in 40 s\njournal of worker@green"), (True, "result backend")]
)
def test_a_worker_whose_task_or_result_does_not_arrive_abandons_the_release(site, ran, message):
    site.host.responses["canary"] = {"ran": ran, "stored": False}
    with pytest.raises(slots.CutoverError, match=message):
        site.engine.prepare(TWO, "deploy")
    assert abandoned(site)


def test_the_canary_has_five_seconds_at_least(site):
    site.options["worker_gate_seconds"] = 3
    site.engine.prepare(TWO, "deploy")
    assert site.host.requests[1][1]["seconds"] == 5


def test_a_slow_gate_does_not_lower_the_priority_for_longer(site):
    site.options["gate_delay_seconds"] = 20
    site.host.health = [refused(), refused(), HttpResult(200, 0.1, "{}", None)]
    seen = []
    site.host.meanwhile = lambda: seen.append((site.host.passed, ("web@green", False) in site.host.yields))
    site.engine.prepare(TWO, "deploy")
    assert not any(reported for passed, reported in seen if passed <= 15) and any(
        reported for passed, reported in seen if passed < 17
    )
    assert site.host.yields.count(("web@green", False)) == 2


# --- the rollback -----------------------------------------------------------------------------------------------------

BEHIND = [
    "reach quiesce", "stop beat@blue", "reach switch", "reach switched", "reach drain", "reach handover", "quarantine",
    "consume", "start beat@green", "hook after_cutover", "reach watch",
]  # fmt: skip


@pytest.mark.parametrize("step", BEHIND)
def test_a_failure_after_the_gate_reverts_traffic_and_tasks(site, step):
    fails = site.host.fail

    def once(*words):
        try:
            fails(*words)
        except UnitError:
            site.host.fails.clear()
            raise

    site.host.fail = once
    site.host.fails = {step}
    if step in ("quarantine", "consume"):
        responses = site.host.responses[step]
        site.host.fails.clear()
        site.host.responses[step] = Once(responses)
    with pytest.raises(slots.CutoverError) as caught:
        site.engine.switch(TWO, "deploy")
    assert caught.value.reverted and site.is_back()
    assert "hook after_rollback one" in site.host.done and len(site.events("reverted")) == 1


class Once(dict):
    """A response that fails the first time."""

    def __getitem__(self, key):
        if not self.__dict__.get("over"):
            self.over = True
            raise ReleaseCodeError("no response")
        return super().__getitem__(key)


def test_during_a_rollback_the_old_release_evaluates_what_it_knows(site):
    """The driver is of the old release then, and its own queues are taken."""
    site.engine.switch(TWO, "deploy")
    site.host.states["worker@blue"] = "inactive"
    del site.host.done[:], site.host.requests[:]
    site.engine.revert("broken\nsecond line")
    assert site.is_back()
    assert site.host.done == [
        "start web@blue", "queue of " + site.layout.socket("green"), "start worker@blue", "ping " + BLUE,
        "stop beat@green", "stop worker@green", "quarantine", "consume " + BLUE, "cancel " + BLUE, "start beat@blue",
        "stop web@green", "hook after_rollback one",
    ]  # fmt: skip
    assert {of for of, _request, _timeout in site.host.requests} == {"one"}
    assert site.host.requests[0][1]["seconds"] == 40
    assert site.host.requests[1][1]["queues"] == ["celery", "mail", "reports"]
    assert site.host.requests[2][1]["queues"] == ["celery", "mail"]
    assert State(site.layout).releases[TWO]["reason"] == "broken" and "revert" in site.engine.timings
    assert site.events("reverted")[0]["reason"] == "broken\nsecond line"


def test_a_running_worker_is_not_started_during_a_rollback(site):
    site.in_phase("switch", active="green")
    site.engine.revert("broken")
    assert site.is_back() and "start worker@blue" not in site.host.done


def test_a_rollback_before_the_switch_has_nothing_to_drain(site):
    site.in_phase("quiesce")
    site.engine.revert("broken")
    assert site.is_back() and not any(one.startswith("queue") for one in site.host.done)


def test_without_celery_a_rollback_reverts_traffic_only(site):
    site.options["celery_application"] = ""
    site.host.states = {"web@blue": "inactive"}
    site.in_phase("watch", active="green")
    site.host.states["worker@green"] = "inactive"
    site.engine.revert("broken")
    assert site.running() == {"web@blue"} and site.host.requests == [] and State(site.layout).transition is None


def test_a_release_that_was_live_is_not_bad_for_a_failed_return_to_it(site):
    site.state.set_status(TWO, "live")
    site.host.fails = {"hook after_rollback"}
    with pytest.raises(slots.CutoverError):
        site.engine.switch(TWO, "rollback")
    assert State(site.layout).status(TWO) == "live"


def test_a_restart_that_fails_does_not_make_its_own_release_bad(site):
    site.state.releases[ONE].pop("live_at")
    site.engine.prepare(ONE, "deploy")
    site.engine.revert("broken", bad=True)
    assert State(site.layout).status(ONE) == "live"


def test_without_an_earlier_release_the_new_one_keeps_running(empty):
    empty.host.fails = {"hook after_cutover"}
    with pytest.raises(slots.CutoverError) as caught:
        empty.engine.switch(TWO, "deploy")
    assert caught.value.reverted and empty.layout.current() == TWO and State(empty.layout).transition is None
    assert empty.running() >= {"web@blue", "worker@blue"} and len(empty.events("not_reverted")) == 1
    assert State(empty.layout).status(TWO) == "bad" and len(empty.engine.notes) == 1


@pytest.mark.parametrize("step", ["start web@blue", "stop web@green", "ping"])
def test_a_failed_rollback_is_left_to_the_next_run_and_reported(site, step):
    site.engine.prepare(TWO, "deploy")
    site.host.states["worker@blue"] = "inactive"
    site.host.fails = {"hook after_cutover", step}
    with pytest.raises(slots.CutoverError, match="The revert is not finished") as caught:
        site.engine.move()
    assert not caught.value.reverted and State(site.layout).transition["phase"] == "revert"
    assert site.host.drivers == 0
    site.host.fails = set()
    again = cutover.Cutover(site.layout, State(site.layout), site.options)
    again.recover()
    assert site.is_back()


def test_on_several_hosts_traffic_is_reverted_and_tasks_wait(site):
    site.options["several_hosts"] = True
    site.host.fails = {"hook after_cutover"}
    with pytest.raises(slots.CutoverError) as caught:
        site.engine.switch(TWO, "deploy")
    assert caught.value.reverted and site.layout.active_slot() == "blue"
    assert not {"worker@green", "beat@green", "worker@blue"} & site.running()
    assert {"web@blue", "web@green"} <= site.running()
    assert State(site.layout).transition["phase"] == "revert" and State(site.layout).status(TWO) == "bad"
    site.engine.revert("broken", bad=False)
    assert site.is_back()


def test_reverting_a_first_release_stops_nothing(empty):
    empty.engine.switch(TWO, "deploy")
    empty.engine.revert_traffic("broken")
    assert empty.running() >= {"web@blue", "worker@blue", "beat@blue"}
    assert State(empty.layout).status(TWO) is None


# --- what a killed run leaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["start", "gate"])
def test_a_run_interrupted_before_its_gate_leaves_nothing(site, phase):
    site.in_phase(phase)
    site.queue_file("green").write_text("x")
    output = site.engine.recover()
    assert phase in output and site.is_back(bad=False) and not site.queue_file("green").exists()
    assert "hook after_rollback one" not in site.host.done
    (event,) = site.events("recovered")
    assert event["what"] == output and event["run_id"] == "run-1" and event["who"] == "me"


@pytest.mark.parametrize("phase", ["quiesce", "switch"])
def test_a_run_interrupted_before_its_switch_is_reverted(site, phase):
    site.in_phase(phase)
    site.host.states["beat@blue"] = "inactive"
    assert site.engine.recover() and site.is_back(bad=False)


@pytest.mark.parametrize("phase", ["switch", "drain", "handover"])
def test_a_run_interrupted_after_its_switch_is_finished_with_its_tasks(site, phase):
    site.in_phase(phase, active="green")
    output = site.engine.recover()
    assert "healthy: finished" in output and State(site.layout).status(TWO) == "live"
    assert site.running() == {"web@green", "worker@green", "beat@green"} and State(site.layout).transition is None
    assert "start worker@green" in site.host.done and "ping " + GREEN in site.host.done
    assert "start web@green" not in site.host.done and site.host.drivers == 0


@pytest.mark.parametrize("phase", ["watch", "finish"])
def test_a_run_interrupted_after_the_handover_of_tasks_is_finished(site, phase):
    site.in_phase(phase, active="green")
    site.host.states.update({"web@green": "inactive", "beat@green": "active"})
    site.engine.recover()
    assert State(site.layout).status(TWO) == "live" and site.host.requests == []
    assert "start web@green" in site.host.done


def test_without_celery_an_interrupted_run_is_finished_without_tasks(site):
    site.options["celery_application"] = ""
    site.in_phase("drain", active="green")
    site.engine.recover()
    assert State(site.layout).status(TWO) == "live" and site.host.requests == []


@pytest.mark.parametrize("cause", ["health", "start worker@green", "ping"])
def test_an_unhealthy_run_interrupted_after_its_switch_is_reverted(site, cause):
    site.in_phase("handover", active="green")
    if cause == "health":
        site.host.health = [refused()]
    site.host.fails = {cause}
    if cause == "ping":
        site.host.states["worker@blue"] = "active"
    assert "not healthy: reverted to %s" % ONE in site.engine.recover() and site.is_back()


@pytest.mark.parametrize("bad", [True, False])
@pytest.mark.parametrize("active", ["blue", "green"])
def test_a_killed_rollback_continues(site, bad, active):
    site.in_phase("revert", active=active)
    if bad:
        site.state.set_status(TWO, "bad", "first reason")
    site.engine.recover()
    assert site.is_back(bad=bad)
    assert State(site.layout).releases.get(TWO, {}).get("reason", "") == ("first reason" if bad else "")


def test_without_a_transition_nothing_is_done(site):
    assert site.engine.recover() is None and site.host.done == [] and site.events("recovered") == []


def test_a_host_that_never_served_has_no_link_to_find(empty):
    assert empty.engine.recover() is None
    empty.state.set_status(TWO, "ready")
    assert empty.engine.recover() is None and empty.layout.active_slot() is None


def test_a_removed_link_is_restored_to_the_running_release(site):
    site.state.set_status(TWO, "live")
    site.state.releases[TWO]["live_at"] = "2099-01-01T00:00:00Z"
    site.layout.point_slot("green", TWO)
    os.unlink(site.layout.active)
    assert site.engine.recover() and site.layout.current() == ONE
    assert len(site.events("recovered")) == 1 and site.host.done == []


def test_without_a_running_release_the_link_points_to_the_last_live_one(site):
    site.state.set_status(TWO, "live")
    site.state.releases[TWO]["live_at"] = "2099-01-01T00:00:00Z"
    site.layout.point_slot("green", TWO)
    site.host.states = {}
    os.unlink(site.layout.active)
    site.engine.recover()
    assert site.layout.current() == TWO


def test_bad_and_missing_releases_are_not_linked_again(site):
    site.state.set_status(TWO, "live")
    site.state.releases[TWO].update(live_at="2099-01-01T00:00:00Z", status="bad")
    site.state.set_status("20260404T000000Z-ddddddd", "live")
    site.state.releases["20260404T000000Z-ddddddd"]["live_at"] = "2099-01-01T00:00:00Z"
    for slot in ("blue", "green"):
        os.unlink(os.path.join(site.layout.slot(slot), "release")) if slot == "blue" else None
    os.unlink(site.layout.active)
    site.engine.recover()
    # No slot has a link either: the first one is pointed at it, with its units stopped.
    assert site.layout.active_slot() == "blue" and site.layout.current() == ONE
    assert site.host.done == ["stop beat@blue", "stop worker@blue", "stop web@blue"]


# --- next to a cutover ------------------------------------------------------------------------------------------------


def test_running_units_of_the_idle_slot_are_found_and_stopped(site):
    assert site.engine.others() == [] and site.engine.stop_others() == []
    site.host.states.update({"web@green": "active", "beat@green": "activating", "worker@green": "deactivating"})
    assert site.engine.others() == [unit("beat@green"), unit("web@green")]
    assert site.engine.stop_others() == [unit("beat@green"), unit("web@green")]
    assert site.host.done == ["stop beat@green", "stop web@green"] and site.host.limits["stop web@green"] == 65


def test_during_a_transition_and_on_an_empty_host_there_are_no_others(site, empty):
    site.in_phase("watch", active="green")
    assert site.engine.stop_others() == [] and site.host.done == []
    os.unlink(site.layout.active)
    assert site.engine.others() == []


def test_background_work_is_held(site):
    site.engine.hold_background()
    assert site.host.done == ["stop beat@blue", "stop worker@blue"] and site.running() == {"web@blue"}
    assert os.path.exists(site.layout.held)
    os.unlink(site.layout.active)
    site.engine.hold_background()
    assert len(site.host.done) == 2


def test_background_work_is_held_at_a_boot_until_a_run_has_ended_well(site):
    site.engine.hold_background()
    site.host.states["shiftmaster"] = "active"
    assert site.engine.ensure_running(background=False) == [] and os.path.exists(site.layout.held)
    site.engine.switch(TWO, "deploy")
    assert os.path.exists(site.layout.held)
    site.engine.finish()
    assert not os.path.exists(site.layout.held)
    # A run that only finds the schema fit for the live release.
    site.engine.hold_background()
    assert site.engine.ensure_running() and not os.path.exists(site.layout.held)


def test_missing_units_are_started_unless_an_operator_has_stopped_all(site):
    site.host.states.update({"worker@blue": "inactive", "web@blue": "failed"})
    assert site.engine.missing() == [unit("web@blue"), unit("worker@blue")]
    assert site.engine.ensure_running() == [] and site.host.done == []
    site.host.states["shiftmaster"] = "active"
    assert site.engine.ensure_running(background=False) == [unit("web@blue")]
    assert site.engine.ensure_running() == [unit("worker@blue")]
    assert site.engine.ensure_running() == [] and site.host.done == ["start web@blue", "start worker@blue"]
    os.unlink(site.layout.active)
    assert site.engine.ensure_running() == []


def test_a_worker_that_responds_to_no_ping_during_the_watch_is_a_problem(site):
    site.engine.switch(TWO, "deploy")
    assert site.engine.worker_problem() == "" and site.host.requests[-1][1] == {
        "op": "ping", "worker": GREEN, "seconds": 40,
    }  # fmt: skip
    site.host.responses["ping"] = {"alive": False}
    assert GREEN in site.engine.worker_problem() and site.host.drivers == 0
    site.options["celery_application"] = ""
    assert site.engine.worker_problem() == ""


def test_a_first_release_that_fails_before_its_switch_leaves_nothing_running(empty, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(releases, "publish_static", full)
    with pytest.raises(slots.CutoverError):
        empty.engine.prepare(ONE, "deploy")
    assert empty.running() == set() and empty.layout.current() is None and "was stopped" in empty.engine.notes[-1]


def test_a_release_that_has_served_is_not_bad_because_the_database_is_down(site):
    """A rollback to it was killed after its switch."""
    site.state.set_status(TWO, "live")
    site.in_phase("watch", active="green", kind="rollback")
    site.host.health = [HttpResult(503, 0.1, "{}", None)]
    assert "reverted" in site.engine.recover()
    assert site.state.status(TWO) == "live"


def test_a_release_is_called_by_its_version(site):
    assert site.engine.called(ONE) == "version 1.0 (release %s)" % ONE
    assert site.engine.called("20260404T000000Z-ddddddd") == "release 20260404T000000Z-ddddddd"
    assert site.engine.called(None) == "release None"


def test_a_driver_that_fails_is_reported_with_its_release_and_request(site):
    site.host.fails = {"canary"}
    with pytest.raises(slots.CutoverError, match=r"application app of version 2.0 .*\(canary\) failed: no response"):
        site.engine.prepare(TWO, "deploy")


def test_evidence_is_what_was_written_since_the_run_began(site, tmp_path):
    log = tmp_path / "app.log"
    log.write_text("ValueError: of before\n")
    site.engine.note_log()
    with log.open("a") as stream:
        stream.write("KeyError: new\n")
    assert site.engine.evidence("green").startswith("cause: KeyError: new\n")
    assert "of before" not in site.engine.evidence("green")
    # One that was rotated is read from its beginning, and a large one from near its end.
    log.write_text("OSError: r\n")
    assert "cause: OSError: r" in site.engine.evidence("green")
    log.write_text("x" * 70000 + "\nTypeError: last\n")
    assert gate._read_from(str(log), 0).endswith("TypeError: last\n") and len(gate._read_from(str(log), 0)) == 65536
    assert gate._read_from(str(log), None).endswith("TypeError: last\n")
    assert gate._read_from(str(tmp_path / "none"), 5) == "" and gate._size(str(tmp_path / "none")) == 0
