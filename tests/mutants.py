#!/usr/bin/env python3
"""Measure whether the unit tests find wrong edits: random mutants of the modules whose faults cost most.

    make bench, or:  python tests/mutants.py [--seed N] [--each N] [MODULE ...]

A mutant is a module with one wrong edit: of a comparison, condition, constant, word, statement or returned value.
For each, the unit tests that call its function run in a temporary copy of the repository; a mutant that they all pass
has survived. It is printed with its line and edit. The exit code is 1 where less than LEAST of the mutants were found.
The tests of a module are collected once: a child of that process, in which the function has the mutant's code, runs
them. What is not found so (also what is no function's, or runs in another process) is written to its file, and tried
once more.

Not mutated, since no unit test should pin it: documentation, sentences for users, timeouts and other constants of
seconds, and fault-injection points. Edits that change no behaviour are in mutants_equivalent.yml with the reason.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import gc
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import CodeType, FunctionType
from typing import Iterator, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.yml")
LEAST = 0.9
ERROR = 70
# Without diagnosis.application and .database, whose queries tests/postgres and scenario diagnosis run.
MODULES = (
    "backup.files backup.manifest backup.prune backup.restore backup.retention backup.room backup.wal "
    "diagnosis.disk diagnosis.host diagnosis.logs "
    "health.checks host.bounded host.configuration host.json_api host.safe_files host.symptoms monitoring.kpi "
    "nginx_tree release.cutover release.gate release.lock release.migrations release.releases release.revert "
    "release.slots release.state release.watch release.workers service_config shiftmaster_release managed_files"
).split()
COMPARISONS = {
    "==": "!=", "!=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "is": "is not", "is not": "is", "in": "not in",
    "not in": "in",
}  # fmt: skip
ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
# A word of a command, a key, a mode or a name; what holds a space is a sentence or a query.
WORD = re.compile(r"[^\s]*[A-Za-z][^\s]*")


class Mutant(NamedTuple):
    """One edit; start and end are offsets of bytes."""

    module: str
    group: str
    line: int
    text: str  # The line's source, stripped.
    start: int
    end: int
    old: str
    new: str

    @property
    def edit(self) -> str:
        return "%s -> %s" % (self.old, self.new or "nothing")


def path_of(module: str, root: Path = ROOT) -> Path:
    """Return the file of a module of Ansible (nginx_tree), or of a module of a package (backup.restore)."""
    if "." in module:
        return root / "module_utils/shiftmaster" / (module.replace(".", "/") + ".py")
    return next(root.glob("library/*/%s.py" % module))


def mutants(module: str, source: bytes) -> list[Mutant]:
    """Return every mutant of a module's source."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []

    def add(group: str, line: int, start: int, end: int, new: str) -> None:
        text = lines[line - 1].decode().strip()
        found.append(Mutant(module, group, line, text, start, end, source[start:end].decode(), new))

    def span(node) -> tuple[int, int]:
        return (
            starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def between(group: str, left, right, exchange: dict) -> None:
        """Exchange the operator between two operands."""
        start, end = span(left)[1], span(right)[0]
        operator = re.search(rb"\b(is not|not in|is|in|and|or)\b|[=!<>]=|[<>]|[-+*/]+", source[start:end])
        if operator and operator.group().decode() in exchange:
            new = exchange[operator.group().decode()]
            line = source[: start + operator.start()].count(b"\n") + 1
            add(group, line, start + operator.start(), start + operator.end(), new)

    for node in _code(ast.parse(source)):
        if isinstance(node, ast.Compare):
            for left, right in zip([node.left, *node.comparators], node.comparators):
                between("logic", left, right, COMPARISONS)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:]):
                between("logic", left, right, {"and": "or", "or": "and"})
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            add("logic", node.lineno, span(node)[0], span(node)[0] + 4, "")
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, ast.Constant):
            for new in ("True", "False") if not isinstance(node, ast.While) else ("False",):
                add("condition", node.test.lineno, *span(node.test), new)
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            between("constant", node.left, node.right, dict([ARITHMETIC[type(node.op)]]))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            add("logic", node.lineno, *span(node.func), CALLS[node.func.id])
        elif isinstance(node, ast.Constant):
            old = source[slice(*span(node))].decode()
            if isinstance(node.value, bool):
                add("constant", node.lineno, *span(node), str(not node.value))
            elif isinstance(node.value, int):
                # A mode loses or gains the right of others to read.
                larger = node.value + (1 if node.value < 10 else node.value)
                new = oct(node.value ^ 4) if old.startswith("0o") else str(larger)
                add("constant", node.lineno, *span(node), new)
            elif isinstance(node.value, str) and WORD.fullmatch(node.value) and old[0] in "\"'" and old[-1] == old[0]:
                add("word", node.lineno, *span(node), old[0] + "X" + old[1:])
        elif isinstance(node, (ast.Raise, ast.Continue, ast.Break, ast.AugAssign)):
            add("statement", node.lineno, *span(node), "pass")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            add("statement", node.lineno, *span(node), "pass")
        elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
            add("statement", node.lineno, *span(node), "return None")
    return found


