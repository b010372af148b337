"""docs/diagnosis.md maps each command of the operations guide's troubleshooting script to a part of the evidence."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.diagnosis import database
from ansible.module_utils.shiftmaster.diagnosis.setting import PARTS, Setting
from ansible.module_utils.shiftmaster.host import probe

ROOT = Path(__file__).resolve().parents[3]
PATHS = [ROOT / "docs/diagnosis.md", ROOT / "docs/diagnosis.ja.md"]
# The guide's script, without what only cuts its output (head, sort) and without `sudo -u postgres`.
COMMANDS = r"""
systemctl status shiftmaster
tail -50 /var/log/shiftmaster/error.log
netstat -tulpn \| grep 8000
which python
python --version
systemctl status postgresql
psql -c "SELECT version();"
SELECT count(*) FROM pg_stat_activity;
\l \| grep shiftmaster
ps aux --sort=-%cpu
uptime
ps aux \| grep python \| grep manage.py
SELECT ... FROM pg_stat_activity WHERE state = 'active';
free -h
cat /proc/meminfo
ps aux --sort=-%mem
swapon --show
dmesg \| grep -i "killed process"
df -h
du -sh /var/log/*
du -sh /var/lib/postgresql/*
ls -la /var/log/shiftmaster/
df -i
netstat -tulpn \| grep -E "(80\|443\|8000\|5432\|6379)"
ufw status
iptables -L
curl -I http://localhost:8000/health/
nslookup $(hostname)
""".strip().splitlines()
# The guide's four queries of the database's performance are named, not quoted.
QUERIES = 4


def table(path):
    """[(commands, names of evidence)] of each row."""
    found, rows = [], path.read_text(encoding="utf-8").partition("|---|---|\n| `systemctl")
    for row in (rows[1].splitlines()[1] + rows[2].split("\n\n")[0]).splitlines():
        cells = re.split(r"(?<!\\)\|", row)
        found.append(tuple(re.findall(r"`([^`]+)`", cell) for cell in cells[1:3]))
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_each_command_of_the_guide_is_mapped(path):
    commands = [command for left, _right in table(path) for command in left]
    assert sorted(commands) == sorted(COMMANDS)
    assert sum(not left for left, _right in table(path)) == QUERIES


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_the_parts_that_are_named_exist(path):
    for _left, right in table(path):
        assert right
        part = ""
        for name in right:
            first, _dot, rest = name.partition(".")
            if first in PARTS:
                part = first
            elif name in ("ss", "nft", "idx_tup_read", "idx_tup_fetch"):
                continue
            else:
                # One more of the part before it.
                rest = name
            assert part, name
            # Each is a key that the part's module writes.
            source = "".join(map(inspect.getsource, (inspect.getmodule(PARTS[part].function), Setting, probe)))
            for key in [key for key in rest.split(".") if key]:
                assert re.search(rf"[\"']{key}[\"']|\b{key}=", source), f"{part} has no {key}"


def test_both_languages_name_the_same():
    english, japanese = (table(path) for path in PATHS)
    assert english == japanese


def test_the_guides_columns_of_indexes_are_requested():
    query = database.QUERIES["rarely_used_indexes"]
    assert "idx_tup_read AS entries_read" in query and "idx_tup_fetch AS rows_fetched" in query
