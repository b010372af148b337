"""Module awx_objects: the data of AWX, against the recorded options of awx.awx, and every mistake named."""

from __future__ import annotations

import copy
import datetime
import json

import awx_objects
import pytest
from ansible.module_utils.shiftmaster.awx import rrules
from awx.table import table_faults

RUN_OPTIONS = {
    "patch": {"reboot": {"choices": ["needed", "never", "always"]}},
    "deploy": {"shiftmaster_version": {"pattern": r"\w+", "like": "2.1.0"}},
    "rotate": {"secrets": {"choices": ["database", "django"], "several": True}},
    "loose": {"anything": {"like": "x"}},
}


def params(**more):
    """Small words of which each part can be broken."""
    made = {
        "prefix": "P",
        "organization": "O",
        "language": "ja",
        "timezone": "Asia/Tokyo",
        "run_options": RUN_OPTIONS,
        "plain": {
            "credential_type": [
                {
                    "name": "Slack",
                    "kind": "cloud",
                    "inputs": {"fields": [{"id": "url"}], "required": ["url"]},
                    "injectors": {
                        "file": {"template.url": "{{ url }}"},
                        "env": {"SLACK_FILE": "{{ tower.filename.url }}"},
                    },
                }
            ],
            "credential": [
                {"name": "vault", "credential_type": "Vault"},
                {"name": "Slack", "credential_type": "Slack"},
            ],
            "project": [{"name": "repository", "scm_type": "git", "credential": ""}],
            "inventory": [{"name": "hosts"}],
            "inventory_source": [{"name": "repository", "inventory": "hosts", "source_project": "repository"}],
            "notification_template": [{"name": "mail", "wanted": False}],
        },
        "job_defaults": {"project": "repository", "inventory": "hosts", "credentials": ["vault", "Slack"]},
        "job_variables": {"shiftmaster_source_cache": "/srv/cache"},
        "jobs": [
            {
                "name": "patch",
                "description": "d",
                "playbook": "playbooks/patch.yml",
                "survey": [{"name": "reboot", "default": "never", "en": "Reboots", "ja": "再起動"}],
            },
            {
                "name": "deploy",
                "description": "d",
                "playbook": "deploy.yml",
                "survey": [{"name": "shiftmaster_version", "en": "Version", "ja": "バージョン"}],
                "options": {"job_tags": "release"},
            },
            {
                "name": "rotate",
                "description": "d",
                "playbook": "playbooks/rotate.yml",
                "variables": {"secrets": "django"},
            },
        ],
        "workflows": [
            {
                "name": "w",
                "description": "d",
                "nodes": [
                    {
                        "id": "first",
                        "job": "patch",
                        "values": {"reboot": "never"},
                        "success": ["second"],
                        "always": ["last"],
                    },
                    {"id": "second", "job": "rotate", "always": ["last"]},
                    {"id": "last", "job": "rotate"},
                ],
            }
        ],
        "schedules": [
            {"name": "nightly", "job": "patch", "frequency": "daily", "at": "02:30", "values": {"reboot": "never"}},
            {"name": "weekly", "workflow": "w", "frequency": "weekly", "days": ["SU"], "at": "03:00", "enabled": False},
        ],
        "teams": [{"name": "operators", "jobs": ["patch"], "workflows": ["w"], "approves": ["w"]}],
        "removed": {},
    }
    return {**copy.deepcopy(made), **more}


def wrong(words, there=lambda playbook: True):
    return awx_objects.problems(words, there)


# --- objects --------------------------------------------------------------------------------------------------------


def test_valid_data_make_objects_in_order():
    assert wrong(params()) == []
    made = awx_objects.objects(params())
    assert tuple(made) == awx_objects.KINDS
    assert {kind: len(made[kind]) for kind in ("job_template", "schedule", "role", "notification_template")} == {
        "job_template": 3, "schedule": 2, "role": 3, "notification_template": 0,
    }  # fmt: skip
    assert [fault for kind, items in made.items() for item in items for fault in table_faults(kind, item)] == []


def test_names_always_have_the_prefix():
    made = awx_objects.objects(params())
    assert made["credential"] == [
        {"name": "P: vault", "credential_type": "Vault", "organization": "O"},
        {"name": "P: Slack", "credential_type": "P: Slack", "organization": "O"},
    ]
    template = made["job_template"][1]
    assert template["credentials"] == ["P: vault", "P: Slack"] and template["project"] == "P: repository"
    assert template["job_tags"] == "release" and template["playbook"] == "deploy.yml"
    assert made["inventory_source"][0]["source_project"] == "P: repository"
    # AWX's own credential of the project has AWX's own name, and none where none is needed.
    assert "credential" not in made["project"][0]


