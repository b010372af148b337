"""tests/mutants.py makes wrong edits of code, and what it leaves out is still there."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys

import mutants
import pytest

SOURCE = b'''"""A word."""
LIMIT_SECONDS = 5


@decorated("word")
def function(first: "annotation", mode=0o640):
    """Another one."""
    points.reach("here")
    run("stop", timeout=9)
    if first is not None and not mode:
        return sorted(first)
    for one in first:
        if (
            one
            == "two words"
        ):
            continue
    return "word" if first[1] <= 30 else None
'''


def edits():
    return {(one.line, one.edit) for one in mutants.mutants("x", SOURCE)}


def test_each_kind_of_wrong_edit_is_made_and_nothing_that_no_test_should_pin():
    assert edits() == {
        (5, '"word" -> "Xword"'), (6, "0o640 -> 0o644"), (9, 'run("stop", timeout=9) -> pass'),
        (9, '"stop" -> "Xstop"'),
        (10, "is not -> is"), (10, "and -> or"), (10, "not  -> nothing"),
        (10, "first is not None and not mode -> True"),
        (10, "first is not None and not mode -> False"), (11, "return sorted(first) -> return None"),
        (11, "sorted -> list"), (15, "== -> !="), (14, 'one\n            == "two words" -> True'),
        (14, 'one\n            == "two words" -> False'), (17, "continue -> pass"),
        (18, 'return "word" if first[1] <= 30 else None -> return None'), (18, "first[1] <= 30 -> True"),
        (18, "first[1] <= 30 -> False"), (18, '"word" -> "Xword"'), (18, "<= -> <"), (18, "1 -> 2"), (18, "30 -> 60"),
    }  # fmt: skip


def test_a_mutant_is_the_source_with_its_edit_alone():
    for one in mutants.mutants("x", SOURCE):
        assert SOURCE[: one.start] + one.old.encode() + SOURCE[one.end :] == SOURCE
        assert mutants.mutated(SOURCE, one) == SOURCE[: one.start] + one.new.encode() + SOURCE[one.end :]


def test_a_sample_is_the_same_for_a_seed_and_leaves_out_what_is_equivalent():
    made, again, other = (mutants.sample("monitoring.kpi", 10, random.Random(seed), set()) for seed in (5, 5, 6))
    assert made == again != other
    assert {one.group for one in made} == {"condition", "constant", "logic", "statement", "word"}
    equivalent = {(one.module, one.text, one.edit) for one in made}
    assert not set(made) & set(mutants.sample("monitoring.kpi", 50, random.Random(5), equivalent))


def test_tests_of_a_line_are_those_that_call_its_function():
    called = {"5": ["a.py::one"]}
    assert mutants.tests_of_line(SOURCE, 9, called) == {"a.py::one"}
    # At the level of the module, in a function that another process calls, or that a test's import calls: all of them.
    assert mutants.tests_of_line(SOURCE, 2, called) is mutants.tests_of_line(SOURCE, 6, called) is None
    assert mutants.tests_of_line(SOURCE, 9, {}) is mutants.tests_of_line(SOURCE, 9, {"5": ["", "a.py::one"]}) is None


def test_a_function_runs_the_code_of_a_mutant(tmp_path):
    """In each form of the function: a decorator, another name, a method's class."""
    source = (
        b"import contextlib\n\n\n@contextlib.contextmanager\ndef one():\n    def inner():\n        return 1 + 2\n\n"
        b"    yield inner()\n\n\nclass Two:\n    def method(self):\n        return 1 < 2\n"
    )
    path = tmp_path / "module.py"
    path.write_bytes(source)
    names = {}
    exec(compile(source, str(path), "exec"), names)
    with names["one"]() as value:
        assert value == 3 and names["Two"]().method() is True
    for line, old, new, function in ((7, "+", "-", (4, "one")), (14, "<", ">", (13, "method"))):
        assert mutants.outermost(source, line) == function
        assert mutants.exchange(path, source.replace(old.encode(), new.encode()), function) == 1
    with names["one"]() as value:
        assert value == -1 and names["Two"]().method() is False
    # No function's, or evaluated where the function is defined.
    assert mutants.outermost(source, 4) is mutants.outermost(source, 5) is mutants.outermost(source, 12) is None


