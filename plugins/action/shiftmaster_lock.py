"""Action `shiftmaster_lock`: the module of this name, with what the controller alone knows.

A lock that is taken names the process of this run. Where another run holds it, owner_alive shows whether that run's
process lives; null where this machine cannot know.
"""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils
from ansible.plugins.action import ActionBase

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.release import lock


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("state") == "present":
            arguments.setdefault("controller", lock.controller_identity())
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        if result.get("acquired") is False:
            result["owner_alive"] = lock.controller_alive(result["holder"].get("controller") or {})
        return result
