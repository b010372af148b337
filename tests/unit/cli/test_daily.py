"""./shiftmaster ssh, manage, shell and db: the words that reach ssh and docker, and what a bad input prints."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from support import ROOT

STUB = """#!{python}
import json, os, sys, time
with open("{out}", "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if os.environ.get("WAIT") and "-i" in sys.argv:
    print("started", flush=True)
    time.sleep(600)
sys.exit(int(os.environ.get("CODE", "0")))
"""
HOSTS = """
all:
  children:
    app:
      hosts:
        app1.example.jp:
          ansible_host: 192.0.2.7
          ansible_user: deploy
          ansible_port: 2222
          ansible_ssh_common_args: -J jump
        box1: {ansible_connection: community.docker.docker, vault_database_password: SECRET}
        odd1: {ansible_connection: winrm}
"""


class Controller:
    def __init__(self, path):
        self.path, self.out = path, path / "calls"
        (path / "bin").mkdir()
        for name in ("ssh", "docker"):
            (path / "bin" / name).write_text(STUB.format(python=sys.executable, out=self.out))
            (path / "bin" / name).chmod(0o755)
        (path / "hosts.yml").write_text(HOSTS)

    def environment(self, **more):
        return {
            "PATH": f"{self.path}/bin:{os.environ['PATH']}", "HOME": str(self.path), "LC_ALL": "C.UTF-8",
            "LOGNAME": "sato", "ANSIBLE_INVENTORY": str(self.path / "hosts.yml"), **more,
        }  # fmt: skip

    def run(self, *words, **more):
        return subprocess.run(
            [ROOT / "shiftmaster", *words], env=self.environment(**more), capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=120, check=False,
        )  # fmt: skip

    def calls(self):
        return [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []


@pytest.fixture
def controller(tmp_path):
    return Controller(tmp_path)


def test_a_verb_reaches_the_host_with_the_options_of_the_inventory(controller):
    done = controller.run("manage", "createsuperuser", "--username", "a b")
    assert done.returncode == 0, done.stderr
    ((program, *words),) = controller.calls()
    line = shlex.split(words.pop())
    assert program == "ssh" and words[-2:] == ["-T", "192.0.2.7"]
    assert {"Port=2222", "-J", "jump"} <= set(words) and any("deploy" in word for word in words)
    at = line.index("--by")
    assert line[at - 1] == "/usr/local/sbin/shiftmasterctl" and line[at + 1].startswith("sato@")
    assert line[at + 2 :] == ["manage", "createsuperuser", "--username", "a b"]


def test_words_of_each_verb_in_a_container(controller):
    cases = {
        ("shell", "--host", "box1", "--read-only"): ["shell", "--read-only"],
        ("db", "--host", "box1", "--write"): ["db", "--write"],
        ("manage", "--host", "box1", "--release", "2.0.0", "check"): ["manage", "--release", "2.0.0", "check"],
        ("ssh", "box1", "ls -l | wc"): ["/bin/sh", "-c", "ls -l | wc"],
        ("ssh", "box1", "ls", "-l"): ["ls", "-l"],
        ("ssh", "box1"): ["/bin/bash", "--login"],
    }
    results = [controller.run(*words) for words in cases]
    assert [done.returncode for done in results] == [0] * len(cases)
    assert not any("SECRET" in done.stdout + done.stderr for done in results)
    calls = controller.calls()
    assert [call[-len(words) :] for call, words in zip(calls, cases.values(), strict=True)] == list(cases.values())
    assert all(call[:3] == ["docker", "exec", "-i"] and "box1" in call for call in calls)


def test_a_bad_input_is_one_sentence_with_the_nearest_match_and_contacts_nothing(controller):
    cases = {
        ("ssh", "app1.example.jq"): "Did you mean app1.example.jp?",
        ("manage", "--host", "bix1", "check"): "Did you mean box1?",
        ("manage", "--host"): "--host needs",
        ("manage",): "showmigrations",
        ("shell", "--readonly"): "Did you mean --read-only?",
        ("db", "--wirte"): "Did you mean --write?",
        ("manag", "check"): "Did you mean manage?",
        ("ssh", "odd1"): "winrm",
    }
    for words, expected in cases.items():
        done = controller.run(*words)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), (words, done.stderr)
        assert expected in done.stderr, (words, done.stderr)
    assert controller.calls() == []


def test_a_host_that_cannot_be_reached_is_named(controller):
    for words, code in ((["db"], "255"), (["db", "--host", "box1"], "1")):
        done = controller.run(*words, CODE=code)
        assert done.returncode == 1 and ("box1" if len(words) > 1 else "app1.example.jp") in done.stderr
        assert "cannot be reached" in done.stderr


def test_the_exit_code_is_that_of_the_command(controller):
    assert [controller.run("manage", "check", CODE=code).returncode for code in ("3", "137")] == [3, 137]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_goes_away_ends_the_process_in_a_container(controller, number):
    run = subprocess.Popen(
        [ROOT / "shiftmaster", "ssh", "box1", "sleep", "600"], env=controller.environment(WAIT="1"), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert run.stdout.readline() == "started\n"
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert (run.returncode, err) == (128 + number, "")
    begun, ended = controller.calls()
    session = next(word for word in begun if word.startswith("SHIFTMASTER_SESSION="))
    assert ended[-1] == session and "box1" in ended
    # The command on the host finds the process by that variable, and no other one.
    marked, other = (
        subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], name: value})
        for name, value in (session.split("=", 1), ("SHIFTMASTER_SESSION", "other"))
    )
    try:
        subprocess.run(ended[-4:], check=True, timeout=60)
        assert marked.wait(10) == -signal.SIGHUP and other.poll() is None
    finally:
        for one in (marked, other):
            one.kill()
            one.wait()
