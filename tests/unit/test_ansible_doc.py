"""Every module's documentation can be read with ansible-doc and names every argument that the module takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path
    for pattern in ("library/*.py", "roles/*/library/*.py")
    for path in ROOT.glob(pattern)
    if not path.name.startswith("_")
)


@pytest.fixture(scope="module")
def documentation():
    """One run of ansible-doc for each folder of modules."""
    found = {}
    for folder in sorted({path.parent for path in MODULES}):
        names = [path.stem for path in MODULES if path.parent == folder]
        result = subprocess.run(
            [
                Path(sys.executable).parent / "ansible-doc",
                "--json",
                "--type",
                "module",
                "--module-path",
                folder,
                *names,
            ],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        found.update(json.loads(result.stdout))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_documentation_is_whole(path, documentation):
    page = documentation[path.stem]
    assert page["doc"]["short_description"]
    assert page["doc"]["description"]
    assert [name for name, option in (page["doc"].get("options") or {}).items() if not option["description"]] == []
    assert page["examples"], "EXAMPLES is empty"
    assert page["return"] is not None, "RETURN is missing"
    attributes = page["doc"].get("attributes") or {}
    assert {"check_mode", "diff_mode"} <= set(attributes), "say what check mode and diff mode do (attributes)"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_page_for_people_renders(path):
    result = subprocess.run(
        [Path(sys.executable).parent / "ansible-doc", "--type", "module", "--module-path", path.parent, path.stem],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert path.stem in result.stdout


@pytest.mark.parametrize("path", sorted(ROOT.glob("plugins/lookup/*.py")), ids=lambda path: path.stem)
def test_lookups_are_documented(path):
    result = subprocess.run(
        [Path(sys.executable).parent / "ansible-doc", "--json", "--type", "lookup", path.stem],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    page = json.loads(result.stdout)[path.stem]
    assert page["doc"]["short_description"] and page["examples"] and page["return"]
