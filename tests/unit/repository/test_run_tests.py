"""Steps that are run, their record, and the status of a step that has run on another state of the files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_tests
import verification
import yaml

ROOT = Path(__file__).resolve().parents[3]
STEPS = """areas:
  code: &code [code/*]
steps:
  - {name: good, proves: a | b, label: schema-checked, suites: [test, all], expected: 1, covers: [*code],
     run: touch good.ran; echo "1 passed in 0.10s"}
  - {name: late, proves: c, label: executed on a stub, covers: [late/*], run: touch late.ran; test -e fixed}
  - {name: part, proves: d, label: schema-checked, suites: [test], samples: [late], expected: 3, run: touch part.ran}
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with three steps, of which one is run by `make test` alone."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    # Of who runs these tests.
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    for directory in ("scripts", "docs", "code", "late", ".cache/logs"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "scripts/steps.yml").write_text(STEPS)
    (tmp_path / ".gitignore").write_text(".cache\n*.ran\nfixed\n")
    git("init", "--quiet", "--initial-branch", "main")
    git("config", "user.name", "test")
    git("config", "user.email", "test@example.jp")
    for module, name, value in (
        (run_tests, "ROOT", tmp_path),
        (run_tests, "LOGS", tmp_path / ".cache/logs"),
        (run_tests, "FAILURES", tmp_path / ".cache/failures"),
        (verification, "ROOT", tmp_path),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(run_tests, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(run_tests, "remove_hosts", lambda _scenario: None)
    monkeypatch.setattr(run_tests, "keep_evidence", lambda _step: None)

    def commit(*names):
        for name in names:
            with (tmp_path / name).open("a") as file:
                file.write("x")
        git("add", ".")
        git("commit", "--quiet", "--allow-empty", "--message", "x")
        return git("rev-parse", "HEAD")[:12]

    commit("code/one", "late/one")

    def run(*words):
        """Returns (exit code, the steps that ran)."""
        for path in tmp_path.glob("*.ran"):
            path.unlink()
        verification.changed_since.cache_clear()
        monkeypatch.setattr(sys, "argv", ["run_tests.py", *words])
        code = run_tests.main()
        return code, [name for name in ("good", "late", "part") if (tmp_path / f"{name}.ran").exists()]

    return tmp_path, commit, run


def rows(directory) -> dict:
    """{step: cells} of the page."""
    lines = (directory / "docs/verification.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.replace("\\|", "/").split("|")[1:-1]] for line in lines if "|" in line]
    return {one[0]: one[1:] for one in cells[2:]}


def test_a_pass_is_recorded_with_its_commit_and_not_repeated_on_the_same_state(clone):
    directory, commit, run = clone
    first = commit()
    assert run("rest") == (1, ["good", "late"])
    record = json.loads((directory / "docs/verification.json").read_text())
    assert (record["good"]["commit"], record["good"]["tests"]) == (first, "1 passed in 0.10s")
    assert record["late"] == {"failed": first}
    assert rows(directory)["good"][2:6:3] == [f"`{first}`", ""] and first in rows(directory)["late"][-1]
    assert set(rows(directory)) == {"good", "late"}
    # The record is data of the repository, which another machine has, too.
    commit()
    (directory / "fixed").touch()
    assert run("rest") == (0, ["late"])
    assert run("rest") == (0, [])
    assert f"failed on `{first}`" in rows(directory)["late"][-1]


def test_a_change_of_covered_files_runs_the_step_again(clone):
    directory, commit, run = clone
    (directory / "fixed").touch()
    assert run("all") == (0, ["good", "late"])
    # The record and its page are no change, not for a step that covers everything.
    assert not verification.has_changed(run_tests.Step("unit", covers=["*"]), "HEAD")
    commit("README.md")
    assert run("rest") == (0, [])
    last = commit("late/new")
    run("page")
    assert (rows(directory)["good"][4], rows(directory)["late"][4]) == ("no", "yes")
    assert run("rest") == (0, ["late"])
    assert rows(directory)["late"][2:] == [f"`{last}`", rows(directory)["late"][3], "no", ""]


def test_uncommitted_changes_are_run_and_not_recorded(clone):
    directory, commit, run = clone
    (directory / "code/one").write_text("other")
    assert run("good", "part") == (0, ["good", "part"])
    assert not (directory / "docs/verification.json").exists()
    # Those that a step does not cover are none of its business; what is new counts, too.
    commit()
    (directory / "late/new").touch()
    (directory / "fixed").touch()
    assert run("good", "late")[0] == 0
    assert list(rows(directory)["late"][2:5]) == ["never", "", ""] and rows(directory)["good"][2] != "never"


def test_a_step_under_which_files_changed_is_not_recorded(clone, capsys):
    directory, commit, run = clone
    runs = {
        "other": "echo >>late/one",
        "undone": "echo >>code/one; git checkout --quiet code/one",
        "committed": "git commit --quiet --allow-empty --message x",
        "edited": "echo >>code/one",
    }
    for name, command in runs.items():
        one = {"name": name, "run": f"{command}; true", "covers": ["code/*"]}
        (directory / "scripts/steps.yml").write_text(yaml.safe_dump({"steps": [one]}))
        commit()
        assert run(name)[0] == 0
        noted = name in json.loads((directory / "docs/verification.json").read_text())
        assert noted == (name == "other"), name
        assert ("changed while it ran" in capsys.readouterr().out) != noted


def test_what_says_little_is_not_recorded(clone, capsys):
    """Tests that are skipped are shown; a step without any other, and one on an outdated image, are not recorded."""
    directory, commit, run = clone
    outputs = {
        "some": "39 passed, 48 skipped in 3.23s (0:00:03)",
        "none": "48 skipped in 3.23s",
        "kept": "==> Image x is outdated and kept as it is (DEPLOYED_IMAGE=keep).",
    }
    steps = [{"name": name, "run": f"echo '{line}'; echo '1 test'"} for name, line in outputs.items()]
    (directory / "scripts/steps.yml").write_text(yaml.safe_dump({"steps": steps}))
    commit()
    assert run("all")[0] == 0
    assert rows(directory)["some"][2] != "never" and rows(directory)["some"][-1] == "39 passed, 48 skipped"
    assert rows(directory)["none"][2] == rows(directory)["kept"][2] == "never"
    output = capsys.readouterr().out
    assert "no test passed" in output and "image was outdated" in output
    # A scenario without tests, too.
    assert verification.note({}, run_tests.Step("x"), True, verification.present()) == "no test passed"


def test_a_record_that_cannot_be_read_ends_a_run_before_its_steps(clone):
    directory, commit, run = clone
    for text in ('{"good": {\n<<<<<<< HEAD\n', "[]", '{"good": 1}', "\udcff"):
        (directory / "docs/verification.json").write_text(text, errors="surrogateescape")
        for words in (["all"], ["good"], ["page"]):
            with pytest.raises(SystemExit, match="verification.json cannot be read"):
                run(*words)
    assert not (directory / "good.ran").exists()


def test_a_record_that_cannot_be_read_or_written_ends_no_step(clone, capsys):
    directory, commit, run = clone
    (directory / "fixed").touch()
    assert run("all")[0] == 0
    record, page = (directory / f"docs/verification.{end}" for end in ("json", "md"))
    before = record.read_text(), page.read_text()
    # A full disk: what was there stays.
    (directory / "docs/verification.new").symlink_to("/dev/full")
    assert run("good") == (0, ["good"])
    assert "good: not noted" in capsys.readouterr().out
    assert (record.read_text(), page.read_text()) == before and not list(directory.glob("docs/*.new"))
    steps = [{"name": "good", "run": "echo '{' >docs/verification.json"}, {"name": "late", "run": "sleep 1; >late.ran"}]
    (directory / "scripts/steps.yml").write_text(yaml.safe_dump({"steps": steps}))
    commit()
    assert run("good", "late") == (0, ["late"])
    output = capsys.readouterr().out
    assert "good: not noted" in output and "late: not noted" in output and record.read_text() == "{\n"


def test_a_failure_keeps_the_last_pass_and_counts_as_not_verified(clone):
    directory, commit, run = clone
    (directory / "fixed").touch()
    passed = commit()
    assert run("all")[0] == 0
    (directory / "fixed").unlink()
    assert run("late")[0] == 1
    assert rows(directory)["late"][2] == f"`{passed}`" and "❌ failed" in rows(directory)["late"][-1]
    assert run("rest") == (1, ["late"])


def test_a_choice_of_tests_is_no_complete_run(clone, monkeypatch):
    record, step = {}, run_tests.Step("late", covers=["late/*"], closing=["1 passed, 87 deselected in 66.66s"])
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k one")
    assert "PYTEST_ADDOPTS" in verification.note(record, step, True, verification.present()) and record == {}
    assert verification.note(record, step, False, verification.present()) == "" and "failed" in record["late"]


def test_a_retry_is_named(clone):
    directory, commit, _run = clone
    record = {}
    step = run_tests.Step("late", covers=["late/*"], closing=["70 passed, 1 rerun in 2195.96s"])
    verification.note(record, step, True, verification.present())
    assert record["late"]["retry"] == "1 rerun"


def test_affected_runs_what_covers_a_change_since_a_commit(clone):
    directory, commit, run = clone
    (directory / "fixed").touch()
    first = commit()
    commit("late/one")
    # On main, without an upstream: the last commit.
    assert run("affected") == (0, ["late"])
    # A step that passed on this state is not run again.
    assert run("affected") == (0, [])
    (directory / "code/one").write_text("not committed")
    assert run("affected", first) == (0, ["good"])
    # On a branch: since it began.
    verification.git("switch", "--quiet", "--create", "topic")
    commit()
    commit("late/one")
    commit("README.md")
    assert run("affected") == (0, ["good", "late"])
    for since in ("nowhere", "main..topic", "HEAD:late", "--output=written"):
        with pytest.raises(SystemExit, match="no commit"):
            run("affected", since)
    assert not (directory / "written").exists()


def test_a_wrong_commit_is_reported_before_images_are_built():
    lines = subprocess.run(["make", "--dry-run", "test-affected"], cwd=ROOT, capture_output=True, text=True).stdout
    assert 0 < lines.index("rev-parse") < lines.index("scripts/images")
    for since, code in (("HEAD", 0), ("", 0), ("HEAD:Makefile", 2), ("--all", 2)):
        done = subprocess.run(["make", "since", f"SINCE={since}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code and ("There is no commit" in done.stderr) == bool(code), since


def test_a_name_that_is_not_utf_8_is_a_change_like_others(clone):
    directory, commit, run = clone
    (directory / "fixed").touch()
    commit()
    Path(os.fsdecode(os.fsencode(directory) + b"/late/\xff")).touch()
    assert run("affected", "HEAD") == (0, ["late"])
    assert "late" not in verification.load()


def test_a_shallow_clone_keeps_the_page(clone, monkeypatch):
    directory, commit, run = clone
    assert run("good")[0] == 0
    commit()
    page = rows(directory)
    subprocess.run(
        ["git", "clone", "--quiet", "--depth", "1", directory.as_uri(), directory / "late/shallow"], check=True
    )
    monkeypatch.setattr(verification, "ROOT", directory / "late/shallow")
    with pytest.raises(SystemExit, match="shallow"):
        run("page")
    assert rows(directory / "late/shallow") == page


def test_a_second_run_in_a_clone_does_not_begin(clone):
    directory, commit, run = clone
    with (directory / ".cache/run_tests.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="already"):
            run("good")
        assert not (directory / "good.ran").exists()
        assert run("page")[0] == 0
    assert run("good") == (0, ["good"])


def test_make_test_reports_what_it_does_not_cover_and_keeps_the_record(clone, capsys):
    directory, commit, run = clone
    assert run("test") == (0, ["good", "part"])
    assert not (directory / "docs/verification.json").exists()
    assert ": late\n" in capsys.readouterr().out.partition("Not covered")[2]


def test_a_step_that_runs_in_part_is_not_called_covered():
    made = [
        run_tests.Step("unit", suites=["test", "all"]),
        run_tests.Step("hostile", suites=["test", "all"], samples=["hostile"]),
        run_tests.Step("sample", suites=["test"], samples=["kills"]),
        run_tests.Step("kills"),
        run_tests.Step("logging"),
    ]
    lines = run_tests.not_covered(made, made[:3]).splitlines()
    assert [line.rpartition(": ")[2] for line in lines[2:]] == ["hostile, kills", "logging"]


def test_a_record_of_a_commit_that_is_not_here_verifies_nothing(clone):
    directory, commit, run = clone
    (directory / "docs/verification.json").write_text(json.dumps({"good": {"commit": "f" * 12, "date": "2026-11-28"}}))
    run("page")
    assert rows(directory)["good"][4] == "unknown"
    assert run("rest")[1] == ["good", "late"]


def step(name, expected, **more):
    return run_tests.Step(name, run="true", expected=expected, **more)


@pytest.mark.parametrize(
    ("steps", "running", "minutes"),
    [
        ([step("a", 60), step("b", 60), step("c", 120)], {}, 3),
        ([step("a", 60), step("b", 60, needs="a"), step("c", 60, needs="b")], {}, 3),
        ([step("a", 120, alone=True), step("b", 60), step("c", 60)], {}, 3),
        ([step("a", 120), step("b", 60, alone=True)], {}, 3),
        ([step("a", 120, result=run_tests.RUNNING), step("b", 60)], {"a": 60}, 1),
        # Twice as slow as recorded.
        ([step("a", 300, result=run_tests.PASSED, seconds=600), step("b", 60)], {}, 2),
        ([step("a", 300, result=run_tests.FAILED), step("b", 60, note="needs a")], {}, 0),
    ],
    ids=["two at a time", "one after the other", "alone", "alone after another", "running", "slow", "nothing"],
)
def test_the_time_left(steps, running, minutes):
    seconds, unknown = run_tests.time_left(steps, running)
    assert (seconds, unknown) == (minutes * 60, [])


def test_the_longest_steps_begin_first_after_those_that_others_wait_for():
    steps = [
        run_tests.Step("default", expected=300, commit=True),
        run_tests.Step("lint", expected=100),
        run_tests.Step("exclusive", expected=500, alone=True),
        run_tests.Step("short", expected=200),
        run_tests.Step("unknown", minutes=60),
        run_tests.Step("long", expected=4000),
    ]
    names = [step.name for step in run_tests.longest_first(steps)]
    assert names == ["default", "lint", "exclusive", "long", "unknown", "short"]


def test_a_step_without_a_recorded_duration_is_named():
    assert run_tests.time_left([step("a", None), step("b", 60)], {}) == (60, ["a"])


def test_failed_tests_are_reported_at_the_end(clone, capsys):
    step = run_tests.Step(
        "bad", run="echo 'FAILED tests/test_it.py::test_one - assert 1 == 2'; echo 'ERROR    Executed'; false"
    )
    assert not run_tests.Runner([step, run_tests.Step("good", run="echo 'ERROR x.py'")]).run()
    end = capsys.readouterr().out.partition("\nstep ")[2]
    assert "bad: FAILED tests/test_it.py::test_one - assert 1 == 2" in end and "ERROR" not in end


# -- scripts/steps.yml of this repository -----------------------------------------------------------------------------

# Files that steps other than lint and unit tests cover. (Scripts that only write files: unit tests.)
PRODUCT = (
    "deploy.yml", "rollback.yml", "ansible.cfg", "checklists/", "diagnosis/", "examples/", "group_vars/", "inventory/",
    "library/", "module_utils/", "molecule/", "monitoring/", "playbooks/", "plugins/", "roles/", "scripts/test_",
    "scripts/with_services", "scripts/images", "scripts/alert", "scripts/dashboards.py", "shiftmaster_monitoring/",
    "docs/runbooks/",
)  # fmt: skip


@pytest.fixture(scope="module")
def steps():
    return run_tests.load_steps()


@pytest.fixture(scope="module")
def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_symlink() | (ROOT / name).exists()]


def test_every_file_of_the_product_has_a_step_that_covers_it(steps, tracked):
    assert [name for name in tracked if not any(verification.covered(one, [name]) for one in steps)] == []
    dynamic = [one for one in steps if one.covers != ["*"]]
    product = [name for name in tracked if name.startswith(PRODUCT) and name != "molecule/README.md"]
    assert [name for name in product if not any(verification.covered(one, [name]) for one in dynamic)] == []


def test_every_pattern_matches_something(steps, tracked):
    patterns = {pattern for one in steps for pattern in one.covers}
    nothing = run_tests.Step("")
    assert [
        pattern for pattern in sorted(patterns)
        if not verification.covered(run_tests.replace(nothing, covers=[pattern]), tracked)
    ] == []  # fmt: skip


def test_every_step_is_complete(steps):
    names = [one.name for one in steps]
    assert len(names) == len(set(names))
    scenarios = {path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")}
    assert {one.name for one in steps if one.is_scenario} == scenarios
    for number, one in enumerate(steps):
        assert one.proves and one.label in ("executed on the real package", "executed on a stub", "schema-checked")
        assert one.suites and set(one.suites) <= {"test", "all", "bench"}, one.name
        assert not one.needs or one.needs in names[:number], one.name
        assert set(one.samples) <= set(names), one.name
        # `make test` shows how long it will take.
        assert ("test" in one.suites) == (one.expected is not None), one.name


def test_tests_of_a_sample_are_marked(steps):
    """Each scenario that a sample names has tests that are marked, and each that has some is named."""
    marked = {
        path.parts[-3]
        for path in (ROOT / "molecule").glob("*/tests/test_*.py")
        if "pytest.mark.sample" in path.read_text()
    }
    assert {name for one in steps for name in one.samples} == marked