def test_the_same_data_make_the_same_objects():
    words = params()
    first = json.dumps(awx_objects.objects(words))
    assert json.dumps(awx_objects.objects(words)) == first and words == params()


def test_surveys_offer_what_the_playbooks_take_and_nothing_else():
    made = awx_objects.objects(params())["job_template"]
    assert made[0]["survey_spec"] == {
        "name": "P: patch",
        "description": "",
        "spec": [
            {
                "variable": "reboot",
                "question_name": "再起動",
                "question_description": "",
                "required": True,
                "type": "multiplechoice",
                "choices": "needed\nnever\nalways",
                "default": "never",
            }
        ],
    }
    version = made[1]["survey_spec"]["spec"][0]
    assert (version["type"], version["min"], version["max"], version["required"]) == ("text", 1, 200, True)
    words = params()
    words["jobs"][1]["survey"][0]["min"] = 7
    assert awx_objects.objects(words)["job_template"][1]["survey_spec"]["spec"][0]["min"] == 7
    assert made[2]["survey_enabled"] is False and "survey_spec" not in made[2]
    assert awx_objects.choices_of(RUN_OPTIONS["rotate"]["secrets"]) == ["database,django", "database", "django"]


def test_successor_nodes_are_created_first_and_once():
    nodes = awx_objects.objects(params())["workflow_job_template_node"]
    assert [node["identifier"] for node in nodes] == ["last", "second", "first"]
    assert nodes[2]["success_nodes"] == ["second"] and nodes[2]["always_nodes"] == ["last"]
    assert nodes[2]["extra_data"] == {"reboot": "never"} and nodes[2]["unified_job_template"] == "P: patch"


def test_teams_may_start_named_objects_and_lose_all_other_roles():
    common = {"teams": ["P: operators"], "lookup_organization": "O"}
    assert awx_objects.objects(params())["role"] == [
        {**common, "role": "execute", "state": "present", "job_templates": ["P: patch"], "workflows": ["P: w"]},
        {**common, "role": "execute", "state": "absent", "job_templates": ["P: deploy", "P: rotate"]},
        {**common, "role": "approval", "state": "present", "workflows": ["P: w"]},
    ]


def test_objects_named_as_removed_are_removed():
    made = awx_objects.objects(params(removed={"job_template": ["old"], "team": ["night"], "schedule": ["gone"]}))
    assert made["job_template"][-1] == {"name": "P: old", "state": "absent", "organization": "O"}
    assert made["team"][-1]["state"] == "absent" and made["schedule"][-1] == {"name": "P: gone", "state": "absent"}
    assert len(wrong(params(removed={"job_template": ["patch"]}))) == 1
    assert len(wrong(params(removed={"project": ["repository"]}))) == 1


APPROVED = {
    "name": "a",
    "description": "d",
    "survey": ["shiftmaster_version"],
    "nodes": [
        {"id": "approve", "approval": "Deploy?", "success": ["deploy"]},
        {"id": "deploy", "job": "deploy"},
    ],
}


def test_a_workflow_has_a_survey_and_passes_its_values_to_its_jobs():
    words = params()
    words["workflows"].append(copy.deepcopy(APPROVED))
    assert wrong(words) == []
    made = awx_objects.objects(words)
    workflow, nodes = made["workflow_job_template"][1], made["workflow_job_template_node"][-2:]
    assert [one["variable"] for one in workflow["survey_spec"]["spec"]] == ["shiftmaster_version"]
    assert "approval_node" not in nodes[0] and "extra_data" not in nodes[0]
    assert nodes[1]["approval_node"] == {"name": "approve", "description": "Deploy?", "timeout": 0}
    assert "unified_job_template" not in nodes[1] and nodes[1]["success_nodes"] == ["deploy"]
    assert [fault for kind, items in made.items() for item in items for fault in table_faults(kind, item)] == []


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"survey": []}, 1),
        ({"survey": ["shiftmaster_version", "nothing"]}, 1),
        ({"nodes": [{"id": "x"}], "survey": []}, 1),
        ({"nodes": [{"id": "x", "job": "rotate", "approval": "?"}], "survey": []}, 1),
    ],
)
def test_a_workflow_that_awx_would_not_run_is_found(change, faults):
    words = params()
    words["workflows"].append({**copy.deepcopy(APPROVED), **change})
    assert len(wrong(words)) == faults, wrong(words)


def test_a_schedule_cannot_start_a_workflow_with_a_survey():
    words = params()
    words["workflows"].append(copy.deepcopy(APPROVED))
    words["schedules"][1]["workflow"] = "a"
    assert len(wrong(words)) == 1