def test_results_of_a_child_are_reported_and_limited(tmp_path):
    def broken():
        raise ValueError

    def endless():
        while True:
            pass

    ends = [mutants.in_child(work, tmp_path / "output", 1) for work in (lambda: 0, lambda: 1, broken, endless)]
    assert [(one.code, one.hung) for one in ends[:3]] == [(0, False), (1, False), (mutants.ERROR, False)]
    assert ends[3].hung and ends[3].code != 0
    mutants.in_child(lambda: os.write(1, b"printed\n") * 0, tmp_path / "output", 1)
    assert (tmp_path / "output").read_text() == "printed\n"


def test_tests_of_a_module_are_found_in_every_directory_of_unit_tests(tmp_path):
    for name, imported in (
        ("test_first", "backup import files"),
        ("backup/test_files", "backup import files"),
        ("diagnosis/network/test_dns", "diagnosis.network import dns"),
    ):
        path = tmp_path / "tests/unit" / (name + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from ansible.module_utils.shiftmaster.%s\n" % imported, encoding="utf-8")
    assert mutants.tests_of("backup.files", tmp_path) == ["tests/unit/backup/test_files.py", "tests/unit/test_first.py"]
    assert mutants.tests_of("diagnosis.network.dns", tmp_path) == ["tests/unit/diagnosis/network/test_dns.py"]


@pytest.mark.parametrize("module", mutants.MODULES)
def test_each_module_has_tests(module):
    assert mutants.path_of(module).exists() and mutants.tests_of(module)


def test_each_equivalent_edit_is_still_one_of_the_code_and_has_a_reason():
    @functools.cache
    def made(module):
        found = mutants.mutants(module, mutants.path_of(module).read_bytes())
        return {(mutant.text, mutant.edit) for mutant in found}

    for one in mutants.equivalents():
        assert (one["line"], one["edit"]) in made(one["module"]), one
        assert len(one["reason"]) > 20


def test_tests_of_a_module_are_those_that_import_it_and_not_one_of_the_same_name(tmp_path):
    (tmp_path / "tests/unit").mkdir(parents=True)
    package = "ansible.module_utils.shiftmaster."
    for name, text in {
        "a_log": "from %sbackup import (\n    host,\n    report as other,\n)" % package,
        "of_report": "def test():\n    import %sbackup.report" % package,
        "b": "from %sbackup.report import name" % package,
        "c": "from %sother import report\nfrom %sbackup import reports\nimport report" % (package, package),
        "d": '"from %sbackup import report"' % package,
    }.items():
        (tmp_path / "tests/unit" / ("test_%s.py" % name)).write_text(text)
    found = mutants.tests_of("backup.report", tmp_path)
    assert found == ["tests/unit/test_%s.py" % name for name in ("of_report", "a_log", "b")]


@pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root is isolated")
def test_a_wrong_edit_that_runs_as_root_can_write_to_temporary_directories_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("MUTANTS_ISOLATED", raising=False)
    started = []
    monkeypatch.setattr(os, "execvp", lambda _file, words: started.append(words))
    mutants.isolate()
    (words,) = started
    files = ["/dev/shiftmaster-test", str(mutants.ROOT / "shiftmaster-test"), str(tmp_path / "written")]
    script = f"touch {' '.join(files)} 2>/dev/null; echo $MUTANTS_ISOLATED; echo > /dev/null && echo end"
    isolated = words[: words.index(sys.executable)]
    done = subprocess.run([*isolated, "sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "end"]
    assert [path for path in files if os.path.exists(path)] == files[2:]
