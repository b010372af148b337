#!/usr/bin/python
# Which secrets are in use, and which ones servers accept.
from __future__ import annotations

DOCUMENTATION = r"""
---
module: shiftmaster_credentials
short_description: Report which secrets a release uses, and whether servers accept logins
description:
  - Compares secrets with what a release has in its environment, and tries logins to PostgreSQL and Redis.
  - It reads only, and never returns a secret. A server that cannot be reached makes it fail where O(logins) requires
    it, and counts as no refusal where O(log_in) does.
options:
  environment_file: {description: The environment of a release., type: path}
  environment_keys:
    description: Names in it, as M(shiftmaster_health) takes them.
    type: dict
    default: {}
  values:
    description: Secrets to look for in the environment; a URL may hold them too.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: What it is called in the result., type: str, required: true}
      current: {description: The value that is to be in use., type: str, required: true}
      previous:
        description: Values of before; what is no list of texts is one of RV(problems).
        type: raw
        default: []
      secret: {description: "What it belongs to, for O(selected).", type: str, default: ""}
      in_environment: {description: Whether the application has it., type: bool, default: true}
  selected:
    description: The secrets that are to be rotated; a value of another one must be in use already.
    type: list
    elements: str
  log_in:
    description: Whether to log in to the database and to each Redis that the environment names.
    type: bool
    default: false
  compare_file:
    description: The environment of another release, with which O(compare_names) are compared.
    type: path
  compare_names:
    description: Names of the environment. Of C(SHIFTMASTER_SECRET_KEY_FALLBACKS) each key is compared.
    type: list
    elements: str
    default: []
  logins:
    description: Logins to try.
    type: list
    elements: dict
    default: []
    suboptions:
      kind: {description: The server., type: str, required: true, choices: [postgresql, redis]}
      host: {description: Where it is., type: str, default: localhost}
      port: {description: Its port., type: int, required: true}
      user: {description: The user., type: str, required: true}
      password: {description: The password., type: str, required: true}
      database: {description: The database of PostgreSQL., type: str, default: postgres}
      sslmode: {description: The TLS mode of libpq., type: str, default: prefer}
      ca_file:
        description: The authority of the server's certificate; Redis is queried by TLS where it is given.
        type: str
        default: ""
  timeout_seconds: {description: Limit of one login., type: float, default: 10}
attributes:
  check_mode:
    support: full
    description: It reads only.
  diff_mode:
    support: none
    description: It changes nothing.
"""

EXAMPLES = r"""
- name: Check whether a release's logins are still accepted
  shiftmaster_credentials:
    environment_file: /var/www/shiftmaster/active/release/env
    log_in: true
"""

RETURN = r"""
in_use:
  description: >-
    For each of O(values) V(current), the place of a previous one in its list as V(previous 0), V(other), or V(absent)
    where the environment is not there.
  returned: always
  type: dict
problems: {description: Sentences about O(values) that are wrong., returned: always, type: list, elements: str}
known:
  description: For each of O(values) whether its current value is in the environment, be it as an accepted one besides.
  returned: always
  type: dict
refused: {description: Servers that refuse a login of the environment., returned: always, type: list, elements: str}
differing: {description: Those of O(compare_names) that differ., returned: always, type: list, elements: str}
accepted: {description: "Whether each of O(logins) is accepted.", returned: always, type: list, elements: bool}
"""

import json
import urllib.parse

from ansible.module_utils.shiftmaster.health import checks
from ansible.module_utils.shiftmaster.host import envfile, probe
from ansible.module_utils.shiftmaster.host.quiet import SECRET, TEXT, QuietModule, given, list_of

FALLBACKS = "SHIFTMASTER_SECRET_KEY_FALLBACKS"


def read(path):
    """Return the assignments of an environment file, None where it is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            return envfile.parse(stream.read())
    except FileNotFoundError:
        return None


def forms(secret):
    """A secret as an environment may contain it: itself, or escaped in a URL."""
    return {secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe="")}


def holds(value, secret):
    """Whether a value is the secret, or a URL with it as its password."""
    if value == secret:
        return True
    return "://" in value and any(":%s@" % form in value for form in forms(secret))


def in_use(environment, value):
    """Which of a secret's values the environment has."""
    if environment is None:
        return "absent"
    texts = [text for name, text in environment.items() if name != FALLBACKS]
    previous = {"previous %d" % number: secret for number, secret in enumerate(value["previous"])}
    for place, secret in {"current": value["current"], **previous}.items():
        if secret and any(holds(text, secret) for text in texts):
            return place
    return "other"


def problems(environment, value, selected):
    """Sentences about a secret with which its rotation cannot be right."""
    name, previous = value["name"], value["previous"]
    if not isinstance(previous, list) or not all(isinstance(secret, str) for secret in previous):
        return ["%s_previous is not a list of texts: [value, ...]" % name]
    found = []
    if not all(previous):
        found.append("%s_previous holds an empty value" % name)
    if value["current"] in previous:
        found.append(
            "%s_previous holds the value of %s itself: the new value belongs into %s, those of before into the list"
            % (name, name, name)
        )
    if found or not value["in_environment"] or environment is None or not value["current"]:
        return found
    now = in_use(environment, value)
    if now == "other":
        found.append(
            "%s is not what the live release uses, and %s_previous does not hold that either: put it there"
            % (name, name)
        )
    elif now != "current" and selected is not None and value["secret"] not in selected:
        found.append("%s is new, too: name %s in secrets, or put the value in use back" % (name, value["secret"]))
    return found


