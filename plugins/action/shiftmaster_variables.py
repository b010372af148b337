"""Action `shiftmaster_variables`: everything about variables that can be known to be wrong before a host is touched.

Runs on the controller only. Options:

    roles       names of roles, whose meta/argument_specs.yml define the types and whose defaults fill in
    roles_here  those of them whose values are checked, too (all)
    known       names that begin like a role's and are no role's option; those of group_vars/all, next to the roles, are
                known without it
    group_variables  how names begin that only group_vars/all has
    required    [{name, hint}]: variables that must be set and not empty
    ranges      {name or end of a name: [least, most, further values]} of numbers; see group_vars/all/ranges.yml
    elsewhere   names that end like those of a host's directories (_dir, _root, _directory) and are none
    rules_of    names of roles whose rules (vars/preflight.yml) are evaluated
    rules       names of variables that hold further rules

A rule is {that, msg}, with `when` and `loop` as a task has them: msg is a problem where `that` does not hold, or always
without `that`. For the roles what is required and missing has a value: it is one problem, and not several.

Returns problems, a list of sentences; of values only directories and numbers, since others may be secrets. And
directories, [{name, path}]: those that the site chose, for a check on the host. And rules_of.

    extra_only  check the names of the variables alone that were given with -e: a host need not be reached for that;
                returns these names as given, too

    role        alone, in a role: evaluate its rules and fail, unless the run's preflight (preflight_variables) did
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import ansible.module_utils
import yaml
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible.utils.vars import load_extra_vars

ROOT = Path(__file__).resolve().parents[2]

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.shiftmaster.host import system_paths

# How the variables end that name a directory which root creates, gives away or cleans up.
DIRECTORY_ENDINGS = ("_dir", "_root", "_directory")


# The parser in C, where PyYAML has it: each host's check reads these files again.
class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads texts as templates, as Ansible does with a role's files."""


Loader.add_constructor("tag:yaml.org,2002:str", lambda loader, node: trust_as_template(loader.construct_scalar(node)))


def load(role, name):
    path = ROOT / "roles" / role / name
    return yaml.load(path.read_text(encoding="utf-8"), Loader) or {} if path.exists() else {}


def rules_of(role):
    return load(role, "vars/preflight.yml").get("__%s_preflight" % role, [])


def rule_problems(rules, templar, variables, explained=False):
    """Return a sentence for each rule that is broken; explained: what is wrong with the variables is known already."""
    found, errors = [], []

    def holds(conditions):
        return all(map(templar.evaluate_conditional, conditions if isinstance(conditions, list) else [conditions]))

    for rule in rules:
        try:
            templar.available_variables = variables
            for item in templar.template(rule["loop"]) if "loop" in rule else [None]:
                templar.available_variables = {**variables, "item": item}
                if holds(rule.get("when", [])) and not ("that" in rule and holds(rule["that"])):
                    found.append(str(templar.template(rule["msg"])).strip())
        except Exception as error:
            # The error's own text may show a value: that of a password, too.
            errors.append("a rule cannot be evaluated (%s): %s" % (type(error).__name__, rule["msg"]))
    # A value of which another rule has a problem cannot always be used.
    return list(dict.fromkeys(found or ([] if explained else errors)))


def unknown_names(names, expected, prefixes):
    """Return a sentence for each name that begins like ours and is not expected."""
    problems = []
    for name in sorted(names):
        if name in expected or not name.startswith(prefixes):
            continue
        near = difflib.get_close_matches(name, expected, n=1, cutoff=0.8)
        problems.append("there is no variable %s%s" % (name, " (did you mean %s?)" % near[0] if near else ""))
    return problems


def type_problems(role, options, values):
    """Return the sentences of Ansible's own validation of one role's options."""
    result = ArgumentSpecValidator(options).validate(values)
    return ["role %s: %s" % (role, message) for message in result.error_messages]


def shape_problem(name, kind):
    word, shape = ("list", '["..."]') if kind == "list" else ("mapping", '{"...": "..."}')
    return "%s must be a %s: %s: %s in a file, or -e '{\"%s\": %s}'" % (name, word, name, shape, name, shape)


def range_of(name, ranges):
    """Return the range of a number: that of its name, else of the longest end of it; None where there is none."""
    words = re.split(r"(?<=[_.])", name)
    ends = ("".join(words[number:]) for number in range(len(words)))
    return next((ranges[end] for end in ends if end in ranges), None)


def range_problems(name, option, value, ranges):
    """Return a sentence for each number in an option's value that is out of its range."""
    if isinstance(value, list):
        elements = dict(option, type=option.get("elements"))
        return [text for one in value for text in range_problems(name, elements, one, ranges)]
    if isinstance(value, dict):
        return [
            text
            for key, below in (option.get("options") or {}).items()
            if key in value
            for text in range_problems("%s.%s" % (name, key), below, value[key], ranges)
        ]
    allowed = range_of(name, ranges) if option.get("type") in ("int", "float") else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return []  # Its type is evaluated elsewhere.
    if not allowed or allowed[0] <= number <= allowed[1] or number in allowed[2:]:
        return []
    more = "".join(", or %s" % one for one in allowed[2:])
    return ["%s=%s is out of its range: %s to %s%s" % (name, value, allowed[0], allowed[1], more)]


def directories_of(options, values, defaults, elsewhere):
    """Return {name: path} of a role's directories on the host that are not those of its defaults."""
    return {
        name: value
        for name, value in values.items()
        if name.endswith(DIRECTORY_ENDINGS)
        and name not in elsewhere
        and options[name].get("type") in ("path", "str")
        and value
        and value != defaults.get(name)
    }


