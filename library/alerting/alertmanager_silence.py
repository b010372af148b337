#!/usr/bin/python
"""Create, extend and end silences of an Alertmanager."""

DOCUMENTATION = r"""
module: alertmanager_silence
short_description: Silences of an Alertmanager, bounded in time and never for alerts that must always fire
description:
  - Creates a silence, or ends it, through Alertmanager's API v2 over HTTP or HTTPS with basic authentication.
  - A silence ends by itself. Its matchers must name what is silenced, and must not be able to match one of
    O(protected_alerts) unless O(maintenance=true).
  - A silence that a run made is found again by O(run_id), so that the run (or the one that cleans up after it) can end
    it without having kept its id.
  - Repeated with the same O(run_id) and matchers, it extends the silence where that ends too early, and changes nothing
    otherwise.
options:
  url: {description: "Address of the Alertmanager, for example V(https://mon1:9093).", type: str, required: true}
  user: {description: User of its basic authentication; without one none is sent., type: str, default: ""}
  password: {description: Password of that user., type: str, default: ""}
  ca_file: {description: Authority that vouches for its certificate; without one the host's authorities do., type: path}
  state: {description: Whether there is a silence., type: str, default: present, choices: [present, absent]}
  matchers:
    description:
      - What is silenced; all of them have to match. Needed for O(state=present).
      - Regular expressions are anchored by Alertmanager.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the label., type: str, required: true}
      operator: {description: How it is compared., type: str, default: "=", choices: ["=", "!=", =~, "!~"]}
      value: {description: With what., type: str, required: true}
  duration_seconds: {description: "When the silence ends by itself, counted from now.", type: int, default: 1800}
  comment: {description: Why; shown next to the silence. Needed for O(state=present)., type: str, default: ""}
  run_id:
    description:
      - Name of the run to which the silence belongs. It becomes a part of the comment.
      - With O(state=absent), every silence of this run is ended.
    type: str
    default: ""
  id: {description: "The silence to be ended, with O(state=absent).", type: str, default: ""}
  protected_alerts: {type: list, elements: str, default: [ShiftMasterDown, HighResponseTime], description: Alerts that
    no silence may match outside of maintenance.}
  maintenance: {type: bool, default: false, description: "Whether O(protected_alerts) may be silenced, since users see
    the maintenance page."}
  required:
    description:
      - Whether an Alertmanager that cannot be reached, or responds with an error, is a failure.
      - With V(false) it is a warning, and RV(reached) is false. Invalid arguments are a failure in any case.
    type: bool
    default: true
  timeout_seconds: {description: How long one question may take., type: int, default: 5}
attributes:
  check_mode: {description: It only reads., support: full}
  diff_mode: {description: The silence's end and comment; the silences that end., support: full}
"""

EXAMPLES = r"""
- name: Silence what the deploy causes
  alertmanager_silence:
    url: https://mon1.example.com:9093
    user: admin
    password: "{{ vault_monitoring_admin_password }}"
    ca_file: /etc/ssl/shiftmaster/ca.crt
    matchers:
      - {name: alertname, operator: "!~", value: ShiftMasterDown|HighResponseTime}
      - {name: instance, operator: "=~", value: app1|app2}
      - {name: service, operator: "=~", value: application|celery}
    duration_seconds: 900
    comment: deploy of 2.4.1
    run_id: 20260131-080000-4711
    required: false

- name: Remove the silence
  alertmanager_silence:
    url: https://mon1.example.com:9093
    state: absent
    run_id: 20260131-080000-4711
"""

RETURN = r"""
id: {returned: "with O(state=present), when Alertmanager was reached", type: str, description: The silence that is there
  now.}
ends_at: {returned: "with O(state=present), when Alertmanager was reached", type: str, description: When it ends by
  itself.}
ended: {description: The silences that were ended., returned: with O(state=absent), type: list, elements: str}
reached: {description: Whether Alertmanager could be queried., returned: always, type: bool}
problem: {description: Why it could not., returned: "when it could not, and O(required=false)", type: str}
"""

