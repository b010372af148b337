"""playbooks/maintenance.yml, as an operator runs it."""

from __future__ import annotations

import json

import pytest

PLAYBOOK = "playbooks/maintenance.yml"
PAGE = {"reason": "更新 <script>alert('x')</script> & \"more\"", "end": "2040-11-25 14:30"}
AUDIT = "/var/www/shiftmaster/shared/state/audit.jsonl"


def test_on_once_more_and_off(edge):
    edge.ok(f"rm -f {AUDIT}")
    check = edge.playbook(PLAYBOOK, "--check", "--diff", state="on", **PAGE)
    assert check.rc == 0 and check.changed == 1 and edge.get("/").status == 200
    on = edge.playbook(PLAYBOOK, state="on", **PAGE)
    assert on.rc == 0, on.out
    answer = edge.get("/")
    assert (answer.status, answer.one("x-maintenance")) == (503, "on")
    assert "2040-11-25 14:30" in answer.body and "メンテナンス中" in answer.body and "Under maintenance" in answer.body
    assert "&lt;script&gt;" in answer.body and "<script" not in answer.body
    assert json.loads(edge.get("/", "-H", "Accept: application/json").body)["reason"] == PAGE["reason"]
    again = edge.playbook(PLAYBOOK, state="on", **PAGE)
    assert again.rc == 0 and again.changed == 0
    off = edge.playbook(PLAYBOOK, state="off")
    assert off.rc == 0 and edge.get("/").status == 200
    again = edge.playbook(PLAYBOOK, state=False)
    assert again.rc == 0 and again.changed == 0
    entries = [json.loads(line) for line in edge.ok(f"cat {AUDIT}").splitlines()]
    assert [entry["event"] for entry in entries] == ["maintenance_on", "maintenance_off"]
    assert entries[0]["reason"] == PAGE["reason"] and entries[0]["who"]


@pytest.mark.parametrize(
    ("wrong", "sentences"),
    [
        ({"state": "maybe", "end": "2026-02-30"}, ['not "maybe"', "A reason is missing", "2026-02-30"]),
        ({"state": "on"}, ["A reason is missing", "The end is missing"]),
        ({"state": "on", "reason": "x", "end": "2020-01-01 10:00"}, ["is over"]),
        ({"state": "on", "reason": "x" * 501, "end": "25.11.2040"}, ["501 characters", "is no time"]),
    ],
)
def test_every_problem_is_named_at_once_and_nothing_changes(edge, wrong, sentences):
    done = edge.playbook(PLAYBOOK, **wrong)
    assert done.rc != 0 and done.changed == 0
    for sentence in sentences:
        assert sentence in done.flat.replace('\\"', '"')
    assert edge.get("/").status == 200


def test_a_page_of_a_run_is_the_runs(edge):
    page = "/var/www/shiftmaster/shared/maintenance/on"
    edge.ok(f"mkdir -p $(dirname {page}) && echo begun by run 20261127T010203Z-abc > {page}")
    done = edge.playbook(PLAYBOOK, state="off")
    assert done.rc != 0 and done.changed == 0 and edge.get("/").status == 503
    assert "begun by run 20261127T010203Z-abc" in done.flat and "type that command again" in done.flat
    done = edge.playbook(PLAYBOOK, state="off", force=True)
    assert done.rc == 0 and edge.get("/").status == 200, done.out


def test_a_page_that_nginx_does_not_show_is_an_error(edge):
    """The switch is in a directory that nginx does not look at: written, but without effect."""
    done = edge.playbook(PLAYBOOK, state="on", nginx_maintenance_dir="/var/www/shiftmaster/shared/state", **PAGE)
    edge.ok("rm -f /var/www/shiftmaster/shared/state/on /var/www/shiftmaster/shared/state/page.*")
    assert done.rc != 0