def check(arguments, task_vars, templar_of, basedir, extra=()):
    """Return what the action returns; templar_of(variables) returns a templar; extra are the names given with -e."""
    directories = {}
    problems, expected, specs, defaults = [], set(arguments.get("known") or []), {}, {}
    prefixes = tuple("%s_" % begin for begin in arguments["roles"] + (arguments.get("group_variables") or []))
    extra_only = arguments.get("extra_only", False)
    if extra_only and not any(name.startswith(prefixes) for name in extra):
        return {"changed": False, "problems": []}
    for role in arguments["roles"]:
        # The first entry point is the role's: "configure" of one without tasks/main.yml.
        entries = load(role, "meta/argument_specs.yml").get("argument_specs") or {"": {}}
        specs[role] = next(iter(entries.values())).get("options", {})
        expected.update(specs[role])
        defaults[role] = {**load(role, "defaults/main.yml"), **load(role, "vars/main.yml")}
    wired = {}
    for path in (Path(basedir) / "group_vars/all").glob("*.yml"):
        # Names alone: what they hold may be encrypted. But for a list or a mapping in one line, which is a plain value.
        text = path.read_text(encoding="utf-8")
        expected.update(re.findall(r"^(\w+):", text, re.MULTILINE))
        shaped = re.findall(r"^(\w+): (\[.*\]|\{.*\})$", text, re.MULTILINE)
        wired.update({name: yaml.safe_load(value) for name, value in shaped})
    problems += unknown_names(extra if extra_only else task_vars, expected, prefixes)
    if extra_only:
        return {"changed": False, "problems": problems}

    templar = templar_of(task_vars)
    missing = {}
    for entry in arguments.get("required") or []:
        try:
            filled = templar.template(task_vars.get(entry["name"])) if entry["name"] in task_vars else None
        except Exception as error:
            problems.append("variable %s cannot be read: %s" % (entry["name"], error))
            continue
        if not filled:
            missing[entry["name"]] = entry["name"].ljust(40, "x")
            problems.append(
                "variable %s is not set%s" % (entry["name"], ": " + entry["hint"] if entry.get("hint") else "")
            )
    # For the roles such a variable has its default: one problem, and not one for each of its letters.
    for name, default in wired.items():
        given = task_vars.get(name, default)
        try:
            given = templar.template(given) if isinstance(given, str) else given
        except Exception:
            continue  # The roles that read it name it.
        if not isinstance(given, type(default)):
            problems.append(shape_problem(name, "list" if isinstance(default, list) else "dict"))
            task_vars = {**task_vars, name: default}
    for name in arguments.get("rules") or []:
        problems += rule_problems(task_vars[name], templar, task_vars)
    for role in arguments.get("roles_here", arguments["roles"]):
        options, values, before = specs[role], {}, len(problems)
        # As the role itself will see them: with its own defaults, not with another role's.
        known = {**defaults[role], **task_vars, **missing}
        templar = templar_of(known)
        for name in options:
            if name not in task_vars:
                continue
            try:
                values[name] = templar.template(task_vars[name])
            except Exception as error:
                problems.append("variable %s cannot be read: %s" % (name, str(error).splitlines()[0]))
        # Ansible's validation accepts text for a list, which the role would then read letter by letter.
        for name in [name for name, value in values.items() if isinstance(value, str)]:
            if options[name].get("type") in ("list", "dict"):
                problems.append(shape_problem(name, options[name]["type"]))
                values[name] = defaults[role].get(name, [] if options[name]["type"] == "list" else {})
        # What the site left out is the default's business, and tested there.
        given = {*task_vars, *defaults[role]}
        wanted = {
            name: dict(option, required=option.get("required") and name not in given)
            for name, option in options.items()
            if name in values or option.get("required")
        }
        problems += type_problems(role, wanted, values)
        for name, value in values.items():
            problems += range_problems(name, options[name], value, arguments.get("ranges") or {})
        directories.update(directories_of(options, values, defaults[role], arguments.get("elsewhere") or []))
        if role in (arguments.get("rules_of") or []):
            # The values as they are now, instead of a template for each rule and item.
            known = {**known, **values, "role_path": str(ROOT / "roles" / role)}
            known["ansible_search_path"] = [known["role_path"], *task_vars["ansible_search_path"]]
            found = rule_problems(rules_of(role), templar, known, explained=len(problems) > before)
            problems += ["%s: %s" % (role, problem) for problem in found]
    refused = {name: system_paths.refusal(str(path)) for name, path in directories.items()}
    problems += ["%s=%s %s" % (name, directories[name], why) for name, why in refused.items() if why]
    return {
        "changed": False,
        "problems": problems,
        "directories": [{"name": name, "path": str(path)} for name, path in directories.items() if not refused[name]],
        "rules_of": arguments.get("rules_of") or [],
    }


def check_role(role, task_vars, templar_of):
    """Fail by a role's rules, unless the preflight of the run has evaluated them."""
    if role not in task_vars.get("preflight_variables", {}).get("rules_of", []):
        problems = rule_problems(rules_of(role), templar_of(task_vars), task_vars)
        if problems:
            raise AnsibleActionFail("Role %s changed nothing. What is wrong: %s" % (role, "; ".join(problems)))
    return {"changed": False}


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        result, arguments = super().run(tmp, task_vars), self._task.args

        def templar_of(variables):
            return self._templar.copy_with_new_env(available_variables=variables)

        if "role" in arguments:
            return {**result, **check_role(arguments["role"], task_vars, templar_of)}
        basedir, extra = self._loader.get_basedir(), load_extra_vars(self._loader)
        checked = check(arguments, task_vars, templar_of, basedir, extra)
        return {**result, **checked, **({"given": sorted(extra)} if arguments.get("extra_only") else {})}