import re

from ansible.module_utils.shiftmaster.host.quiet import TEXT, QuietModule, given, list_of
from ansible.module_utils.shiftmaster.monitoring.alertmanager import ARGUMENTS, Api, Failed, format_time
from ansible.module_utils.shiftmaster.monitoring.metrics import timestamp_of

CREATED_BY, LONGEST_SECONDS = "ansible", 7200
# What both Go and Python read alike. Something like [[:alpha:]] or \pL means another thing in Python, so that the
# evaluation below would be wrong about it.
JUDGEABLE = re.compile(r"[A-Za-z0-9_:|().*+?^$ -]*\Z")


# --- pure parts -------------------------------------------------------------------------------------------------------


def matches(matcher, value):
    """Whether one matcher accepts a label's value; None where that is unknown here."""
    operator, wanted = matcher["operator"], matcher["value"]
    if operator in ("=", "!="):
        return (value == wanted) == (operator == "=")
    if not JUDGEABLE.match(wanted):
        return None
    try:
        found = re.fullmatch(wanted, value) is not None
    except re.error:
        return None
    return found == (operator == "=~")


def matcher_problems(matchers, protected, maintenance):
    """Why such a silence is refused: a list of sentences."""
    problems = []
    # Alertmanager's own condition is weaker: any one matcher that an absent label does not satisfy.
    scope = [one for one in matchers if one["operator"] in ("=", "=~") and matches(one, "") is not True]
    if not scope:
        problems.append("no matcher names what is silenced: one with = or =~ that an absent label does not satisfy")
    everything = [one["name"] for one in scope if one["operator"] == "=~" and one["value"] in (".*", ".+")]
    if scope and len(everything) == len(scope):
        problems.append("the matcher of %s stands for everything" % ", ".join(everything))
    if maintenance:
        return problems
    of_name = [one for one in matchers if one["name"] == "alertname"]
    for alert in protected:
        evaluated = [matches(one, alert) for one in of_name]
        if False in evaluated:
            continue
        if None in evaluated:
            problems.append("whether it silences %s is unknown: write the alerts' names with | between" % alert)
        else:
            what = "it would silence %s, which is for maintenance only: add alertname !~ %s"
            problems.append(what % (alert, "|".join(protected)))
    return problems


def argument_problems(params):
    """Everything that is wrong with the arguments."""
    if params["state"] == "absent":
        if not params["id"] and not params["run_id"]:
            return ["id or run_id has to name the silence to end"]
        return []
    problems = matcher_problems(params["matchers"], params["protected_alerts"], params["maintenance"])
    if not params["comment"].strip():
        problems.append("comment shows why")
    seconds = params["duration_seconds"]
    if not 0 < seconds <= LONGEST_SECONDS:
        problems.append("duration_seconds is %d: a silence lasts between 1 and %d seconds" % (seconds, LONGEST_SECONDS))
    return problems


def as_api(matchers):
    """Matchers in the form of the API, in one order."""
    keys, found = ("name", "value", "isRegex", "isEqual"), []
    for one in matchers:
        found.append((one["name"], one["value"], one["operator"] in ("=~", "!~"), one["operator"] in ("=", "=~")))
    return [dict(zip(keys, one)) for one in sorted(found)]


def comparable(matchers):
    """The same form for Alertmanager's data; isEqual is absent where an old version wrote it."""
    found = sorted(matchers, key=lambda one: (one["name"], one["value"]))
    return [(one["name"], one["value"], bool(one["isRegex"]), one.get("isEqual", True)) for one in found]


def mark(run_id):
    return "[run %s]" % run_id


def with_mark(comment, run_id):
    return "%s %s" % (comment.strip(), mark(run_id)) if run_id else comment.strip()


def living(silences):
    return [one for one in silences if one.get("status", {}).get("state") in ("active", "pending")]


