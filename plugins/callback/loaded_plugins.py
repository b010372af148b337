import copy

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader, lookup_loader, test_loader

DOCUMENTATION = """
name: loaded_plugins
type: aggregate
short_description: Load Jinja's filters and tests once for a run
description:
  - Ansible starts a process for each task on each host. Each of them that meets the first filter loads all files of
    filters and tests again, which takes longer than most tasks of a run that changes nothing.
  - Loaded before the first task, all these processes find them there. It prints and changes nothing.
  - Ansible's lookup C(template) copies all variables deeply for each template, to add some to the copy. Here it copies
    the dictionary alone.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "loaded_plugins"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_start(self, playbook):
        for loader in (filter_loader, test_loader):
            for _ in loader.all():
                pass
        template = lookup_loader.get("ansible.builtin.template", class_only=True)
        template.run.__globals__["deepcopy"] = copy.copy
