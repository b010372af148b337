"""The module's modes over a driver with fixed responses; tests/postgres has them over a real one."""

from __future__ import annotations

import json

import pytest
import shiftmaster_migrations
import yaml
from ansible.module_utils.shiftmaster.release.releasecode import ReleaseCodeError

EXPANDS = (
    "from django.db import migrations, models\n"
    "class Migration(migrations.Migration):\n"
    "    operations = [migrations.AddField('roster', 'note', models.TextField(null=True))]\n"
)
REMOVES = EXPANDS.replace("AddField('roster', 'note', models.TextField(null=True))", "RemoveField('roster', 'note')")
ADD = {"operation": "AddField", "describe": "Add field note to roster", "reversible": True}


def inspection(source=None, applied=(), known=()):
    pending = [{"app": "a", "name": "0002", "atomic": True, "replaces": [], "operations": [ADD]}] if source else []
    return {
        "pending": pending,
        "sources": {"a": {"0002": source}} if source else {},
        "vendor": "postgresql",
        "applied": [{"app": "a", "name": name} for name in applied],
        "known": [{"app": "a", "name": name, "replaces": []} for name in known],
    }


class Code:
    """Stub of the drivers: responds in turn, keeps the requests, and counts the processes."""

    def __init__(self, *responses):
        self.responses, self.requests, self.users, self.started, self.running = list(responses), [], [], 0, 0

    def __call__(self, code, module, environment, seconds):
        stub = self

        class Driver:
            def call(self, request, timeout):
                stub.requests.append((code.path, request, timeout))
                response = stub.responses.pop(0)
                if isinstance(response, Exception):
                    raise response
                return response

            def close(self):
                stub.running -= 1

        self.users.append(code.user)
        self.started, self.running = self.started + 1, self.running + 1
        return Driver()


def run(code, mode, check=False, **options):
    values = {name: spec.get("default") for name, spec in documented()["options"].items()}
    values.update(dict({"mode": mode, "release": "/r/2", "target_release": "/r/1"}, **options))
    return shiftmaster_migrations.Runner(values, check, code).run()


def documented():
    return yaml.safe_load(shiftmaster_migrations.DOCUMENTATION)


def test_plan_changes_nothing_and_sends_one_request():
    code = Code(inspection(EXPANDS, ["0001"]))
    result = run(code, "plan")
    assert not result["changed"] and result["allowed"] and result["safe_to_rollback"]
    assert result["pending"][0]["describe"] == ["Add field note to roster"] and result["applied"] == ["a.0001"]
    assert result["diff"]["after"] == "a.0002 (expand)\n    Add field note to roster\n"
    assert [request["op"] for _, request, _ in code.requests] == ["plan"]


def test_apply_passes_on_the_evaluated_plan_and_the_limits():
    code = Code(inspection(EXPANDS), {"done": [{"app": "a", "name": "0002"}], "repaired": [], "applied": []})
    result = run(code, "apply", lock_timeout_seconds=3, timeout_seconds=99)
    assert result["changed"] and result["done"] == ["a.0002"]
    _, request, timeout = code.requests[1]
    assert request == {
        "op": "apply",
        "expected": [["a", "0002"]],
        "handlers": False,
        "lock_wait_seconds": 60,
        "lock_timeout_seconds": 3,
        "limit_seconds": 104,
    }
    assert timeout == 99 and set(code.users) == {"shiftmaster"}


def test_one_process_plans_and_applies():
    code = Code(inspection(EXPANDS), {"done": [], "repaired": [], "applied": []})
    run(code, "apply")
    assert (len(code.requests), code.started, code.running) == (2, 1, 0)


def test_a_plan_names_what_the_database_has_beyond_the_release():
    result = run(Code(inspection(EXPANDS, ["0001", "0003"], ["0001", "0002"])), "plan")
    assert [record["name"] for record in result["ahead"]] == ["0003"]
    assert run(Code(inspection(EXPANDS, ["0001"], ["0001", "0002"])), "plan")["ahead"] == []


@pytest.mark.parametrize("lived_with, unchanged", [(["a.0001"], True), (["a.0001", "a.0002"], False), ([], False)])
def test_a_plan_reports_whether_the_database_matches_the_live_release(tmp_path, lived_with, unchanged):
    (tmp_path / "manifest.json").write_text(json.dumps({"applied_when_live": lived_with}))
    result = run(Code(inspection(EXPANDS, ["0001"], ["0001", "0002"])), "plan", target_release=str(tmp_path))
    assert result["unchanged"] is unchanged
    half = dict(inspection(EXPANDS, ["0001"], ["0001", "0002"]), half=[{"app": "a", "name": "0002"}])
    assert not run(Code(half), "plan", target_release=str(tmp_path))["unchanged"]


def test_without_pending_migrations_one_request_is_sent_and_nothing_changes():
    code = Code(inspection())
    assert not run(code, "apply")["changed"] and len(code.requests) == 1


def test_check_mode_of_apply_only_plans():
    code = Code(inspection(EXPANDS))
    assert run(code, "apply", check=True)["changed"] and len(code.requests) == 1
    assert not run(Code(inspection()), "apply", check=True)["changed"]


def test_contract_is_refused_before_the_database_is_touched():
    code = Code(inspection(REMOVES))
    with pytest.raises(shiftmaster_migrations.Refused, match="a.0002 .contract") as caught:
        run(code, "apply")
    assert len(code.requests) == 1 and caught.value.details["pending"][0]["class"] == "contract"
    assert not caught.value.details["changed"]


