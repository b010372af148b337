"""Every module's documentation can be read with ansible-doc and names every argument that the module takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import offenders

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(
    path for pattern in ("library/*/*.py",) for path in ROOT.glob(pattern) if not path.name.startswith("_")
)


LOOKUPS = sorted(ROOT.glob("plugins/lookup/*.py"))


def ansible_doc(*arguments):
    result = subprocess.run(
        [Path(sys.executable).parent / "ansible-doc", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def of_modules(*arguments):
    directories = ":".join(sorted({str(path.parent) for path in MODULES}))
    return ansible_doc("--type", "module", "--module-path", directories, *arguments, *(path.stem for path in MODULES))


def test_documentation_is_complete():
    documentation = json.loads(of_modules("--json"))

    def check(path):
        page = documentation[path.stem]
        assert page["doc"]["short_description"]
        assert page["doc"]["description"]
        assert [name for name, option in (page["doc"].get("options") or {}).items() if not option["description"]] == []
        assert page["examples"], "EXAMPLES is empty"
        assert page["return"] is not None, "RETURN is missing"
        attributes = page["doc"].get("attributes") or {}
        assert {"check_mode", "diff_mode"} <= set(attributes), "document check mode and diff mode (attributes)"

    offenders.check_each(MODULES, check, lambda path: path.stem)


def test_documentation_pages_render():
    shown = set(re.findall(r"^> MODULE (\S+)", of_modules(), re.M))
    assert {path.stem for path in MODULES} - shown == set()


def test_lookups_are_documented():
    documentation = json.loads(ansible_doc("--json", "--type", "lookup", *(path.stem for path in LOOKUPS)))

    def check(path):
        page = documentation[path.stem]
        assert page["doc"]["short_description"] and page["examples"] and page["return"]

    offenders.check_each(LOOKUPS, check, lambda path: path.stem)
