"""Action `shiftmaster_options`: refuses what nobody can mean among the values that people type with a run.

Runs on the controller only, so a bad value is refused before a host is asked. Options:

    options   {name: {choices, several, pattern, like}}, as in group_vars/all/options.yml
    values    {name: value}; without it, the run's variables of these names

Fails with one sentence for each value that is refused; a value that is empty or absent is not judged.
"""

from __future__ import annotations

import re

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


def text_of(value):
    """A value as it is typed: AWX and YAML make true and 2.1 of what a shell hands over as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def refusal(name, option, value):
    """Why this value is none, as a sentence, or an empty text."""
    said = text_of(value)
    if "choices" in option:
        parts = [part.strip() for part in said.split(",")] if option.get("several") else [said]
        strange = [part for part in parts if part not in option["choices"]]
        if strange:
            return "%s=%s is none of: %s" % (name, ",".join(strange), ", ".join(option["choices"]))
    if "pattern" in option and isinstance(value, (bool, float)):
        return (
            "%s=%s was read as a number or as yes and no, and 2.10 would be 2.1: put it in quotes; in a survey of AWX, "
            "whose quotes Ansible does not see, type refs/tags/<version>, or the name of the release" % (name, said)
        )
    if "pattern" in option and not re.fullmatch(option["pattern"], said):
        return "%s=%s is not of the form of %s" % (name, ascii(said)[1:-1], option["like"])
    return ""


def refusals(options, values):
    """A sentence for each value that is refused."""
    given = {name: value for name, value in values.items() if text_of(value).strip() != ""}
    return [
        sentence for name in options if name in given and (sentence := refusal(name, options[name], given[name])) != ""
    ]


class ActionModule(ActionBase):
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        options, values = self._task.args["options"], self._task.args.get("values")
        if values is None:
            # What is not asked for is not templated: a run's variables hold secrets.
            values = {name: self._templar.template(task_vars[name]) for name in options if name in task_vars}
        problems = refusals(options, values)
        if problems:
            raise AnsibleActionFail("Nothing was changed. What is wrong: %s" % "; ".join(problems))
        result.update(changed=False)
        return result
