"""A whole run may be ended and gone on with, on another machine too: on the same code, and nothing passes unrun."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import run_tests
import verification

STEPS = """steps:
  - {name: good, proves: a | b, label: schema-checked, run: touch good.ran}
  - {name: late, proves: c, label: executed on a stand-in, run: touch late.ran; echo "3 passed in 0.10s"}
  - {name: bad, proves: d, label: executed on the real package, run: touch bad.ran; test -e mended}
"""


def entry(name, result, **more):
    kept = {"name": name, "proves": "a | b", "label": "schema-checked", "note": "", "seconds": 3.0, "closing": []}
    return {**kept, "result": result, **more}


def whole_run(commit, *entries):
    return {"commit": commit, "dirty": False, "started": "2026-11-26 08:00 UTC", "steps": list(entries)}


def test_what_the_page_says_is_read_back():
    results = whole_run(
        "0123456789ab",
        entry("one", "passed", closing=["3 passed in 0.10s", "Ran 2 tests in 3.1s"]),
        entry("two", "failed", note="ended after 20 minutes"),
        entry("three", "not run", seconds=0.0),
    )
    assert verification.read(verification.render(results)) == results
    other = dict(results, changed=["scripts/new", "docs/a page.md"], last="ba9876543210")
    assert verification.read(verification.render(other)) == other
    dirty = dict(results, dirty=True)
    assert verification.read(verification.render(dirty)) == dirty


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with three steps, whose whole run was ended on another machine."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    for folder in ("scripts", "docs", ".cache/logs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "scripts/steps.yml").write_text(STEPS)
    (tmp_path / ".gitignore").write_text(".cache\n*.ran\nmended\n")
    git("init", "--quiet")
    git("config", "user.name", "test")
    git("config", "user.email", "test@example.jp")
    git("add", ".")
    git("commit", "--quiet", "--message", "steps")
    commit = git("rev-parse", "HEAD")
    page = tmp_path / "docs/verification.md"
    page.write_text(
        verification.render(
            whole_run(commit, entry("good", "passed"), entry("late", "not run"), entry("bad", "failed"))
        )
    )
    git("add", ".")
    git("commit", "--quiet", "--message", "what was found")
    results = tmp_path / ".cache/results.json"
    for module, name, value in (
        (run_tests, "ROOT", tmp_path),
        (run_tests, "LOGS", tmp_path / ".cache/logs"),
        (run_tests, "FAILURES", tmp_path / ".cache/failures"),
        (run_tests, "RESULTS", results),
        (verification, "PAGE", page),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(run_tests, "remove_hosts", lambda _scenario: None)
    monkeypatch.setattr(run_tests, "keep_evidence", lambda _step: None)
    monkeypatch.setattr(sys, "argv", ["run_tests.py", "rest"])
    return tmp_path, git


def test_only_what_did_not_pass_is_run(clone, capsys):
    folder, _ = clone
    assert run_tests.main() == 1
    assert [(folder / f"{name}.ran").exists() for name in ("good", "late", "bad")] == [False, True, True]
    kept = {one["name"]: one for one in json.loads((folder / ".cache/results.json").read_text())["steps"]}
    assert [kept[name]["result"] for name in ("good", "late", "bad")] == ["passed", "passed", "failed"]
    assert kept["late"]["closing"] == ["3 passed in 0.10s"] and "before: not run" in kept["late"]["note"]
    assert "before: failed" in kept["bad"]["note"]
    # Once more: now from the file of this machine.
    for path in folder.glob("*.ran"):
        path.unlink()
    (folder / "mended").touch()
    assert run_tests.main() == 0
    assert [(folder / f"{name}.ran").exists() for name in ("good", "late", "bad")] == [False, False, True]
    assert run_tests.main() == 0


def test_other_code_is_refused(clone):
    folder, git = clone
    (folder / "scripts/new").write_text("x")
    git("add", ".")
    git("commit", "--quiet", "--message", "another line")
    with pytest.raises(SystemExit, match="other code"):
        run_tests.main()
    assert not list(folder.glob("*.ran"))


def test_on_other_code_what_it_touches_is_named_and_run_again(clone, monkeypatch):
    folder, git = clone
    (folder / "scripts/new").write_text("x")
    git("add", ".")
    git("commit", "--quiet", "--message", "another line")
    monkeypatch.setattr(sys, "argv", ["run_tests.py", "rest", "gone"])
    with pytest.raises(SystemExit, match="had no gone"):
        run_tests.main()
    monkeypatch.setattr(run_tests, "ALWAYS_AGAIN", ("good",))
    monkeypatch.setattr(sys, "argv", ["run_tests.py", "rest", "late"])
    (folder / "mended").touch()
    assert run_tests.main() == 0
    kept = json.loads((folder / ".cache/results.json").read_text())
    assert kept["changed"] == ["scripts/new"] and (folder / "good.ran").exists()
    assert "before: passed" in kept["steps"][0]["note"]
    # The page says which.
    assert "`scripts/new`" in verification.render(kept)
    # It is not asked again on the same code.
    monkeypatch.setattr(sys, "argv", ["run_tests.py", "rest"])
    assert run_tests.main() == 0


def test_which_tests_failed_is_said_at_the_end(clone, capsys):
    step = run_tests.Step(
        "bad", run="echo 'FAILED tests/test_it.py::test_one - assert 1 == 2'; echo 'ERROR    Executed'; false"
    )
    assert not run_tests.Runner([step, run_tests.Step("good", run="echo 'ERROR x.py'")]).run()
    end = capsys.readouterr().out.partition("\nstep ")[2]
    assert "bad: FAILED tests/test_it.py::test_one - assert 1 == 2" in end and "ERROR" not in end


def test_the_tests_of_what_failed_may_be_mended_and_no_others(clone):
    folder, git = clone
    for name, refused in (("bad", False), ("good", True)):
        tests = folder / "molecule" / name / "tests"
        tests.mkdir(parents=True)
        (tests / "test_it.py").write_text("mended")
        git("add", ".")
        git("commit", "--quiet", "--message", f"a test of {name}")
        if refused:
            with pytest.raises(SystemExit, match="other code"):
                run_tests.main()
        else:
            assert run_tests.main() == 1 and (folder / "bad.ran").exists()


def test_changes_that_are_not_committed_are_refused(clone):
    folder, _ = clone
    (folder / "scripts/new").write_text("x")
    with pytest.raises(SystemExit, match="other code"):
        run_tests.main()


def test_a_page_of_a_commit_that_is_not_here_is_refused(clone):
    folder, git = clone
    (folder / "docs/verification.md").write_text(verification.render(whole_run("f" * 40, entry("late", "not run"))))
    git("commit", "--quiet", "--all", "--message", "page")
    with pytest.raises(SystemExit, match="other code"):
        run_tests.main()


def test_a_scenario_that_is_not_listed_begins_with_the_host_that_it_wants():
    found = {name: run_tests.unlisted(name) for name in ("monitoring", "base")}
    assert found["monitoring"].needs == "default" and found["base"].needs == ""
    assert found["monitoring"].minutes == 150


@pytest.mark.parametrize(
    ("load", "alone", "most"),
    [(0.5, False, 3), (2.5, False, 2), (0.5, True, 1)],
    ids=["processors idle", "processors busy", "alone"],
)
def test_a_third_one_runs_where_two_leave_room(clone, monkeypatch, load, alone, most):
    monkeypatch.setattr(run_tests, "SETTLED_SECONDS", 0.2)
    monkeypatch.setattr(run_tests.os, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.setattr(run_tests.os, "cpu_count", lambda: 2)
    steps = [run_tests.Step(name, run="sleep 1.5", alone=alone) for name in "abcd"]
    runner, running = run_tests.Runner(steps), []
    start = runner.start
    monkeypatch.setattr(runner, "start", lambda step: (start(step), running.append(len(runner.running))))
    assert runner.run() and max(running) == most


def test_nothing_is_begun_that_a_step_which_has_to_be_alone_would_wait_for(clone):
    folder, _ = clone
    steps = [
        run_tests.Step("first", run="sleep 1; touch first.ran"),
        run_tests.Step(
            "alone", needs="first", alone=True, run="test ! -e long.ran; result=$?; touch alone.ran; exit $result"
        ),
        run_tests.Step("long", run="test -e alone.ran && touch long.ran"),
    ]
    assert run_tests.Runner(steps).run()
