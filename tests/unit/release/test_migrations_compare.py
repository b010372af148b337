"""Migrations by which the database is ahead, and the consequences."""

from __future__ import annotations

import json
import shutil

import pytest
from ansible.module_utils.shiftmaster.release import migrations

EXPANDS = (
    "from django.db import migrations, models\n"
    "class Migration(migrations.Migration):\n"
    "    operations = [migrations.AddField('roster', 'note', models.TextField(null=True))]\n"
)
REMOVES = EXPANDS.replace("AddField('roster', 'note', models.TextField(null=True))", "RemoveField('roster', 'note')")


def rows(*names):
    return [dict(zip(("app", "name"), name.split(".", 1))) for name in names]


def known(*names, **replaces):
    return [dict(row, replaces=[name.split(".", 1) for name in replaces.get(row["name"], ())]) for row in rows(*names)]


def names(items):
    return [migrations.key(item) for item in items]


def state(*arguments, **options):
    result = migrations.compare_state(*arguments, **options)
    return names(result["ahead"]), names(result["unapplied"])


def test_ahead_and_behind():
    assert state(rows("a.1", "a.2", "b.1"), known("a.1", "a.3")) == (["a.2", "b.1"], ["a.3"])


def test_replaced_migrations_of_a_squashed_one_are_known():
    squashed = known("a.s", s=["a.1", "a.2"])
    assert state(rows("a.1", "a.2"), squashed) == ([], [])
    assert state(rows("a.1"), squashed) == ([], ["a.s"])
    assert state(rows("a.s", "a.1", "a.2"), known("a.1", "a.2"), {"a.s": ["a.1", "a.2"]}) == ([], [])
    assert state(rows("a.s", "a.1", "a.2"), known("a.1"), {"a.s": ["a.1", "a.2"]}) == (["a.2"], [])
    assert state(rows("a.s"), known("a.1"), {"a.s": ["a.1", "a.2"]}) == (["a.s"], ["a.1"])


def test_migrations_applied_while_the_release_was_live_are_tolerated():
    assert state(rows("gone.1", "a.1"), known("a.1"), tolerated=["gone.1"]) == ([], [])


def release(root, name, files=None, manifest=None, packages=None):
    for directory, contents in (("source", files), ("venv/lib/python3.13/site-packages", packages)):
        for path, content in (contents or {}).items():
            target = root / name / directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
    (root / name).mkdir(exist_ok=True)
    if manifest is not None:
        (root / name / "manifest.json").write_text(manifest)


def test_the_class_is_found_in_any_retained_release(tmp_path):
    release(tmp_path, "1", {"a/migrations/0001.py": EXPANDS})
    release(tmp_path, "2", {"a/migrations/0002.py": REMOVES, "a/migrations/0001.py": REMOVES})
    release(tmp_path, "3", packages={"third/migrations/0001.py": EXPANDS})
    release(tmp_path, "4", manifest="not json")
    (tmp_path / "a-file").write_text("")
    found = migrations.classify_ahead([("a", "0001"), ("a", "0002"), ("third", "0001"), ("a", "0009")], str(tmp_path))
    assert [(r["class"], r["found_in"]) for r in found] == [
        ("contract", "2"),
        ("contract", "2"),
        ("expand", "3"),
        ("irreversible", None),
    ]


def test_a_manifest_is_enough(tmp_path):
    records = migrations.classify_files({"a/migrations/0001.py": REMOVES})
    release(tmp_path, "1", manifest=json.dumps({"migrations": records + [{"app": "a", "name": "0002"}]}))
    found = migrations.classify_ahead(rows("a.0001", "a.0002"), str(tmp_path))
    assert [(r["class"], r["found_in"]) for r in found] == [("contract", "1"), ("irreversible", None)]
    assert migrations.known_statically(str(tmp_path / "1")) == [{"app": "a", "name": "0001", "replaces": []}]


def test_compare_refuses_with_names_and_reasons(tmp_path):
    release(tmp_path, "2", {"a/migrations/0002.py": EXPANDS, "a/migrations/0003.py": REMOVES})
    response = {"applied": rows("a.0001", "a.0002"), "known": known("a.0001")}
    result = migrations.compare(response, str(tmp_path))
    assert result["safe_to_rollback"] and "a.0002 (expand)" in result["reason"]
    response["applied"] += rows("a.0003")
    result = migrations.compare(response, str(tmp_path))
    assert not result["safe_to_rollback"] and "a.0003 (contract: RemoveField roster.note" in result["reason"]
    assert "cannot be unapplied" not in result["reason"] and "a.0002" not in result["reason"]
    response["applied"] += rows("a.0004")
    reason = migrations.compare(response, str(tmp_path))["reason"]
    assert "no retained release holds the file of a.0004" in reason and "a.0004 cannot be unapplied" in reason


def test_nothing_ahead():
    assert migrations.rollback_result([]) == (True, "The database holds no migration that this release does not know.")


def test_deploy_result():
    records = migrations.classify_files({"a/migrations/0001.py": EXPANDS, "a/migrations/0002.py": REMOVES})
    assert migrations.deploy_result([])[0] and migrations.deploy_result(records[:1])[0]
    allowed, reason = migrations.deploy_result(records)
    assert not allowed and "a.0002 (contract" in reason and "maintenance page" in reason
    assert migrations.deploy_result(records, allow_contract=True)[0]
    assert migrations.deploy_result(records, first_deploy=True)[0]


def response_for(operations, source):
    return {
        "pending": [{"app": "a", "name": "0001", "atomic": True, "operations": operations}],
        "sources": {"a": {"0001": source}},
    }


def test_django_knows_better_whether_an_operation_can_be_reversed():
    source = EXPANDS.replace("migrations.AddField(", "Custom(")
    facts = [{"operation": "Custom", "describe": "Custom", "reversible": True}]
    assert migrations.plan(response_for(facts, source))[0]["class"] == "contract"
    facts[0]["reversible"] = False
    assert migrations.plan(response_for(facts, source))[0]["class"] == "irreversible"


def test_a_pending_migration_without_a_text_is_a_contract():
    assert migrations.plan(response_for([], ""))[0]["class"] == "contract"


@pytest.mark.parametrize("linked", ["source", "venv", "venv/lib", "venv/lib/python3", "venv/lib/python3/site-packages"])
def test_a_link_of_a_build_does_not_lead_root_to_another_tree(tmp_path, linked):
    """Each directory on the way to a release's files, in the place of a link to what the application may not read."""
    secret = tmp_path / "secret"
    for tail in ("", "lib/python3/site-packages", "python3/site-packages", "site-packages"):
        (secret / tail / "app/migrations").mkdir(parents=True, exist_ok=True)
        (secret / tail / "app/migrations/0001_secret.py").write_text(
            "from django.db import migrations\nclass Migration(migrations.Migration):\n    operations = []\n"
        )
    link = tmp_path / "releases/one" / linked
    link.parent.mkdir(parents=True)
    link.symlink_to(secret)
    assert migrations.known_statically(str(tmp_path / "releases/one")) == []
    link.unlink()
    shutil.copytree(secret, link)
    assert [one["name"] for one in migrations.known_statically(str(tmp_path / "releases/one"))] == ["0001_secret"]