def test_channels_can_be_others_than_the_default():
    words = params()
    words["plain"]["notification_template"] = [{"name": "mail"}]
    words["jobs"][0]["options"] = {"notification_templates_error": [], "notification_templates_success": ["mail"]}
    made = awx_objects.objects(words)["job_template"]
    assert (made[0]["notification_templates_error"], made[0]["notification_templates_success"]) == ([], ["P: mail"])
    assert made[1]["notification_templates_error"] == ["P: mail"]


def test_preset_values_are_validated_like_typed_values():
    assert awx_objects.given(params()) == [
        {"title": "job rotate", "playbook": "rotate", "values": {"secrets": "django"}},
        {"title": "schedule nightly", "playbook": "patch", "values": {"reboot": "never"}},
        {"title": "workflow w, node first", "playbook": "patch", "values": {"reboot": "never"}},
    ]


# --- what is wrong --------------------------------------------------------------------------------------------------


def broken(words, path, value):
    """The words with one part replaced; the path is of names and numbers."""
    inner = words
    for step in path[:-1]:
        inner = inner[step]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return words


@pytest.mark.parametrize(
    "path, value, sentence",
    [
        (["jobs", 0, "survey", 0, "default"], "sometimes", "job patch: reboot=sometimes is none of: needed, never"),
        (["jobs", 0, "survey", 0, "name"], "kernel", "job patch: run_options.patch has no option kernel"),
        (["jobs", 0, "survey", 0, "ja"], "", "job patch: reboot has no question in ja"),
        (["jobs", 1, "name"], "patch", "jobs: patch is there twice"),
        (["jobs", 0, "variables"], {"reboot": "never"}, "job patch: reboot is given and in the survey"),
        (["jobs", 1, "options"], {"inventory": "other"}, "job deploy: there is no inventory other"),
        (["job_defaults", "credentials"], ["vault", "ssh"], "job_defaults: there is no credential ssh"),
        (["plain", "credential", 1, "credential_type"], "Teams", "credential Slack: there is no type Teams"),
        (["plain", "inventory_source", 0, "source_project"], "x", "inventory_source: there is no project x"),
        (["plain", "host"], [{"name": "h"}], "host is none of the kinds of plain objects"),
        (["plain", "credential_type", 0, "injectors", "env"], {"ANSIBLE_X": "1"}, "AWX does not inject ANSIBLE_X"),
        (["plain", "credential_type", 0, "injectors", "env"], {"PATH": "1"}, "AWX does not inject PATH"),
        (["plain", "credential_type", 0, "injectors", "file"], {"template.x": "{{ url }}"}, "no file template.url"),
        (["plain", "credential_type", 0, "injectors", "file"], {"template.url": "{{ uri }}"}, "there is no field uri"),
        (["plain", "credential_type", 0, "inputs", "required"], ["key"], "key is required and no field"),
        (["workflows", 0, "nodes", 2, "always"], ["first"], "it goes round in circles: first, last, second"),
        (["workflows", 0, "nodes", 2, "always"], ["fourth"], "workflow w: there is no node fourth"),
        (["workflows", 0, "nodes", 2, "job"], "backup", "workflow w: there is no job backup"),
        (["workflows", 0, "nodes", 0, "values"], {}, "workflow w: node first: reboot is not answered"),
        (["schedules", 0, "job"], "backup", "schedules: nightly: there is no job backup"),
        (["schedules", 0, "workflow"], "w", "schedule nightly: it names one job or one workflow"),
        (["schedules", 0, "values"], {"reboot": "never", "x": 1}, "x is not in the survey of job patch"),
        (["schedules", 0, "values"], {}, "schedule nightly: reboot is not answered"),
        (["schedules", 0, "at"], "25:00", "schedule nightly: at=25:00 is no time of day"),
        (["schedules", 0, "every"], 5, "schedule nightly: every=5: minutes, and nothing else"),
        (["schedules", 0, "frequency"], "hourly", "schedule nightly: frequency=hourly is none of"),
        (["schedules", 1, "days"], ["SO"], "schedule weekly: days=SO"),
        (["schedules", 1, "days"], None, "schedule weekly: days=: weekly, and nothing else"),
        (["schedules", 0, "monthday"], 31, "schedule nightly: monthday=31"),
        (["timezone"], "Asia/Edo", "there is no time zone Asia/Edo"),
        (["teams", 0, "workflows"], ["x"], "teams: operators: there is no workflow x"),
    ],
)  # fmt: skip
def test_each_error_is_named(path, value, sentence):
    found = wrong(broken(params(), path, value))
    assert [one for one in found if sentence in one], found


def test_a_survey_that_would_take_anything_is_refused():
    words = broken(params(), ["jobs", 2, "playbook"], "playbooks/loose.yml")
    words["jobs"][2].update(survey=[{"name": "anything", "en": "x", "ja": "x"}], variables={})
    assert "would take anything" in " ".join(wrong(words))