def fallbacks(environment):
    try:
        return json.loads(environment.get(FALLBACKS) or "[]")
    except ValueError:
        return []


def differing(environment, other, names):
    """A sentence for each name by which the environment would bring back what the other one no longer has."""
    found = []
    for name in names:
        if name == FALLBACKS:
            if set(fallbacks(environment)) - set(fallbacks(other)):
                found.append("it accepts an earlier secret key of Django")
        elif name in environment and environment[name] != other.get(name):
            found.append("its %s is not the one in use" % name)
    return found


def accepted(call):
    """Whether a login is accepted; raises ProbeError where it is unknown."""
    try:
        call()
    except probe.ProbeError as error:
        # In an installation with several hosts pg_hba.conf names each login: one that has ended is nobody's.
        if error.reason in ("auth", "hba"):
            return False
        raise
    return True


def refused(environment, context, timeout):
    """A sentence for each server that refuses what the environment logs in with."""
    found, calls = [], []
    if any(context.keys[key] in environment for key in ("database_url", "database_user")):
        target = checks.postgres_target({}, context)
        calls.append(("the database rejects its password", lambda: probe.postgres_ping(target, timeout)))
    urls = {name: text for name, text in environment.items() if text.startswith(("redis://", "rediss://"))}
    for name, url in sorted(urls.items()):
        calls.append(("Redis rejects the password of its %s" % name, redis_login(url, timeout)))
    for sentence, call in calls:
        try:
            if not accepted(call):
                found.append(sentence)
        except probe.ProbeError:
            continue  # A server that does not respond rejects no login; the gate will fail.
    return found


def redis_login(url, timeout):
    target = probe.parse_redis_url(url)
    return lambda: probe.redis_ping(target, timeout)


def login(entry, timeout):
    if entry["kind"] == "postgresql":
        words = [str(entry[key]) for key in ("host", "port", "database", "user", "password", "sslmode")]
        target = probe.PostgresTarget(*words, entry["ca_file"] or None)
        return lambda: probe.postgres_ping(target, timeout)
    credentials = "%s:%s" % (urllib.parse.quote(entry["user"], safe=""), urllib.parse.quote(entry["password"], safe=""))
    scheme, options = "redis", ""
    if entry["ca_file"]:
        scheme, options = "rediss", "?ssl_ca_certs=%s" % urllib.parse.quote(entry["ca_file"])
    return redis_login("%s://%s@%s:%d/0%s" % (scheme, credentials, entry["host"], entry["port"], options), timeout)


def run(params):
    environment = read(params["environment_file"]) if params["environment_file"] else None
    other = read(params["compare_file"]) if params["compare_file"] else None
    values = params["values"]
    context = checks.Context(params["environment_file"], params["environment_keys"])
    wrong = [text for value in values for text in problems(environment, value, params["selected"])]
    result = dict(changed=False, problems=wrong, in_use={}, known={}, refused=[], differing=[], accepted=[])
    if not result["problems"]:
        for value in values:
            if value["in_environment"]:
                result["in_use"][value["name"]] = in_use(environment, value)
                current = in_use(environment, dict(value, previous=[])) == "current"
                result["known"][value["name"]] = current or value["current"] in fallbacks(environment or {})
    if environment is not None and params["log_in"]:
        result["refused"] = refused(environment, context, params["timeout_seconds"])
    if environment is not None and other is not None:
        result["differing"] = differing(environment, other, params["compare_names"])
    for entry in params["logins"]:
        try:
            result["accepted"].append(accepted(login(entry, params["timeout_seconds"])))
        except probe.ProbeError as error:
            raise probe.ProbeError(error.state, error.reason, "%s of %s: %s" % (entry["user"], entry["kind"], error))
    return result


def main():
    values = list_of(
        name=TEXT,
        current=SECRET,
        previous=given([], type="raw", no_log=True),
        secret=given("", no_log=False),
        in_environment=given(True),
    )
    logins = list_of(
        kind=dict(TEXT, choices=["postgresql", "redis"]),
        host=given("localhost"),
        port=dict(TEXT, type="int"),
        user=TEXT,
        password=SECRET,
        database=given("postgres"),
        sslmode=given("prefer"),
        ca_file=given(""),
    )
    module = QuietModule(
        argument_spec={
            "environment_file": {"type": "path"},
            "environment_keys": given({}, no_log=False),
            "values": values,
            "selected": {"type": "list", "elements": "str"},
            "log_in": given(False),
            "compare_file": {"type": "path"},
            "compare_names": given([], elements="str"),
            "logins": logins,
            "timeout_seconds": given(10.0),
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module.params))
    except (probe.ProbeError, ValueError, OSError) as error:
        module.fail_json(msg="the login could not be tried: %s" % error)


if __name__ == "__main__":
    main()