def test_the_nightly_run_has_a_job_for_each_step(steps):
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["all"]["strategy"]["matrix"]["step"] == [one.name for one in steps if "all" in one.suites]


# -- how steps run together -------------------------------------------------------------------------------------------


def test_a_scenario_begins_with_the_host_that_it_wants(clone):
    for name, image in (("on-a-release", "deployed"), ("empty", "base")):
        inventory = clone[0] / "molecule" / name / "inventory"
        inventory.mkdir(parents=True)
        (inventory.parent / "molecule.yml").touch()
        (inventory / "hosts.yml").write_text(f"container_image: shiftmaster-ops/{image}:trixie\n")
    found = run_tests.select([], ["on-a-release", "empty"])
    assert [(step.needs, step.minutes) for step in found] == [("default", 150), ("", 150)]


@pytest.mark.parametrize(
    ("idle", "alone", "most", "seconds"),
    [(1.1, False, 4, 2.5), (0.9, False, 2, 0.7), (1.1, True, 1, 0.3)],
    ids=["a processor idle", "processors busy", "alone"],
)
def test_further_ones_run_where_the_others_leave_room(clone, monkeypatch, idle, alone, most, seconds):
    monkeypatch.setattr(run_tests, "STABLE_SECONDS", 0.2)
    monkeypatch.setattr(run_tests, "idle_seconds", lambda: idle * time.monotonic())
    steps = [run_tests.Step(name, run=f"sleep {seconds}", alone=alone) for name in "abcde"]
    runner, running = run_tests.Runner(steps), []
    start = runner.start
    monkeypatch.setattr(runner, "start", lambda step: (start(step), running.append(len(runner.running))))
    assert runner.run() and max(running) == most


