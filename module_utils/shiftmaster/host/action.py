"""What action plugins that run on the controller alone have in common. No module imports it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys

from ansible import constants, context
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase

# How texts here name commands: `ansible-playbook [-i X] [playbooks/]NAME.yml`, `ansible GROUP --become|-m`.
PLAYBOOK = re.compile(r"(?<![\w./-])ansible-playbook(?: -i \S+)* ((?:playbooks/)?([a-z_]+)\.yml)")
AD_HOC = re.compile(r"(?<![\w./-])ansible (?=\S+ (?:--become|-m) )")


def runnable(text: str) -> str:
    """Names each command of Ansible in a text as this run was started, so that it reaches the same hosts.

    That is by ./shiftmaster, or by the same program, inventory and directory. A job of AWX has them in a container that
    ends with it.
    """
    if "AWX_PRIVATE_DATA_DIR" in os.environ:
        return text
    wrapper = os.environ.get("SHIFTMASTER_CALLED_AS")
    given = list(context.CLIARGS.get("inventory") or [])
    # ./shiftmaster names its inventory by the environment.
    given = [] if wrapper and given == list(constants.DEFAULT_HOST_LIST) else given
    options = "".join(" -i %s" % shlex.quote(os.path.relpath(one)) for one in given if "," not in one)
    if wrapper:
        # Both are the same text in a report that is processed again.
        text = PLAYBOOK.sub(lambda found: "%s %s%s" % (wrapper, found[2], options), text)
        text = text.replace("%s ansible%s " % (wrapper, options), "ansible ")
        return AD_HOC.sub(lambda _: "%s ansible%s " % (wrapper, options), text)
    directory = os.path.relpath(os.path.dirname(constants.CONFIG_FILE or "") or ".")

    def program(name: str) -> str:
        directory, own = os.path.split(sys.argv[0])
        path, found = os.path.join(directory, name), shutil.which(name)
        if not own.startswith("ansible") or not os.path.exists(path) or (found and os.path.samefile(found, path)):
            return name
        return shlex.quote(os.path.relpath(path))

    def playbook(found) -> str:
        path = shlex.quote(os.path.normpath(os.path.join(directory, found[1])))
        return "%s%s %s" % (program("ansible-playbook"), options, path)

    return AD_HOC.sub(lambda _: "%s%s " % (program("ansible"), options), PLAYBOOK.sub(playbook, text))


class Failed(Exception):
    """str() is why a task fails, as a sentence."""


class ControllerAction(ActionBase):
    """Validates the task's options by ARGUMENTS, and returns the result of perform(), without what is in secrets.

    Every failure is a result, as a module's is: `failed_when: false` lets no exception of an action pass.
    """

    _requires_connection = False
    ARGUMENTS: dict = {}

    def perform(self, parameters: dict) -> dict:
        raise NotImplementedError

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        validated = ArgumentSpecValidator(self.ARGUMENTS).validate(dict(self._task.args))
        self.secrets = set(validated._no_log_values)
        try:
            if validated.error_messages:
                raise Failed("wrong options: %s" % "; ".join(validated.error_messages))
            result = self.perform(validated.validated_parameters)
        except Failed as error:
            result = {"failed": True, "msg": str(error)}
        except Exception as error:
            result = {"failed": True, "msg": "%s: %s" % (type(error).__name__, error)}
        return remove_values({"changed": False, **result}, self.secrets)
