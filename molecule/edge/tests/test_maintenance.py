"""playbooks/maintenance.yml, as an operator runs it."""

from __future__ import annotations

import json

import pytest

PLAYBOOK = "playbooks/maintenance.yml"
PAGE = {"reason": "更新 <script>alert('x')</script> & \"more\"", "end": "2040-11-25 14:30"}
AUDIT = "/var/www/shiftmaster/shared/state/audit.jsonl"


def test_on_once_more_and_off(web):
    web.ok(f"rm -f {AUDIT}")
    check = web.playbook(PLAYBOOK, "--check", "--diff", state="on", **PAGE)
    assert check.rc == 0 and check.changed == 1 and web.get("/").status == 200
    on = web.playbook(PLAYBOOK, state="on", **PAGE)
    assert on.rc == 0, on.out
    response = web.get("/")
    assert (response.status, response.one("x-maintenance")) == (503, "on")
    assert (
        "2040-11-25 14:30" in response.body
        and "メンテナンス中" in response.body
        and "Under maintenance" in response.body
    )
    assert "&lt;script&gt;" in response.body and "<script" not in response.body
    assert json.loads(web.get("/", "-H", "Accept: application/json").body)["reason"] == PAGE["reason"]
    again = web.playbook(PLAYBOOK, state="on", **PAGE)
    assert again.rc == 0 and again.changed == 0
    off = web.playbook(PLAYBOOK, state="off")
    assert off.rc == 0 and web.get("/").status == 200
    again = web.playbook(PLAYBOOK, state=False)
    assert again.rc == 0 and again.changed == 0
    entries = [json.loads(line) for line in web.ok(f"cat {AUDIT}").splitlines()]
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
def test_every_problem_is_named_at_once_and_nothing_changes(web, wrong, sentences):
    done = web.playbook(PLAYBOOK, **wrong)
    assert done.rc != 0 and done.changed == 0
    for sentence in sentences:
        assert sentence in done.flat.replace('\\"', '"')
    assert web.get("/").status == 200


def test_a_page_of_a_run_belongs_to_it(web):
    page = "/var/www/shiftmaster/shared/maintenance/on"
    web.ok(f"mkdir -p $(dirname {page}) && echo begun by run 20261127T010203Z-abc > {page}")
    done = web.playbook(PLAYBOOK, state="off")
    assert done.rc != 0 and done.changed == 0 and web.get("/").status == 503
    assert "begun by run 20261127T010203Z-abc" in done.flat and "Repeat the run that failed" in done.flat
    done = web.playbook(PLAYBOOK, state="on", **PAGE)
    assert done.rc != 0 and done.changed == 0 and "begun by run 20261127T010203Z-abc" in web.ok(f"cat {page}"), done.out
    done = web.playbook(PLAYBOOK, state="off", force=True)
    assert done.rc == 0 and web.get("/").status == 200, done.out


def test_a_page_that_nginx_does_not_show_is_an_error(web):
    """The switch is in a directory that nginx does not read: written, but without effect."""
    done = web.playbook(PLAYBOOK, state="on", nginx_maintenance_dir="/var/www/shiftmaster/shared/state", **PAGE)
    web.ok("rm -f /var/www/shiftmaster/shared/state/on /var/www/shiftmaster/shared/state/page.*")
    assert done.rc != 0
