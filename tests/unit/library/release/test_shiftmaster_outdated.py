"""shiftmaster_outdated, on a directory with the layout of /proc."""

from __future__ import annotations

import os

import pytest
import shiftmaster_outdated as outdated

LIBRARY = "7f00-7f01 r-xp 00000000 fd:00 1 /usr/lib/x86_64-linux-gnu/libssl.so.3"


@pytest.fixture
def proc(tmp_path):
    directory = tmp_path / "proc"
    directory.mkdir()

    def add(pid, cgroup, maps=LIBRARY, program="/usr/sbin/nginx"):
        (directory / str(pid)).mkdir()
        (directory / str(pid) / "cgroup").write_text(cgroup + "\n")
        (directory / str(pid) / "maps").write_text(maps + "\n")
        os.symlink(program, directory / str(pid) / "exe")

    (directory / "self").mkdir()
    add(1, "0::/init.scope")
    return directory, add


def inspect_host(proc, tmp_path):
    return outdated.inspect(str(proc[0]), str(tmp_path / "reboot-required"))


def test_without_replaced_files_nothing_is_outdated(proc, tmp_path):
    proc[1](2, "0::/system.slice/nginx.service", "7f00-7f01 rw-p 0 00:01 9 /dev/zero (deleted)")
    proc[1](3, "0::/system.slice/x.service", "7f00-7f01 r-xp 0 00:01 9 /memfd:jit (deleted)")
    # Read only, as a cache of locales: no code.
    proc[1](4, "0::/system.slice/y.service", "7f00-7f01 r--p 0 00:01 9 /usr/lib/locale/x (deleted)")
    assert inspect_host(proc, tmp_path) == {"changed": False, "units": [], "init": False, "sessions": 0, "reboot": []}


def test_replaced_libraries_and_programs_are_found_with_their_units(proc, tmp_path):
    gone = LIBRARY + " (deleted)"
    proc[1](2, "9:name=systemd:/system.slice/nginx.service\n0::/other", gone)
    proc[1](3, "0::/system.slice/system-shiftmaster\\x2dweb.slice/shiftmaster-web@blue.service", gone)
    proc[1](4, "0::/user.slice/user-0.slice/session-1.scope", gone)
    proc[1](5, "0::/user.slice/user-0.slice/user@0.service/init.scope", gone)
    proc[1](6, "0::/system.slice/ssh.service", program="/usr/sbin/sshd (deleted)")
    (proc[0] / "6" / "cmdline").write_text("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups")
    found = inspect_host(proc, tmp_path)
    assert found["units"] == ["nginx.service", "shiftmaster-web@blue.service", "ssh.service"]
    assert (found["init"], found["sessions"], found["reboot"]) == (False, 2, [])


def test_jobs_under_way_are_not_restarted(proc, tmp_path, monkeypatch):
    """A backup would be killed, and its next run wait for the lock of the patch."""
    gone = LIBRARY + " (deleted)"
    types = {"nginx": "forking", "shiftmaster-backup": "oneshot", "run-r1": "simple"}
    for number, name in enumerate(types):
        proc[1](number + 2, f"0::/system.slice/{name}.service", gone)
    program = tmp_path / "systemctl"
    lines = "".join(
        f"Id={name}.service\\nType={kind}\\nTransient={'yes' if name == 'run-r1' else 'no'}\\n\\n"
        for name, kind in types.items()
    )
    program.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert inspect_host(proc, tmp_path)["units"] == ["nginx.service"]


def test_a_login_in_the_unit_of_ssh_is_a_login(proc, tmp_path):
    proc[1](2, "0::/system.slice/ssh.service", LIBRARY + " (deleted)")
    (proc[0] / "2" / "cmdline").write_text("sshd-session: root@notty")
    found = inspect_host(proc, tmp_path)
    assert (found["units"], found["sessions"]) == ([], 1)


def test_a_reboot_has_its_reasons(proc, tmp_path):
    (tmp_path / "reboot-required").touch()
    assert inspect_host(proc, tmp_path)["reboot"] == [f"{tmp_path}/reboot-required is there"]
    (tmp_path / "reboot-required.pkgs").write_text("linux-image-amd64\nlibc6\nlibc6\n")
    proc[1](2, "0::/system.slice/dbus.service", LIBRARY + " (deleted)")
    found = inspect_host(proc, tmp_path)
    assert found["reboot"] == [
        "libc6 wants it",
        "linux-image-amd64 wants it",
        "dbus.service runs on in its earlier version",
    ]
    assert found["units"] == []


def test_systemd_itself(proc, tmp_path):
    (proc[0] / "1" / "maps").write_text(LIBRARY + " (deleted)\n")
    assert inspect_host(proc, tmp_path)["init"] is True
