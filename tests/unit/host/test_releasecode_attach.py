"""A command of a release's code on a person's terminal: it ends with the terminal, and its environment is not shown."""

from __future__ import annotations

import getpass
import os
import pty
import subprocess
import sys

import pytest
from ansible.module_utils.shiftmaster.release import releasecode
from support import ROOT

START = """
import os, sys
if os.isatty(0):
    os.login_tty(0)
from shiftmaster.host import units
from shiftmaster.release.releasecode import ReleaseCode
units.SYSTEMD_RUN = (sys.argv[1],)
sys.exit(ReleaseCode(sys.argv[2], sys.argv[3]).attach(["migrate"], {"TOKEN": "SECRET"}))
"""


@pytest.fixture
def release(tmp_path):
    """A release whose Python ignores the hang-up, as a unit does that systemd-run leaves behind."""
    for directory in ("release/venv/bin", "release/source", "bin"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "release/env").write_text("A=1\n")
    programs = {
        "release/venv/bin/python": "[ -z \"$MODE\" ] || exit $MODE\ntrap '' HUP\necho started\nsleep 60",
        "bin/systemctl": f'echo "$@" >> {tmp_path}/systemctl',
        # systemd reads $$ as $.
        "bin/systemd-run": f"""echo "$@" > {tmp_path}/words; export MODE=$(cat {tmp_path}/mode 2>/dev/null)
exec {sys.executable} -c 'import os, sys; words = [one.replace("$$", "$") for one in sys.argv]; \\
words = words[words.index("--") + 1:]; os.execv(words[0], words)' "$@\"""",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + text + "\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def started(release, **streams):
    command = [sys.executable, "-c", START, release / "bin/systemd-run", release / "release", getpass.getuser()]
    environment = {
        **os.environ,
        "PATH": f"{release}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "module_utils"),
    }
    return subprocess.Popen(command, env=environment, **streams)


@pytest.mark.parametrize(("mode", "code"), [("0", 0), ("3", 3), ("255", 137)])
def test_the_code_is_that_of_the_command_and_255_is_left_to_ssh(release, mode, code):
    (release / "mode").write_text(mode)
    run = started(release, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (run.communicate(timeout=60)[0], run.returncode) == (b"", code)
    words = (release / "words").read_text()
    assert "--pipe" in words and "--property=User=" in words and "SECRET" not in words


def test_a_reader_of_the_output_that_goes_away_ends_the_unit(release):
    run = started(release, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"started\n"
    run.stdout.close()
    assert run.wait(30) == 129
    assert f"kill --signal=KILL shiftmaster-code-{run.pid}-1.service" in (release / "systemctl").read_text()


def test_a_terminal_that_goes_away_ends_the_unit(release):
    terminal, end = pty.openpty()
    run = started(release, stdin=end, stdout=end, stderr=end)
    os.close(end)
    output = b""
    while b"started" not in output:
        output += os.read(terminal, 1000)
    os.close(terminal)
    assert run.wait(30) == 129
    assert f"kill --signal=KILL shiftmaster-code-{run.pid}-1.service" in (release / "systemctl").read_text()
    assert "--pty" in (release / "words").read_text()


def test_read_only_reaches_each_connection_of_django(monkeypatch, tmp_path):
    """Also where the application's settings have options of their own, with which PGOPTIONS has no effect."""
    statements, receivers = [], []

    class Cursor:
        execute = statements.append

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    signals = type(sys)("django.db.backends.signals")
    signals.connection_created = type("Signal", (), {"connect": lambda _self, one, weak: receivers.append(one)})()
    for name in ("django", "django.db", "django.db.backends"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    monkeypatch.setitem(sys.modules, signals.__name__, signals)
    exec(releasecode._READ_ONLY, {})
    cursor = Cursor()
    cursor.execute = statements.append
    receivers[0](connection=type("Connection", (), {"cursor": lambda _self: cursor})(), sender=None)
    assert statements == ["SET default_transaction_read_only = on"]