def test_no_step_begins_that_an_exclusive_step_would_wait_for(clone):
    steps = [
        run_tests.Step("first", run="sleep 1; touch first.ran"),
        run_tests.Step(
            "alone", needs="first", alone=True, run="test ! -e long.ran; result=$?; touch alone.ran; exit $result"
        ),
        run_tests.Step("long", run="test -e alone.ran && touch long.ran"),
    ]
    assert run_tests.Runner(steps).run()


def alive(pid_file: Path) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", pid_file.read_text().strip()], capture_output=True, text=True
    ).stdout
    return bool(state) and not state.startswith("Z")


def test_nothing_of_an_interrupted_step_is_left(clone):
    """Neither what ignores the signals, nor what is in a process group of its own."""
    directory = clone[0]
    deaf = "bash -c 'trap \"\" INT TERM HUP; echo $$ >$0; sleep 100; sleep 100'"
    step = run_tests.Step(
        "one", run=f"trap 'exit 1' INT; {deaf} same.ran & set -m; {deaf} other.ran & wait", minutes=1 / 60
    )
    pids = [directory / "same.ran", directory / "other.ran"]
    try:
        assert not run_tests.Runner([step]).run() and step.note.startswith("ended after")
        assert not any(alive(pid) for pid in pids)
    finally:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_the_end_of_the_terminal_interrupts_a_run(clone, ignored):
    received = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else lambda *_: received.append(1))
    try:
        step = run_tests.Step("one", run=f"kill -HUP {os.getpid()}; sleep 2")
        assert run_tests.Runner([step]).run() == ignored
    finally:
        signal.signal(signal.SIGHUP, before)
    assert step.note == ("" if ignored else "interrupted") and not received


