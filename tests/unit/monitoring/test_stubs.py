"""The stub metrics of backups in scenario `monitoring` have the names of the real ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ansible.module_utils.shiftmaster.backup import manifest as manifests

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import service_faults

ROOT = Path(__file__).resolve().parents[3]


class Host:
    def shell(self, _command, stdin=""):
        self.text = stdin


def test_metrics_of_backups_have_the_names_and_kinds_of_the_real_ones():
    host = Host()
    service_faults.backups_as_if(host)
    found = re.findall(r'^(\w+)(?:\{kind="(\w+)"\})? \S+$', host.text, re.M)
    names = {name for name, _kind in found}
    # The role itself writes how much WAL the database keeps at the most.
    (limit,) = re.findall(r"^  # TYPE (\w+) gauge$", (ROOT / "roles/backup/vars/main.yml").read_text("utf-8"), re.M)
    names.remove(limit)
    # When WAL came last and when the next run is due are in no rule and in no panel.
    assert set(manifests.HELP) - names == {
        "shiftmaster_backup_wal_newest_timestamp_seconds", "shiftmaster_backup_next_run_timestamp_seconds",
    } and names <= set(manifests.HELP)  # fmt: skip
    assert {kind for _name, kind in found if kind} == {
        kind for kind in manifests.KINDS.values() if kind not in manifests.WITHOUT_AGE
    }
    assert set(re.findall(r"^# TYPE (\w+) gauge$", host.text, re.M)) == {*names, limit}
