"""shiftmaster_preflight: each finding, its absence, and its hint."""

from __future__ import annotations

import collections
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest
import rendered
import shiftmaster_preflight as preflight
import yaml

Disk = collections.namedtuple("Disk", "f_bavail f_frsize f_favail f_files")
ROCKY = 'NAME="Rocky Linux"\nID="rocky"\nVERSION_ID="9.4"\nPRETTY_NAME="Rocky Linux 9.4"\n'
DEBIAN = "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID='13'\nID=debian\n"


@pytest.fixture
def report():
    return preflight.Report()


def problems(report):
    return [one["problem"] for one in report.findings]


# ------------------------------------------------------------------------------------------------------ system, memory


def test_a_system_on_the_list_passes(report):
    preflight.check_system(report, ["debian 12", "Debian 13"], False, DEBIAN)
    assert problems(report) == [] and report.facts["system"] == "debian 13"


def test_another_system_is_refused_unless_it_is_allowed(report):
    preflight.check_system(report, ["debian 12"], False, ROCKY)
    assert problems(report) == ["Rocky Linux 9.4 is none of the systems that this was verified on (debian 12)"]
    assert "allow_untested_os=true" in report.findings[0]["hint"]
    allowed = preflight.Report()
    preflight.check_system(allowed, ["debian 12"], True, ROCKY)
    assert problems(allowed) == [] and len(allowed.notes) == 1


@pytest.mark.parametrize("version, wanted", [("3.9.2", 0), ("3.13.5", 0), ("3.8.10", 1), ("2.7.18", 1)])
def test_python(report, version, wanted):
    preflight.check_python(report, version)
    assert len(problems(report)) == wanted


@pytest.mark.parametrize("first, running, wanted", [("systemd", True, 0), ("systemd", False, 1), ("bash", False, 1)])
def test_systemd(report, first, running, wanted):
    preflight.check_systemd(report, first, running)
    assert len(problems(report)) == wanted


# -------------------------------------------------------------------------------------------------------------- disk


def test_room_on_one_file_system_is_added_up(report, tmp_path):
    disk = Disk(f_bavail=250 * 256, f_frsize=4096, f_favail=1000, f_files=2000)
    wanted = [
        {"path": str(tmp_path / "a/b"), "minimum_mb": 200, "minimum_inodes": 900},
        {"path": str(tmp_path / "c"), "minimum_mb": 100, "minimum_inodes": 0},
    ]
    preflight.check_disk(report, wanted, lambda path: disk)
    assert problems(report) == [
        "%s has room for 250 MiB, and 300 are needed for %s and %s"
        % (preflight.mount_of(str(tmp_path)), wanted[0]["path"], wanted[1]["path"])
    ]
    alone = preflight.Report()
    preflight.check_disk(alone, wanted[:1], lambda path: disk)
    assert problems(alone) == []


def test_inodes_count_where_there_are_any(report, tmp_path):
    wanted = [{"path": str(tmp_path), "minimum_mb": 0, "minimum_inodes": 900}]
    preflight.check_disk(report, wanted, lambda path: Disk(10, 4096, 800, 1000))
    assert problems(report) == [
        "%s has room for 800 files, and 900 are needed for %s" % (preflight.mount_of(str(tmp_path)), tmp_path)
    ]
    without = preflight.Report()
    preflight.check_disk(without, wanted, lambda path: Disk(10, 4096, 0, 0))
    assert problems(without) == []


def test_the_nearest_directory_above_is_found(tmp_path):
    (tmp_path / "file").write_text("")
    assert preflight.nearest(str(tmp_path / "x/y/z")) == str(tmp_path)
    assert preflight.nearest(str(tmp_path / "file/y")) == str(tmp_path)


# -------------------------------------------------------------------------------------------------------------- ports


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def listener(request):
    with socket.socket(request.param) as one:
        one.bind(("127.0.0.1" if request.param == socket.AF_INET else "::1", 0))
        one.listen()
        yield one.getsockname()[1]


def ports(report, port, expected):
    preflight.check_ports(report, [{"port": port, "expected": expected}])
    return problems(report)


def test_a_port_held_by_another_program(report, listener):
    with open("/proc/self/comm", encoding="utf-8") as stream:
        me = stream.read().strip()
    assert ports(report, listener, ["nginx"]) == ["port %d is in use by %s (process %d)" % (listener, me, os.getpid())]
    assert "nginx is to listen there" in report.findings[0]["hint"]
    assert ports(preflight.Report(), listener, ["nginx", me]) == []


def test_a_connection_is_no_listener(report):
    with socket.socket() as one, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        one.connect(server.getsockname())
        assert ports(report, one.getsockname()[1], []) == []
        assert report.facts["ports"] == {}


def test_long_names_are_compared_as_the_kernel_truncates_them():
    assert preflight.foreign({("prometheus-nod", 3)}, ["prometheus-node-exporter"]) == {"prometheus-nod": 3}
    assert preflight.foreign({("prometheus-node", 3)}, ["prometheus-node-exporter"]) == {}
    assert preflight.foreign({("x", 9), ("x", 4)}, []) == {"x": 4}


