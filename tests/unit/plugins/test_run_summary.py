"""The report of a deploy besides the release (group_vars/all/summary.yml), with the production inventory."""

from __future__ import annotations

import json
import re
import shutil

import inventories
import pytest
import yaml
from ansible.module_utils.shiftmaster.release import cutover
from ansible.plugins.loader import init_plugin_loader
from ansible.template import trust_as_template
from rendered import render, templar
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
        (["all"], {**SECRETS, "run_language": "ja"},
         ["バックアップ: 次回 02:30(Asia/Tokyo", "監視: https://mon1:9090/"], ["Backups:", "Monitoring:"]),
        (["release"], {}, ["Site: https://shift.test/"], ["Backups:", "Monitoring:", "administrator"]),
        (["release"], {"release_facts": {"version": "2.0.0", "previous": {"name": ""}}, "tls_site_mode": "selfsigned"},
         ["Create the first administrator", "/site/ca.crt"], []),
        (["release"], {"release_facts": {"version": "2.0.0", "previous": {"name": "r1"}}},
         ["Site: "], ["administrator"]),
        (["base"], {}, ["This repository: 1.0.0"], ["Site: "]),
    ],
)  # fmt: skip
def test_the_summary_covers_what_the_tags_set_up(tmp_path, tags, extra, present, absent):
    shutil.copy(ROOT / "inventory/production/hosts.yml", tmp_path / "production.yml")
    hosts = {"all": {"children": {"monitoring": {"hosts": {"mon1": {}}}}}}
    (tmp_path / "site.yml").write_text(json.dumps(hosts))
    extra = {"shiftmaster_domain": "shift.test", **extra}
    found = inventories.variables(tmp_path, ["run_summary"], "mon1", ansible_run_tags=tags, **extra)
    out = " ".join(found["mon1"]["run_summary"])
    assert [text for text in present if text not in out] == [] and [text for text in absent if text in out] == []


@pytest.mark.parametrize(
    ("tags", "more", "rejects"),
    [
        (["all"], {}, True), (["release"], {}, True), (["app", "backup"], {}, False),
        (["all"], {"ansible_skip_tags": ["release"]}, False), (["all"], {"run_without_release": True}, False),
        (["all"], {"preflight_extra": {"given": ["shiftmaster_version"]}}, False),
    ],
)  # fmt: skip
def test_the_inventorys_older_version_matters_to_a_run_that_deploys_one(tmp_path, tags, more, rejects):
    shutil.copy(ROOT / "inventory/production/hosts.yml", tmp_path / "production.yml")
    extra = {"ansible_run_tags": tags, "ansible_skip_tags": [], **more}
    found = inventories.variables(tmp_path, ["preflight_version_named"], "app1", **extra)
    assert found["app1"]["preflight_version_named"] is not rejects


@pytest.mark.parametrize(("language", "expected"), [("en", "to roll back: "), ("ja", "元に戻すには: ")])
def test_the_summary_of_a_release_has_the_language_of_its_reader(language, expected):
    facts = {
        "version": "2.1.0", "name": "r2", "revision": "0" * 40, "changed": True,
        "timings": {"static_files": 2.0, "until_switched": 1.0},
        "previous": {"version": "2.0.0", "name": "r1"}, "watched": {"requests": 9, "errors": 0, "p95_ms": 5},
    }  # fmt: skip
    init_plugin_loader()
    for options in ("", " -e schema=reverse"):
        text = render(
            "release", "summary.txt.j2", release_facts={**facts, "rollback_options": options},
            release_summary_language=language, ansible_check_mode=False, shiftmaster_source={},
            shiftmaster_run={"operation": "deploy", "started": 0},
        )  # fmt: skip
        end = "rollback.yml" + options
        assert any(line.startswith(expected) and line.endswith(end) for line in text.splitlines()), text
    assert ("静的ファイル 2.0 秒、切り替えまで 1.0 秒" in text) == (language == "ja"), text
    words = [re.search(r"[a-z]{2,} [a-z]{2,}", line) for line in text.splitlines() if line and expected not in line]
    assert any(words) == (language == "en"), text