def _is_none(node) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _compiles(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def mutated(source: bytes, mutant: Mutant) -> bytes:
    return source[: mutant.start] + mutant.new.encode() + source[mutant.end :]


def _code(node) -> Iterator:
    """Yield the nodes that may be mutated."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue  # Documentation.
        if isinstance(child, ast.Expr) and ast.unparse(child.value).startswith("points.reach("):
            continue
        if isinstance(child, ast.Assign) and re.search(
            r"^(DOCUMENTATION|EXAMPLES|RETURN|__\w+__|[A-Z_]*SECONDS)$", ast.unparse(child.targets[0])
        ):
            continue
        if isinstance(child, ast.keyword) and re.search("(timeout|_seconds)$", child.arg or ""):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'":
            continue
        if isinstance(child, (ast.JoinedStr, ast.arg)):
            continue
        yield child
        if isinstance(child, ast.Dict):
            for key, value in zip(child.keys, child.values):
                parts = [key] if isinstance(key, ast.Constant) and str(key.value).endswith("_seconds") else [key, value]
                yield from _code(ast.List(list(filter(None, parts)), ast.Load()))
        elif isinstance(child, ast.AnnAssign):
            # Not its annotation.
            if child.value is not None:
                yield child.value
                yield from _code(child.value)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in (*child.decorator_list, child.args, *child.body):
                yield from _code(ast.Module([part], []))
        else:
            yield from _code(child)


def sample(module: str, each: int, rng: random.Random, equivalent: set, root: Path = ROOT) -> list[Mutant]:
    """Return so many mutants of a module (0: all), as many of each group as there are."""
    groups, source = {}, path_of(module, root).read_bytes()
    for one in mutants(module, source):
        if (one.module, one.text, one.edit) not in equivalent:
            groups.setdefault(one.group, []).append(one)
    for members in groups.values():
        rng.shuffle(members)
    order, found = sorted(groups), []
    rng.shuffle(order)
    while any(groups.values()) and (not each or len(found) < each):
        for group in order:
            if groups[group] and (not each or len(found) < each):
                one = groups[group].pop()
                if _compiles(mutated(source, one)):
                    found.append(one)
    return found


def equivalents() -> list[dict]:
    """Return the listed edits that change no behaviour."""
    return yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8"))


@functools.cache
def imports_of_tests(root: Path) -> dict:
    """Return {unit test: names of modules that it imports}, without the package of module_utils."""
    found = {}
    for path in sorted((root / "tests/unit").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        imported = re.findall(r"spec_from_file_location\(\"(\w+)\"", text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported += [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported += [node.module, *("%s.%s" % (node.module, one.name) for one in node.names)]
        found[str(path.relative_to(root))] = {re.sub(r"^.*module_utils\.shiftmaster\.", "", name) for name in imported}
    return found


def tests_of(module: str, root: Path = ROOT) -> list[str]:
    """Return the unit tests that import a module, those that have its name first."""
    found = [name for name, imported in imports_of_tests(root).items() if module in imported]
    if "." not in module:
        # Tests of every module of Ansible.
        found += [str(path.relative_to(root)) for path in (root / "tests/unit").rglob("test_module_arguments.py")]
    return sorted(found, key=lambda one: (module.split(".")[-1] not in Path(one).name, one))


def copy(target: Path) -> None:
    """Copy what git knows of the repository, and what is new in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, stdout=subprocess.PIPE,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


class Chosen:
    """A plugin of pytest that runs some of the tests, or notes which functions of a module each test calls.

    work: gets the session instead, once its tests are collected.
    """

    def __init__(self, wanted: set | None = None, watched: Path | None = None, work=None):
        self.wanted, self.watched, self.work, self.now, self.called = wanted, watched, work, "", {}
        if watched:
            sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "mutants")
            sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, sys.monitoring.events.PY_START, self._started)
            sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, sys.monitoring.events.PY_START)

    def _started(self, code, _offset):
        if code.co_filename == str(self.watched):
            self.called.setdefault(code.co_firstlineno, set()).add(self.now)
        return sys.monitoring.DISABLE

    def pytest_collection_modifyitems(self, items):
        if self.wanted is not None:
            items[:] = [item for item in items if item.nodeid in self.wanted]

    def pytest_runtest_logstart(self, nodeid):
        if self.watched:
            self.now = nodeid
            sys.monitoring.restart_events()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        if self.work:
            self.work(session)
        return True if self.work else None


