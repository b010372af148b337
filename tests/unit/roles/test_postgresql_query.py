"""roles/postgresql/tasks/query.yml, with stubs for runuser and psql."""

from __future__ import annotations

import os
import re
import subprocess

import yaml
from support import ROOT

STUB = """#!/bin/sh
while [ "$1" != -d ]; do shift; done
echo "$2 $3" >> {out}
case "$3" in -c) printf 'postgres\\nshift"x\\n' ;; *) cat; echo "rights of $2" ;; esac
"""


def test_a_database_that_is_not_there_is_not_connected_to(tmp_path):
    """PostgreSQL would log an error of every first deploy."""
    stub = tmp_path / "runuser"
    stub.write_text(STUB.format(out=tmp_path / "calls"))
    stub.chmod(0o755)
    (task,) = yaml.safe_load((ROOT / "roles/postgresql/tasks/query.yml").read_text(encoding="utf-8"))
    (tmp_path / "record").write_text("record")
    command = task["ansible.builtin.shell"]["cmd"]
    for name, value in (
        ("port", "5432"),
        ("rights_record", str(tmp_path / "record")),
        ("databases", "'shift\"x' missing"),
    ):
        command = re.sub(r"\{\{ (__)?postgresql_%s.*?\}\}" % name, lambda _, new=value: new, command)

    def run():
        done = subprocess.run(
            ["sh", "-c", command], input="select 1", capture_output=True, text=True, check=True, timeout=60,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )  # fmt: skip
        return done.stdout

    first, second = run(), run()
    assert first.endswith("record") and len(first.split()[0]) == 64
    # The missing one makes each result another, so that the rights are set.
    assert first != second
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[: len(calls) // 2] == ["postgres -c", "postgres -f", 'shift"x -f']