@pytest.mark.parametrize(("language", "then", "now"), [("en", "then:   ", "now:    "), ("ja", "変更後: ", "稼働中: ")])
@pytest.mark.parametrize("name", ["r1", "r2", ""])
def test_the_summary_of_a_check_shows_what_would_be_live(language, then, now, name):
    facts = {"version": "2.0.0", "name": name, "revision": "0" * 40, "changed": name != "r2",
             "previous": {"version": "2.1.0", "name": "r2"}}  # fmt: skip
    init_plugin_loader()
    lines = render(
        "release", "summary.txt.j2", release_facts=facts, release_summary_language=language, ansible_check_mode=True,
        shiftmaster_source={}, shiftmaster_run={"operation": "deploy", "started": 0},
    ).splitlines()  # fmt: skip
    live = [line for line in lines if line.startswith((then, now))]
    assert len(live) == 1 and "2.0.0" in live[0] and live[0].startswith(now if name == "r2" else then), lines
    assert not [line for line in lines if "rollback.yml" in line], lines


@pytest.mark.parametrize(
    "facts", [None, {"version": "2.1.0", "name": "r2", "previous": {"version": "2.0.0", "name": "r1"}}]
)
def test_the_summary_names_the_file_for_a_version_that_was_live_for_the_first_time(facts):
    init_plugin_loader()
    # A run of other tags has no release.
    lines = render(
        "release", "summary.txt.j2", **({"release_facts": facts} if facts else {}),
        release_version_file="group_vars/a/vars.yml", release_summary_language="en",
        ansible_check_mode=False, shiftmaster_source={}, shiftmaster_run={"operation": "deploy", "started": 0},
    ).splitlines()  # fmt: skip
    line = 'write it into group_vars/a/vars.yml, too: shiftmaster_version: "2.1.0"'
    assert (line in lines) == bool(facts), lines


def test_a_rollback_with_the_schema_is_undone_by_a_deploy():
    init_plugin_loader()
    facts = {"version": "2.0.0", "name": "r1", "changed": True, "previous": {"version": "2.1.0", "name": "r2"}}
    for options, end in (("", "rollback.yml -e to=2.1.0"), (" -e x=2.1.0", "deploy.yml -e x=2.1.0")):
        text = render(
            "release", "summary.txt.j2", release_facts={**facts, "undo_options": options},
            release_summary_language="en", ansible_check_mode=False, shiftmaster_source={},
            shiftmaster_run={"operation": "rollback", "started": 0},
        )  # fmt: skip
        assert any(line == f"to undo it: ansible-playbook {end}" for line in text.splitlines()), text


@pytest.mark.parametrize(
    ("schema", "classes", "options"),
    [
        ("keep", ["contract"], ""), ("reverse", [], ""), ("reverse", ["expand"], " -e shiftmaster_version=2.1.0"),
        ("restore", ["expand", "contract"], " -e shiftmaster_version=2.1.0 -e shiftmaster_allow_contract=true"),
    ],
)  # fmt: skip
def test_the_deploy_that_undoes_a_rollback_has_the_options_of_its_migrations(schema, classes, options):
    report = yaml.safe_load((ROOT / "roles/release/vars/main.yml").read_text(encoding="utf-8"))
    found = templar(
        "release", release_rollback_schema=schema, release_facts={"previous": {"version": "2.1.0"}},
        __release_compare={"ahead": [{"class": one} for one in classes]},
    )  # fmt: skip
    assert found.template(trust_as_template(report["__release_report"]["undo_options"])) == options


def test_every_step_of_a_build_and_phase_of_a_cutover_has_its_japanese():
    template = (ROOT / "roles/release/templates/summary.txt.j2").read_text(encoding="utf-8")
    names = re.findall(r"(?m)^  '(\w+)': '[^']*[^\x00-\x7f][^']*',$", template)
    steps = re.findall(r"(?m)^ {16}self\.(\w+),$", (ROOT / "module_utils/shiftmaster/release/releases.py").read_text())
    assert len(steps) > 8 and {*steps, *cutover.PHASES, "until_switched"} == set(names)


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        ([], ""), (["expand"], ""), (["expand", "contract"], " -e schema=reverse"),
        (["contract", "irreversible"], " -e schema=restore"),
    ],
)  # fmt: skip
def test_a_contract_migration_is_rolled_back_with_the_schema(classes, options):
    report = yaml.safe_load((ROOT / "roles/release/vars/main.yml").read_text(encoding="utf-8"))
    pending = [{"class": one} for one in classes]
    variables = {"shiftmaster_lock_host": "a", "hostvars": {"a": {"__release_migrations": {"pending": pending}}}}
    found = templar("release", **variables)
    assert found.template(trust_as_template(report["__release_report"]["rollback_options"])) == options