@pytest.mark.parametrize("option", ["allow_contract", "first_deploy"])
def test_contract_is_applied_where_it_is_allowed(option):
    code = Code(inspection(REMOVES), {"done": [{"app": "a", "name": "0002"}], "repaired": [], "applied": []})
    assert run(code, "apply", **{option: True})["changed"]


def test_a_failure_returns_what_was_done():
    code = Code(
        inspection(EXPANDS),
        {
            "failure": {"kind": "migration_failed", "message": "It failed.", "hint": "Do that.", "half_applied": True},
            "done": [],
            "repaired": [],
            "applied": [{"app": "a", "name": "0001"}],
        },
    )
    with pytest.raises(shiftmaster_migrations.Refused, match="It failed. Do that.") as caught:
        run(code, "apply")
    assert caught.value.details["changed"] and caught.value.details["applied"] == ["a.0001"]


def test_a_release_that_never_served_reverses_what_it_has_applied(tmp_path):
    """Its gate failed after its migrations: the live release, which is the target, has no file of them."""
    live, failed = tmp_path / "20260101T000000Z-1111111", tmp_path / "20261201T000000Z-2222222"
    (live / "source").mkdir(parents=True)
    directory = failed / "source/a/migrations"
    directory.mkdir(parents=True)
    (directory / "0002.py").write_text(REMOVES)
    reply = {"done": [], "repaired": [], "applied": []}
    code = Code(inspection(applied=["0001", "0002"], known=["0001"]), reply)
    run(code, "reverse", release=str(live), target_release=str(live))
    assert code.requests[-1][0] == str(failed) and code.requests[-1][1]["op"] == "reverse"


@pytest.mark.parametrize("mode", ["plan", "apply"])
def test_half_applied_migrations_are_reported(mode):
    """So that the only release that can undo it is not pruned."""
    half = {**inspection(EXPANDS), "half": [{"app": "b", "name": "0003"}]}
    code = Code(half, {"done": [{"app": "a", "name": "0002"}], "repaired": [], "applied": []})
    assert run(code, mode)["half"] == ["b.0003"]


def test_compare_queries_the_target_and_falls_back_to_the_newer_code():
    code = Code(inspection(applied=["0001"], known=["0001"]))
    assert run(code, "compare")["safe_to_rollback"] and code.requests[0][0] == "/r/1"
    code = Code(ReleaseCodeError("no python"), inspection(applied=["0001"], known=["0001"]))
    result = run(code, "compare")
    assert code.requests[1][0] == "/r/2" and "no python" in result["warnings"][0]
    assert not result["safe_to_rollback"]  # There are no files of /r/1 here.
    with pytest.raises(ReleaseCodeError):
        run(Code(ReleaseCodeError("no python")), "compare", release=None)


def test_reverse_keeps_migrations_that_the_target_knows_or_tolerates(monkeypatch):
    monkeypatch.setattr(shiftmaster_migrations.migrations, "applied_when_live", lambda _release: ["gone.0001"])
    code = Code(
        inspection(applied=["0001"], known=["0001"]),
        {"done": [{"app": "a", "name": "0002"}], "repaired": [], "applied": []},
    )
    result = run(code, "reverse")
    release, request, _ = code.requests[1]
    assert release == "/r/2" and request["keep"] == [["a", "0001"], ["gone", "0001"]] and not request["dry_run"]
    assert result["changed"] and result["safe_to_rollback"] and result["done"] == ["a.0002"]


def test_check_mode_of_reverse_is_a_dry_run():
    code = Code(
        inspection(applied=["0001"], known=["0001"]),
        {"done": [], "pending": [{"app": "a", "name": "0002"}], "repaired": [], "applied": []},
    )
    result = run(code, "reverse", check=True)
    assert code.requests[1][1]["dry_run"] and result["changed"] and "Would unapply a.0002" in result["reason"]


def test_the_documentation_parses_and_names_every_return_value():
    returned = yaml.safe_load(shiftmaster_migrations.RETURN)
    result = run(Code(inspection(EXPANDS)), "plan")
    assert set(result) - {"changed", "diff"} <= set(returned)
    result = run(
        Code(inspection(applied=["0001"], known=["0001"]), {"done": [], "repaired": [], "applied": []}), "reverse"
    )
    assert set(result) - {"changed", "diff", "warnings"} <= set(returned)
    assert yaml.safe_load(shiftmaster_migrations.EXAMPLES)


def test_documentation_and_arguments_agree(monkeypatch):
    seen = {}

    class Module:
        def __init__(self, **arguments):
            seen.update(arguments)
            raise SystemExit

    monkeypatch.setattr(shiftmaster_migrations, "AnsibleModule", Module)
    with pytest.raises(SystemExit):
        shiftmaster_migrations.main()
    options = documented()["options"]
    assert set(options) == set(seen["argument_spec"]) and seen["supports_check_mode"]
    for name, spec in seen["argument_spec"].items():
        for fact in ("type", "default", "choices", "elements", "required"):
            assert options[name].get(fact) == spec.get(fact), (name, fact)


def test_a_message_of_the_releases_code_is_printable_and_short():
    error = shiftmaster_migrations.Refused("\x1b]0;x\x07" + "a" * 1000000, output={"a\x9b": ["\u202e"]})
    assert str(error).startswith("?]0;x?a") and len(str(error)) == shiftmaster_migrations.MESSAGE
    assert error.details == {"output": {"a?": ["?"]}}
