"""What a deploy reports besides the release (group_vars/all/summary.yml), with the production inventory."""

from __future__ import annotations

import json
import shutil

import inventories
import pytest
from support import ROOT

SECRETS = {
    f"vault_backup_{name}": "not-a-secret" for name in ("cipher_passphrase", "restic_password", "database_password")
}


@pytest.mark.parametrize(
    ("tags", "extra", "present", "absent"),
    [
        (["all"], SECRETS,
         ["Backups: next at 02:30 (Asia/Tokyo)", "vault_backup_cipher_passphrase", "Monitoring: https://mon1:9090/"],
         ["not-a-secret"]),
        (["release"], {}, [], ["Backups:", "Monitoring:"]),
    ],
)  # fmt: skip
def test_the_summary_covers_what_the_tags_set_up(tmp_path, tags, extra, present, absent):
    shutil.copy(ROOT / "inventory/production/hosts.yml", tmp_path / "production.yml")
    hosts = {"all": {"children": {"monitoring": {"hosts": {"mon1": {}}}}}}
    (tmp_path / "site.yml").write_text(json.dumps(hosts))
    found = inventories.variables(tmp_path, ["run_summary"], "mon1", ansible_run_tags=tags, **extra)
    out = " ".join(found["mon1"]["run_summary"])
    assert [text for text in present if text not in out] == [] and [text for text in absent if text in out] == []