class Ended(NamedTuple):
    """How a child ended; seconds are of CPU, which do not depend on what else runs."""

    code: int
    hung: bool
    seconds: float


def in_child(work, output: Path, cpu_seconds: int) -> Ended:
    """Have a child of this process do some work, which returns its exit code; ERROR where it raises.

    One that takes so much CPU, or waits twenty times as long, has hung.
    """
    child = os.fork()
    if not child:
        os.setsid()
        code = ERROR
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for stream in (1, 2):
                os.dup2(descriptor, stream)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
            code = int(work())
            sys.stdout.flush()
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20 * cpu_seconds
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        # Processes of a test end with it.
        os.killpg(child, signal.SIGKILL)
    if not done:
        _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, not done or code == -signal.SIGXCPU, used.ru_utime + used.ru_stime)


def run_pytest(place: Path, tests: list[str], plugin: Chosen) -> int:
    os.chdir(place)
    # Without its own capture: a child's output is its parent's.
    options = ["-x", "-q", "-s", "-p", "no:cacheprovider", "--basetemp", str(place.parent / "basetemp")]
    return pytest.main([*options, *tests], plugins=[plugin])


def run_collected(session, items: list) -> int:
    """Run some of the collected tests up to the first that fails."""
    for item, following in zip(items, [*items[1:], None]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return 0


def exchange(path: Path, source: bytes, function: tuple) -> int:
    """Give a function the code that it has in another source of its module; return of how many objects."""
    found, left = [], [compile(source, str(path), "exec", dont_inherit=True)]
    while left:
        code = left.pop()
        found += [code] if (code.co_firstlineno, code.co_name) == function else []
        left += [one for one in code.co_consts if isinstance(one, CodeType)]
    (new,) = found
    objects = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
    objects = [one for one in objects if one.__code__.co_filename == str(path)]
    objects = [one for one in objects if (one.__code__.co_firstlineno, one.__code__.co_name) == function]
    for one in objects:
        one.__code__ = new
    return len(objects)


def tries(place: Path, path: Path, tests: list[str], chosen: list[Mutant]) -> int:
    """Collect tests, run them all, then those of each mutant; notes what they call, and which were found or hung."""
    source, output, noted = path.read_bytes(), place.parent / "output", place.parent / "noted"

    def work(session):
        def all_of_them():
            code = run_collected(session, session.items)
            noted.write_text(json.dumps({line: sorted(names) for line, names in plugin.called.items()}))
            return code

        ended = in_child(all_of_them, output, 600)
        if ended.code:
            print(output.read_text(errors="replace"), flush=True)
            os._exit(1)
        called, found, hung = json.loads(noted.read_text()), [], []
        for number, one in enumerate(chosen):
            function, wanted = outermost(source, one.line), tests_of_line(source, one.line, called)
            if not function or not wanted:
                continue
            items = [item for item in session.items if item.nodeid in wanted]

            def mutated_one(one=one, items=items, function=function):
                return run_collected(session, items) if exchange(path, mutated(source, one), function) else 0

            ended_too = in_child(mutated_one, output, limit_of(ended))
            if ended_too.code == 1 or ended_too.hung:
                found.append(number)
                hung += [number] if ended_too.hung else []
        noted.write_text(json.dumps({"called": called, "found": found, "hung": hung, "seconds": ended.seconds}))

    plugin = Chosen(watched=path, work=work)
    run_pytest(place, tests, plugin)
    return 0


def limit_of(ended: Ended) -> int:
    """Return how much CPU the tests of a mutant may take, in seconds."""
    return 20 + 5 * round(ended.seconds)


def outermost(source: bytes, line: int) -> tuple | None:
    """Return (first line, name) of the outermost function that has a line in its body."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line <= node.end_lineno:
            # Its code begins with its first decorator.
            return min([node.lineno, *(one.lineno for one in node.decorator_list)]), node.name
    return None


def tests_of_line(source: bytes, line: int, called: dict) -> set | None:
    """Return the tests that call the function of a line; None for all: at a module's level, or by another process."""
    found = None
    for node in ast.walk(ast.parse(source)):
        # Its code begins with its first decorator. The innermost comes last.
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found = set(called.get(str(first), ())) if line >= node.body[0].lineno else None
    return found if found and "" not in found else None


def isolate() -> None:
    """As root, start again where temporary directories are the only ones that can be written to.

    A wrong edit may do anything, also to the files of this machine.
    """
    if os.geteuid() or os.environ.get("MUTANTS_ISOLATED"):
        return
    mounts = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && mount -o remount,bind,ro /dev'
    # Ansible makes its own directory when it is imported.
    script = mounts + ' && exec env MUTANTS_ISOLATED=1 ANSIBLE_HOME="$0/mutants-ansible" "$@"'
    words = ["sh", "-c", script, tempfile.gettempdir(), sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *words])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random choice; default: the time")
    parser.add_argument("--each", type=int, default=8, help="mutants of each module; 0: all (default: 8)")
    options = parser.parse_args()
    isolate()
    # For the children, which begin with a copy of this process.
    import ansible.module_utils.basic
    import ansible.module_utils.testing  # noqa: F401

    equivalent = {(one["module"], one["line"], one["edit"]) for one in equivalents()}
    total, survived = 0, []
    print("seed %d, %s mutants of each module" % (options.seed, options.each or "all"))
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        place = Path(temporary) / "tree"
        output = place.parent / "output"
        copy(place)
        for module in options.modules:
            began, tests, path = time.monotonic(), tests_of(module), path_of(module, place)
            source = path.read_bytes()
            chosen = sample(module, options.each, random.Random("%d %s" % (options.seed, module)), equivalent)
            log = place.parent / "log"
            result = place.parent / "noted"
            result.unlink(missing_ok=True)
            ended = in_child(lambda: tries(place, path, tests, chosen), log, 3600)  # noqa: B023 - called at once
            # Without a result they could not be collected.
            if ended.code or not result.exists():
                print(log.read_text(errors="replace"))
                sys.exit("The unit tests of %s fail without a mutant" % module)
            noted = json.loads(result.read_text())
            # Bytecode of the original source: a mutant of the same second and size would be taken for it.
            for compiled in path.parent.glob("__pycache__/%s.*.pyc" % path.stem):
                compiled.unlink()
            sys.dont_write_bytecode = True
            alive, hung, limit = [], len(noted["hung"]), limit_of(Ended(0, False, noted["seconds"]))
            for one in [one for number, one in enumerate(chosen) if number not in noted["found"]]:
                path.write_bytes(mutated(source, one))
                wanted = tests_of_line(source, one.line, noted["called"])
                files = [name for name in tests if any(test.startswith(name) for test in wanted)] if wanted else tests
                ended = in_child(lambda: run_pytest(place, files, Chosen(wanted)), output, limit)  # noqa: B023
                hung += ended.hung
                if ended.code == 0:
                    alive.append(one)
            path.write_bytes(source)
            sys.dont_write_bytecode = False
            total += len(chosen)
            survived += alive
            spent = time.monotonic() - began
            found, note = len(chosen) - len(alive), " (%d hung)" % hung if hung else ""
            print("%-20s %3d of %3d found%s, %4d s" % (module, found, len(chosen), note, spent), flush=True)
            for one in alive:
                print("    %s:%d  %s\n        %s" % (path_of(module).relative_to(ROOT), one.line, one.edit, one.text))
    share = (total - len(survived)) / total
    print("%d of %d found: %.1f %% (at least %d %%)" % (total - len(survived), total, 100 * share, 100 * LEAST))
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
