"""A stub for one module of the collection awx.awx: AWX is a file, and each call is noted.

An action, which takes the module's place and needs no process of its own.

test_configure.py writes it once for each module, with its name and its options from the recorded table. No line is the
collection's. As the real ones, for that is what idempotence hangs on:
- options that the module does not have, or of another type, are refused; so is a name of something that is not there
- secrets come back as $encrypted$, and count as changed each time, unless update_secrets is false or state is exists
- a dictionary of an object (inputs) is replaced, not merged; in it $encrypted$ keeps the secret that is stored, and is
  rejected where none is (seen on AWX 24.6.1)
- in check mode nothing is written; update_project posts, and counts, in check mode too
- kind of an inventory that is not given differs from the stored '', and is written in each run
- in check mode a node, a schedule or a right of a template that is not there ends the module
- service_key of PagerDuty is shown in clear
- inventory_source_update posts and counts each time, in check mode too
- a right is held or not; state absent revokes it, and removes other objects

The file holds the secrets themselves, as AWX's database does; what is compared is what AWX shows.
"""

import json
import os

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

KIND = ""
OPTIONS = {}
LOGIN = {
    "controller_host": {"type": "str"},
    "controller_oauthtoken": {"type": "str", "no_log": True},
    "validate_certs": {"type": "bool"},
}
# Not fields of the object: how the module goes about it.
MANNERS = {*LOGIN, "state", "update_secrets", "wait", "interval", "update_project", "lookup_organization"}
REFERENCES = {
    "organization": "organization",
    "project": "project",
    "source_project": "project",
    "inventory": "inventory",
    "execution_environment": "execution_environment",
    "credentials": "credential",
    "labels": "label",
    "notification_templates_error": "notification_template",
    "notification_templates_success": "notification_template",
    "notification_templates_approvals": "notification_template",
    "workflow_job_template": "workflow_job_template",
    "job_templates": "job_template",
    "workflows": "workflow_job_template",
    "teams": "team",
}
SECRETS = ("vault_password", "ssh_key_data", "url", "routing_key", "password", "token")
ENCRYPTED = "$encrypted$"


def hidden(value):
    """As AWX shows it."""
    if isinstance(value, dict):
        return {key: ENCRYPTED if key in SECRETS and inner else hidden(inner) for key, inner in value.items()}
    return value


def could_be_same(old, new):
    if isinstance(old, dict) and isinstance(new, dict):
        return set(old) == set(new) and all(could_be_same(old[key], new[key]) for key in new)
    return old == ENCRYPTED or old == new


def key_of(options):
    if KIND == "workflow_job_template_node":
        return "%(workflow_job_template)s / %(identifier)s" % options
    return options["name"] if "name" in options else json.dumps(options, sort_keys=True)


def rights_of(options):
    for kind in ("job_templates", "workflows"):
        for name in options.get(kind) or []:
            yield "%s / %s / %s / %s" % (options["teams"], options["role"], kind, name)


def missing(world, options):
    for option, kind in REFERENCES.items():
        if option in options and not (option == "organization" and KIND == "organization"):
            names = options[option] if isinstance(options[option], list) else [options[option]]
            yield from ("%s %s" % (kind, name) for name in names if name not in world.get(kind, {}))
    for option in ("success_nodes", "failure_nodes", "always_nodes"):
        for name in options.get(option) or []:
            if "%s / %s" % (options["workflow_job_template"], name) not in world.get("workflow_job_template_node", {}):
                yield "node %s" % name
    if "unified_job_template" in options:
        if options["unified_job_template"] not in {
            **world.get("job_template", {}),
            **world.get("workflow_job_template", {}),
        }:
            yield "template %s" % options["unified_job_template"]
    if KIND == "credential" and options["credential_type"] not in (
        "Vault",
        "Machine",
        *world.get("credential_type", {}),
    ):
        yield "type %s" % options["credential_type"]


def stored(old, new):
    """The stored form of a new value."""
    if isinstance(new, dict):
        before = old if isinstance(old, dict) else {}
        return {key: stored(before.get(key), inner) for key, inner in new.items()}
    # An empty value of a channel is kept.
    if new == ENCRYPTED and not old and KIND == "credential":
        raise AnsibleActionFail("400: %s is a reserved keyword" % ENCRYPTED)
    return old if new == ENCRYPTED else new


def differs(there, options, params):
    if there is None:
        return True
    there = hidden(there)
    if params.get("state") == "exists":
        return False
    strict = params.get("update_secrets") is not False
    return any(
        there.get(name) != value and (strict or not could_be_same(there.get(name), value))
        for name, value in options.items()
    )


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        requested = ArgumentSpecValidator({**OPTIONS, **LOGIN}).validate(json.loads(json.dumps(self._task.args)))
        if requested.error_messages:
            raise AnsibleActionFail("; ".join(requested.error_messages))
        params, check = requested.validated_parameters, self._task.check_mode
        directory = os.environ["AWX_STUB"]
        path = os.path.join(directory, "world.json")
        world = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as stream:
                world = json.load(stream)
        options = {name: value for name, value in params.items() if value is not None and name not in MANNERS}
        if KIND == "inventory":
            options.setdefault("kind", None)
        absent = list(missing(world, options))
        if absent:
            raise AnsibleActionFail("Not found: %s" % ", ".join(absent))
        there = world.setdefault(KIND, {}).get(key_of(options))
        gone = params.get("state") == "absent"
        held = set(rights_of(options)) if KIND == "role" else set()
        if KIND == "role":
            changed = bool(held & set(world[KIND])) if gone else bool(held - set(world[KIND]))
        elif gone:
            changed = there is not None
        else:
            changed = differs(there, options, params) or bool(check and params.get("update_project"))
            changed = changed or KIND == "inventory_source_update"
        with open(os.path.join(directory, "calls.jsonl"), "a", encoding="utf-8") as stream:
            login = {name: params.get(name) for name in LOGIN}
            call = {"kind": KIND, "options": options, "login": login, "changed": changed, "check": check}
            stream.write(json.dumps(call) + "\n")
        if changed and not check:
            if KIND == "role":
                for name in held:
                    world[KIND].pop(name, None) if gone else world[KIND].update({name: {}})
            elif gone:
                del world[KIND][key_of(options)]
            else:
                before = world[KIND].setdefault(key_of(options), {})
                before.update(stored(before, options))
                if KIND == "inventory":
                    before["kind"] = before["kind"] or ""
            with open(path, "w", encoding="utf-8") as stream:
                json.dump(world, stream)
        # As a module does: with -vvv its arguments are shown, but for the token, which it marks.
        shown = {**self._task.args, "controller_oauthtoken": "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"}
        result.update(changed=changed, invocation={"module_args": shown})
        # Also in check mode of what is there.
        if there is not None or not check:
            result["id"] = 1
        return result
