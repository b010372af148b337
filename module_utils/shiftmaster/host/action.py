"""What action plugins that run on the controller alone have in common. No module imports it."""

from __future__ import annotations

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.plugins.action import ActionBase


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
