"""Each step of scripts/steps.yml covers the files that it reads, as far as its tests name or import them."""

from __future__ import annotations

import fnmatch
import functools
import re
import subprocess
from pathlib import Path

import run_tests

ROOT = Path(__file__).resolve().parents[3]
# Modules that build and switch a release: those scenarios verify them that cover the area `release`, and not each one
# with a role that starts them, too.
RELEASE = re.compile(r"(library|module_utils/shiftmaster)/release/|plugins/action/shiftmaster_(lock|source|wheels)\.py")
# Its tests write a file of this name.
OTHER = {("migrations", "ansible.cfg")}
IMPORT = re.compile(r"(?m)^ *(?:from (\.*)([\w.]*) import (\([^)]*\)|.*)|import (\S+))")
COMMENT = re.compile(r'(?ms)^ *#[^\n]*| # [^\n]*|^ *"""[^"\\\n].*?"""$')


class Reader:
    """Derives which files of the repository another one reads: those that it names, and modules that it imports."""

    def __init__(self):
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        self.tracked = {name for name in listed.split("\0") if (ROOT / name).is_file()}
        self.modules = {}
        for name in sorted(self.tracked):
            if match := re.match(r"(?:tests|scripts|library/\w+|plugins/\w+)/(\w+)\.py$", name):
                self.modules[match[1]] = name
            elif match := re.match(r"((?:module_utils|shiftmaster_monitoring)/.*?)(?:/__init__)?\.py$", name):
                self.modules[match[1].replace("/", ".")] = name
        self.reads = functools.cache(self.reads)

    def named(self, text: str) -> set:
        """Files that a text names, or by a pattern the tests among them."""
        words = {re.sub(r"^(\.\./)+", "", word) for word in re.findall(r"[\w./*-]*[\w*]", text)} - {"shiftmaster"}
        patterns = [word for word in words if word.startswith("tests/") and "*" in word]
        return (self.tracked & (words | {f"molecule/{word}" for word in words})).union(
            *(fnmatch.filter(self.tracked, pattern) for pattern in patterns)
        )

    def imported(self, name: str, text: str) -> set:
        names = set()
        for dots, module, members, plain in IMPORT.findall(text):
            if dots:
                module = ".".join([*name.split("/")[: -len(dots)], *filter(None, [module])])
            module = (module or plain).removeprefix("ansible.")
            names |= {module, *(f"{module}.{member}" for member in re.findall(r"\w+", members))}
        names |= {f"module_utils.{one}" for one in names}
        return {self.modules[one] for one in names if one in self.modules}

    def reads(self, name: str) -> set:
        text = COMMENT.sub("", (ROOT / name).read_text(encoding="utf-8", errors="replace"))
        found = {"scripts/images", "molecule/shared/Dockerfile"} if "shiftmaster-ops/base:" in text else set()
        if name.endswith(".py"):
            found |= self.imported(name, text)
        if re.match(r"(molecule|tests)/.*\.(py|yml)$|scripts/(?!images)\w+$", name):
            found |= self.named(text)
            found |= {f"{method}.yml" for method in re.findall(r"\.(deploy|rollback)\(", text)}
            if name.startswith("scripts/"):
                found |= self.configuration_of(found)
        elif re.match(r"playbooks/(?!deploy)|rollback\.yml", name):
            # Which roles deploy.yml runs depends on the hosts' groups.
            found |= {f"playbooks/{one}" for one in re.findall(r"import_playbook: (?:playbooks/)?(\S+)", text)}
            roles = re.findall(r"(?m)^ +(?:- |(?:- )?(?:name|role): )(\w+)$", text)
            found |= {one for one in self.tracked if one.startswith(tuple(f"roles/{role}/" for role in roles))}
        elif re.match(r"roles/\w+/tasks/", name):
            words = re.findall(r"(?m)^ +(\w+):$", text)
            found |= {self.modules[word] for word in words if word in self.modules}
        # Methods of a helper that a test calls or not.
        return found - {name} - ({"deploy.yml", "rollback.yml"} if name == "tests/support.py" else set())

    def configuration_of(self, names) -> set:
        """What pytest reads besides tests that it is started with."""
        tests = [Path(name) for name in names if re.search(r"(^|/)(test_\w+|conftest)\.py$", name)]
        found = {f"{place}/conftest.py" for name in tests for place in name.parents} | {"pyproject.toml"}
        return found & self.tracked if tests else set()

    def of_step(self, step) -> set:
        words = step.run.split() or [f"molecule/{step.name}"]
        left = {name for name in self.tracked for word in words if name == word or name.startswith(f"{word}/")}
        left, found = left | self.configuration_of(left), set()
        while left:
            found |= left
            left = set().union(*map(self.reads, left)) - found
        return found


def test_a_step_covers_what_its_tests_read():
    reader, missing = Reader(), []
    for step in run_tests.load_steps():
        if "all" in step.suites and step.covers != ["*"]:
            covered = re.compile("|".join(map(fnmatch.translate, step.covers))).match
            missing += [(step.name, name) for name in sorted(reader.of_step(step)) if not covered(name)]
    assert [pair for pair in missing if pair not in OTHER and not RELEASE.match(pair[1])] == []