def test_playbooks_must_be_there():
    found = wrong(params(), lambda playbook: playbook != "deploy.yml")
    assert found == ["job deploy: there is no playbook deploy.yml"]


# --- schedules ------------------------------------------------------------------------------------------------------

NOW = datetime.datetime(2026, 11, 26, 6, 0, tzinfo=datetime.timezone.utc)  # Thursday, 15:00 in Tokyo


@pytest.mark.parametrize(
    "wish, rule, next_ones",
    [
        ({"frequency": "daily", "at": "02:30"}, "FREQ=DAILY;INTERVAL=1", ["2026-11-27 02:30", "2026-11-28 02:30"]),
        ({"frequency": "daily", "at": "15:01"}, "FREQ=DAILY;INTERVAL=1", ["2026-11-26 15:01", "2026-11-27 15:01"]),
        (
            {"frequency": "minutes", "every": 20},
            "FREQ=MINUTELY;INTERVAL=20",
            ["2026-11-26 15:20", "2026-11-26 15:40", "2026-11-26 16:00"],
        ),
        (
            {"frequency": "weekly", "days": ["SA", "MO"], "at": "01:05"},
            "FREQ=WEEKLY;INTERVAL=1;BYDAY=MO,SA",
            ["2026-11-28 01:05", "2026-11-30 01:05", "2026-12-05 01:05"],
        ),
        (
            {"frequency": "monthly", "monthday": 28, "at": "00:00"},
            "FREQ=MONTHLY;INTERVAL=1;BYMONTHDAY=28",
            ["2026-11-28 00:00", "2026-12-28 00:00", "2027-01-28 00:00", "2027-02-28 00:00"],
        ),
    ],
)
def test_schedule_rules_match_the_configured_times(wish, rule, next_ones):
    assert rrules.wish_problems(wish) == []
    text = rrules.build(wish, "Asia/Tokyo")
    assert text == f"DTSTART;TZID=Asia/Tokyo:20260101T{wish.get('at', '00:00').replace(':', '')}00 RRULE:{rule}"
    assert rrules.problems(text) == []
    found = rrules.next_timestamps(text, NOW, len(next_ones))
    assert [timestamp.strftime("%Y-%m-%d %H:%M") for timestamp in found] == next_ones
    assert {str(timestamp.tzinfo) for timestamp in found} == {"Asia/Tokyo"}


def test_the_time_of_day_stays_when_the_clock_is_moved():
    """Local time is meant: in Berlin the clock goes forward on 2026-03-29."""
    text = rrules.build({"frequency": "daily", "at": "04:00"}, "Europe/Berlin")
    found = rrules.next_timestamps(text, datetime.datetime(2026, 3, 27, 12, tzinfo=datetime.timezone.utc), 3)
    assert [timestamp.astimezone(datetime.timezone.utc).hour for timestamp in found] == [3, 2, 2]


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=DAILY",
        "FREQ=SECONDLY;INTERVAL=5",
        "FREQ=WEEKLY;INTERVAL=1;BYDAY=1MO",
        "FREQ=YEARLY;INTERVAL=1;BYYEARDAY=100",
        "FREQ=DAILY;INTERVAL=1;COUNT=1000",
        "FREQ=DAILY;INTERVAL=1;COUNT=5;UNTIL=20270101T000000Z",
        "FREQ=MONTHLY;INTERVAL=1;BYMONTHDAY=31",
        "FREQ=DAILY;INTERVAL=0",
    ],
)
def test_values_that_awx_would_reject_are_found_before(rule):
    assert rrules.problems(f"DTSTART;TZID=Asia/Tokyo:20260101T023000 RRULE:{rule}") != []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RRULE:FREQ=DAILY;INTERVAL=1",
        "DTSTART:20260101T023000 RRULE:FREQ=DAILY;INTERVAL=1",
        "DTSTART;TZID=Asia/Tokyo:20260101T023000 RRULE:FREQ=DAILY;INTERVAL=1 RRULE:FREQ=DAILY;INTERVAL=1",
        "DTSTART;TZID=Asia/Edo:20260101T023000 RRULE:FREQ=DAILY;INTERVAL=1",
        "DTSTART;TZID=Asia/Tokyo:20261301T023000 RRULE:FREQ=DAILY;INTERVAL=1",
        "DTSTART;TZID=Asia/Tokyo:20260101T023000 RRULE:FREQ=DAILY;INTERVAL=1;INTERVAL=1",
    ],
)
def test_invalid_schedule_rules_are_found(text):
    assert len(rrules.problems(text)) == 1