def test_a_port_with_an_unknown_owner_is_a_note(report, listener, monkeypatch):
    monkeypatch.setattr(preflight.listeners, "owners", lambda inodes: {})
    assert ports(report, listener, []) == [] and "may not see by which program" in report.notes[0]


# ---------------------------------------------------------------------------------------------- clock, names, packages


@pytest.mark.parametrize(
    "difference, connection, found",
    [(-45, 0, "4[45] s earlier"), (-10, 0, ""), (10, 0, ""), (45, 100, "4[45] s later"), (-45, 100, "")],
)
def test_the_clock(difference, connection, found):
    """A connection of 100 s is no wrong clock."""
    tasks = yaml.safe_load((rendered.ROOT / "roles/preflight/tasks/main.yml").read_text(encoding="utf-8"))
    facts = [
        (one.get("vars", {}), one["ansible.builtin.set_fact"]) for one in tasks if "ansible.builtin.set_fact" in one
    ]
    given = rendered.trusted({name: value for pair in facts for part in pair for name, value in part.items()})
    known = {
        "preflight_source": {"changed": False, "skipped": True},
        "preflight_wheelhouse": {"changed": False, "skipped": True},
        "preflight_variables": {"problems": []},
        "preflight_found": {
            "problems": [],
            "facts": {
                "time": time.time() + difference,
                "requested_at": time.time() - connection,
                "system": "debian 13",
            },
        },
        "preflight_version_named": True,
        "group_names": [],
        "groups": {},
        "hostvars": {},
        "ansible_play_hosts_all": [],
    }
    problems = rendered.templar("preflight", **given, **known).template(rendered.trusted("{{ __preflight_problems }}"))
    assert len(problems) == bool(found)
    assert all(re.match(f"host1: the host's clock is {found} than", problem) for problem in problems)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A dpkg with prepared output, and a lock file."""
    (tmp_path / "lock").write_text("")
    (tmp_path / "updates").mkdir()
    (tmp_path / "dpkg").write_text('#!/bin/sh\ncat "%s/printed"\n' % tmp_path)
    (tmp_path / "dpkg").chmod(0o755)
    (tmp_path / "printed").write_text("")
    monkeypatch.setenv("PATH", "%s:%s" % (tmp_path, os.environ["PATH"]))
    monkeypatch.setattr(preflight, "PACKAGE_LOCKS", (str(tmp_path / "lock"),))
    listing = preflight.names_in
    monkeypatch.setattr(preflight, "names_in", lambda directory: listing(tmp_path / "updates"))
    return tmp_path


def test_packages_in_order(report, packages):
    preflight.check_packages(report, 0)
    assert problems(report) == [] and report.notes == []


def test_an_interrupted_installation(report, packages):
    (packages / "printed").write_text(
        "The following packages are only half configured:\n nginx-common   small server\n"
    )
    preflight.check_packages(report, 0)
    assert problems(report) == ["an earlier installation of packages was interrupted (nginx-common)"]
    assert "dpkg --configure -a" in report.findings[0]["hint"]
    (packages / "printed").write_text("")
    (packages / "updates" / "0003").write_text("")
    again = preflight.Report()
    preflight.check_packages(again, 0)
    assert problems(again) == ["an earlier installation of packages was interrupted"]


def test_an_apt_that_is_at_work_is_waited_for_and_then_named(report, packages):
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
        " print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )

    def hold(seconds):
        return subprocess.Popen((sys.executable, "-c", code, str(packages / "lock"), seconds), stdout=subprocess.PIPE)

    with hold("60") as holder:
        holder.stdout.readline()
        preflight.check_packages(report, 0)
        holder.kill()
    assert len(problems(report)) == 1
    assert "(process %d) is installing packages" % holder.pid in problems(report)[0]
    with hold("0.5") as holder:
        holder.stdout.readline()
        waited = preflight.Report()
        preflight.check_packages(waited, 20)
    assert problems(waited) == []


def test_inspecting_a_lock_does_not_acquire_it(packages):
    assert preflight.lock_holder(str(packages / "lock")) is None
    with open(packages / "lock", "w") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert preflight.lock_holder(str(packages / "absent")) is None


def test_a_host_without_dpkg_is_a_note(report, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    preflight.check_packages(report, 0)
    assert problems(report) == [] and len(report.notes) == 1


# ---------------------------------------------------------------------------------------------------------- everything


def defaults(**more):
    return dict({name: option.get("default") for name, option in preflight.argument_spec().items()}, **more)


def test_all_problems_are_reported_at_once_with_hints(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.platform, "python_version", lambda: "3.8.10")
    monkeypatch.setattr(preflight, "check_systemd", lambda *_arguments: None)
    result = preflight.run(
        defaults(
            systems=["plan 9"],
            disk=[{"path": str(tmp_path), "minimum_mb": 10**12, "minimum_inodes": 0}],
        )
    )
    assert [one["check"] for one in result["findings"]] == ["system", "python", "disk"]
    assert all(one["hint"] and "; " in text for one, text in zip(result["findings"], result["problems"]))
    assert result["changed"] is False


def test_monitoring_of_what_is_not_deployed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_systemd", lambda *_arguments: None)
    (tmp_path / "active").symlink_to("slots/blue")
    found = [preflight.run(defaults(release=str(tmp_path / name)))["findings"] for name in ("active", "gone")]
    assert [[one["check"] for one in each] for each in found] == [[], ["release"]]


def test_remains_of_earlier_runs_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_systemd", lambda *_arguments: None)

    def facts():
        found = preflight.run({**defaults(), "root": str(tmp_path), "media": True})["facts"]
        # A host of the database has no directory of uploaded files, and needs none.
        assert "media" not in preflight.run({**defaults(), "root": str(tmp_path)})["facts"]
        return [found[name] for name in ("lockable", "locked", "page", "media")]

    assert facts() == [False] * 4
    # A first deploy that failed leaves a release, and no link to it.
    for name in ("shared/media", "releases/20260101T000000Z-abcdefa"):
        (tmp_path / name).mkdir(parents=True)
    assert facts() == [False] * 4
    (tmp_path / "active").symlink_to("slots/blue")
    for name in ("shared/state/lock.json", "shared/maintenance/on", "shared/media/plan.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert facts() == [True] * 4


def test_data_at_localhost_are_here_forwarded_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "CLUSTERS", str(tmp_path / "*/main/start.conf"))
    monkeypatch.setattr(preflight, "WANTED", str(tmp_path / "%s.service"))
    assert preflight.data_here() == {"database": "", "cache": ""}
    (tmp_path / "17/main").mkdir(parents=True)
    for mode, found in (("# automatic\ndisabled\n", ""), ("# start\nauto\n", "here")):
        (tmp_path / "17/main/start.conf").write_text(mode)
        assert preflight.data_here()["database"] == found
    # systemctl enable makes a link, to a file that the test need not have.
    (tmp_path / "redis-server.service").symlink_to("/nowhere")
    assert preflight.data_here() == {"database": "here", "cache": "here"}
    (tmp_path / "shiftmaster-forward-database.service").symlink_to("/nowhere")
    assert preflight.data_here() == {"database": "forwarded", "cache": "here"}


def test_releases_are_listed_unless_their_state_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_systemd", lambda *_arguments: None)
    revisions = {"20260101T000000Z-abcdefa": "a" * 40, "20260102T000000Z-abcdefb": "b" * 40}
    for name, revision in revisions.items():
        (tmp_path / "releases" / name).mkdir(parents=True)
        manifest = {"version": name[:8], "revision": revision}
        (tmp_path / "releases" / name / "manifest.json").write_text(json.dumps(manifest))
    for name in ("slots/blue", "shared/state"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "slots/blue/release").symlink_to(tmp_path / "releases" / max(revisions))
    (tmp_path / "active").symlink_to("slots/blue")
    state = tmp_path / "shared/state/state.json"
    live = {"status": "live", "since": "", "live_at": "2026-01-01T00:00:00+00:00"}
    state.write_text(json.dumps({"format": 1, "releases": dict.fromkeys(revisions, live), "transition": None}))

    def listed():
        found = preflight.run({**defaults(), "root": str(tmp_path)})["facts"]["releases"]
        return [(one["revision"][:1], one["was_live"], one["current"]) for one in found]

    assert listed() == [("a", True, False), ("b", True, True)]
    state.write_text("{")
    assert listed() == []


def test_a_time_that_systemd_does_not_know(report, tmp_path, monkeypatch):
    """As the host's program responds."""
    program = tmp_path / "systemd-analyze"
    program.write_text('#!/bin/sh\ntest "$1" = calendar && test "$2" != \'each morning\'\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    times = [{"name": "report", "calendar": "each morning"}, {"name": "clear", "calendar": "03:10"}]
    preflight.check_calendars(report, times)
    assert len(problems(report)) == 1 and 'report: systemd does not know the time "each morning"' in problems(report)[0]
    monkeypatch.setenv("PATH", "/nonexistent")
    preflight.check_calendars(report, times)
    assert len(problems(report)) == 1 and "systemd-analyze is not on this host" in report.notes[-1]


def test_without_requirements_there_is_no_problem(monkeypatch):
    monkeypatch.setattr(preflight, "check_systemd", lambda *_arguments: None)
    result = preflight.run(defaults())
    assert result["problems"] == [] and result["notes"] == []


@pytest.mark.parametrize("text", ["", "broken {"])
def test_without_a_move_there_is_no_other_host(text):
    assert preflight.other_host(text) == {}
    assert preflight.other_host('{"peer": "192.0.2.1"}') == {"peer": "192.0.2.1"}