# -- scripts/images ---------------------------------------------------------------------------------------------------

# Docker with one host, and of one image its label; molecule takes a while to deploy.
DOCKER = """#!/bin/bash
case "$1 $2" in
  "image inspect") cat image 2>/dev/null ;;
  "ps --filter") echo host ;;
  "commit --change") sed 's/.*recipe=\\(\\S*\\).*/\\1/' <<<"$3" >image ;;
esac
"""


@pytest.fixture
def images(clone):
    """Returns a function that starts scripts/images deployed in a clone without Docker."""
    directory, commit, _run = clone
    (directory / "molecule/shared").mkdir(parents=True)
    (directory / "molecule/shared/Dockerfile").touch()
    (directory / "bin").mkdir()
    shutil.copy(ROOT / "scripts/images", directory / "scripts")
    for name, text in (("docker", DOCKER), ("molecule", "#!/bin/bash\nsleep 0.5; echo $1 >>molecule.ran\n")):
        (directory / "bin" / name).write_text(text)
        (directory / "bin" / name).chmod(0o755)
    commit()

    def start(**environment):
        return subprocess.Popen(
            ["scripts/images", "deployed"], cwd=directory, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PATH": f"{directory}/bin:{os.environ['PATH']}", **environment},
        )  # fmt: skip

    return directory, start


def test_an_image_that_two_steps_want_is_built_once(images):
    directory, start = images
    outputs = [one.communicate()[0] for one in [start(), start()]]
    assert (directory / "molecule.ran").read_text().split().count("converge") == 1
    assert sorted("is there" in output for output in outputs) == [False, True]


def test_an_outdated_image_that_is_kept_is_named(images):
    directory, start = images
    (directory / "image").write_text("an earlier one")
    output = start(DEPLOYED_IMAGE="keep").communicate()[0]
    assert run_tests.CLOSING_LINE.match(output) and not (directory / "molecule.ran").exists()
    start().communicate()
    output = start(DEPLOYED_IMAGE="keep").communicate()[0]
    assert "is there" in output and not run_tests.CLOSING_LINE.match(output)
