"""Action `shiftmaster_options`: rejects invalid values of a run's options.

Runs on the controller only, so a bad value is refused before a host is queried. Options:

    options   {name: {choices, several, pattern, like, needed, begun, directory}}, as in group_vars/all/options.yml
    values    {name: value}; without it, the run's variables of these names
    problems  what else is wrong with the run's variables, as sentences
    playbook  its name: an option without or with that prefix (fail_on for diagnose_fail_on) is rejected

Fails with one sentence for each rejected value. An absent value is not validated, an empty one only where
the option is needed.
"""

from __future__ import annotations

import datetime
import difflib
import re
from pathlib import Path

import ansible.module_utils
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.host import system_paths


def text_of(value):
    """A value as it is typed: AWX and YAML make true and 2.1 of what a shell hands over as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def refusal(name, option, value):
    """Why this value is none, as a sentence, or an empty text."""
    text = text_of(value)
    if "choices" in option:
        parts = [part.strip() for part in text.split(",")] if option.get("several") else [text]
        unknown = [part for part in parts if part not in option["choices"]]
        if unknown:
            return "%s=%s is none of: %s" % (name, ",".join(unknown), ", ".join(option["choices"]))
    if "pattern" in option and isinstance(value, (bool, float)):
        return (
            "%s=%s was read as a number or as yes and no, and 2.10 would be 2.1: put it in quotes; in a survey of AWX, "
            "whose quotes Ansible does not see, type refs/tags/<version>, or the name of the release" % (name, text)
        )
    if "pattern" in option and not re.fullmatch(option["pattern"], text):
        return "%s=%s is not of the form of %s" % (name, ascii(text)[1:-1], option["like"])
    if option.get("directory") and text.startswith("/") and system_paths.refusal(text):
        return "%s=%s %s" % (name, text, system_paths.refusal(text))
    if option.get("begun") and text > latest_month():
        return "%s=%s has not begun, so there is nothing of it" % (name, text)
    return ""


def latest_month():
    """The month that it is where a day begins first; the site's zone is known only where the metrics are."""
    east = datetime.timezone(datetime.timedelta(hours=14))
    return datetime.datetime.now(east).strftime("%Y-%m")


def refusals(options, values):
    """A sentence for each value that is refused."""
    found = []
    for name in options:
        if name in values and text_of(values[name]).strip() == "":
            if options[name].get("needed"):
                found.append("%s is empty: omit it, or use one of: %s" % (name, ", ".join(options[name]["choices"])))
        elif name in values:
            found.append(refusal(name, options[name], values[name]))
    return [sentence for sentence in found if sentence]


def misnamed(options, names, playbook):
    """A sentence for each name that is nearly an option's: misspelt, with or without the playbook's word."""
    meant = {}
    for option in options:
        first, _underline, rest = option.partition("_")
        if rest and first in (playbook, "shiftmaster"):
            meant[rest] = option
        meant["%s_%s" % (playbook, option)] = option
    for name in names:
        # One letter of a short name is much of it: too for to.
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.85 if len(name) > 5 else 0.75)
        if name not in meant and near:
            meant[name] = near[0]
    return [
        "%s is no option of this playbook: %s is" % (name, meant[name])
        for name in names
        if name in meant and name not in options
    ]


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        options, values = self._task.args["options"], self._task.args.get("values")
        if values is None:
            # A value that is not used is not templated: a run's variables hold secrets.
            values = {name: self._templar.template(task_vars[name]) for name in options if name in task_vars}
            problems = misnamed(options, load_extra_vars(self._loader), self._task.args["playbook"])
        else:
            problems = []
        known = self._task.args.get("problems", [])
        problems = known + [one for one in problems if not any(one.split()[0] in other for other in known)]
        problems += refusals(options, values)
        if problems:
            raise AnsibleActionFail("Nothing was changed. What is wrong: %s" % "; ".join(problems))
        result.update(changed=False)
        return result