def of_run(silences, run_id):
    return [one for one in living(silences) if one.get("comment", "").endswith(mark(run_id))]


def plan(silences, params, now):
    """The body of the request that is needed (None: nothing is), and the silence that is there already."""
    wanted = as_api(params["matchers"])
    ends = now + params["duration_seconds"]
    comment = with_mark(params["comment"], params["run_id"])

    def ours(one):
        ours = one["comment"].endswith(mark(params["run_id"])) if params["run_id"] else one["comment"] == comment
        return ours and one["createdBy"] == CREATED_BY and comparable(one["matchers"]) == comparable(wanted)

    mine = [one for one in living(silences) if ours(one)]
    mine.sort(key=lambda one: timestamp_of(one["endsAt"]))
    present = mine[-1] if mine else None
    # A minute less is the same silence: a task that is repeated at once requests a slightly later end.
    if present and timestamp_of(present["endsAt"]) >= ends - min(60, params["duration_seconds"] / 2):
        return None, present
    starts = present["startsAt"] if present else format_time(now)
    body = {"matchers": wanted, "startsAt": starts, "endsAt": format_time(ends)}
    body.update(createdBy=CREATED_BY, comment=comment)
    if present:
        body["id"] = present["id"]
    return body, present


# --- talking to Alertmanager ------------------------------------------------------------------------------------------


def present(module, api):
    params = module.params
    body, there = plan(api.listed("/silences"), params, api.now())
    result = {"changed": body is not None, "reached": True}
    if body is None:
        return dict(result, id=there["id"], ends_at=there["endsAt"])
    result["diff"] = {
        "before": "silenced until %s\n" % there["endsAt"] if there else "",
        "after": "silenced until %s: %s\n" % (body["endsAt"], body["comment"]),
    }
    if module.check_mode:
        return dict(result, id=there["id"] if there else "", ends_at=body["endsAt"])
    response = api.call("/silences", "POST", body)
    if not isinstance(response, dict) or not response.get("silenceID"):
        raise Failed("it did not name the silence that it made")
    return dict(result, id=response["silenceID"], ends_at=body["endsAt"])


def absent(module, api):
    params = module.params
    if params["id"]:
        found = api.call("/silence/" + params["id"], fine=(200, 404))
        silences = living([found] if isinstance(found, dict) else [])
    else:
        silences = of_run(api.listed("/silences"), params["run_id"])
    names = sorted(one["id"] for one in silences)
    if not module.check_mode:
        for name in names:
            api.call("/silence/" + name, "DELETE", fine=(200, 404))
    result = {"changed": bool(names), "reached": True, "ended": names}
    if names:
        result["diff"] = {"before": "".join("silence %s\n" % name for name in names), "after": ""}
    return result


def argument_spec():
    return {
        **ARGUMENTS,
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "matchers": list_of(name=TEXT, operator=given("=", choices=["=", "!=", "=~", "!~"]), value=TEXT),
        "duration_seconds": {"type": "int", "default": 1800},
        "comment": {"type": "str", "default": ""},
        "run_id": {"type": "str", "default": ""},
        "id": {"type": "str", "default": ""},
        "protected_alerts": {"type": "list", "elements": "str", "default": ["ShiftMasterDown", "HighResponseTime"]},
        "maintenance": {"type": "bool", "default": False},
        "required": {"type": "bool", "default": True},
    }


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    problems = argument_problems(module.params)
    if problems:
        module.fail_json(msg="Not silenced: %s." % "; ".join(problems))
    try:
        result = (present if module.params["state"] == "present" else absent)(module, Api(module.params))
    except Failed as error:
        problem = "Alertmanager: %s" % error
        if module.params["required"]:
            module.fail_json(msg=problem, reached=False)
        module.warn("%s; it goes on without." % problem)
        result = {"changed": False, "reached": False, "problem": problem}
        if module.params["state"] == "absent":
            result["ended"] = []
    module.exit_json(**result)


if __name__ == "__main__":
    main()
