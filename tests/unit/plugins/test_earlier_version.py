"""A version of the inventory that was live before the one that is live."""

from __future__ import annotations

import pytest
import yaml
from earlier_version import earlier_version
from support import ROOT

OLD, NEW = "1" * 40, "2" * 40


def release(revision, version, was_live=True, current=False):
    return {"revision": revision, "version": version, "was_live": was_live, "current": current}


@pytest.mark.parametrize(
    ("releases", "stay"),
    [
        ([release(OLD, "1.0"), release(NEW, "2.0", current=True)], "2.0"),
        ([release(OLD, "main"), release(NEW, "1.0", current=True)], NEW[:10]),
        ([release(OLD, "1.0", current=True), release(NEW, "2.0")], ""),
        ([release(OLD, "1.0", was_live=False), release(NEW, "2.0", current=True)], ""),
        ([release(OLD, "1.0")], ""),
        ([], ""),
    ],
    ids=["earlier", "branch", "live", "never live", "nothing live", "empty host"],
)
def test_the_inventorys_version_does_not_replace_a_later_one(releases, stay):
    found = earlier_version(releases, OLD, "1.0", "vars.yml")
    assert [f'To stay with {stay}: shiftmaster_version: "{stay}" in vars.yml.' in one for one in found] == [
        True
    ] * bool(stay)


def test_it_is_evaluated_again_where_no_other_run_can_change_what_is_live():
    phases = yaml.safe_load((ROOT / "roles/release/tasks/main.yml").read_text(encoding="utf-8"))[0]["block"]
    assert [one.get("ansible.builtin.import_tasks") for one in phases][0] == "lock.yml"
    plan = yaml.safe_load((ROOT / "roles/release/tasks/plan.yml").read_text(encoding="utf-8"))
    uses = [number for number, one in enumerate(plan) if "earlier_version" in str(one)]
    assert len(uses) == 1 and plan[uses[0] - 1].get("register") == "__release_before"
