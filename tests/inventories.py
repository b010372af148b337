"""The values of group_vars/all for an inventory: Ansible's own inventory, variables and templates, in this process."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play import Play
from ansible.plugins.loader import cache_loader, filter_loader, init_plugin_loader, lookup_loader
from ansible.release import __version__
from ansible.template import Templar, trust_as_template
from ansible.utils.collection_loader import AnsibleCollectionConfig
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager
from rendered import action

ROOT = Path(__file__).resolve().parent.parent
# Files of group_vars, {path: content}: the same for all inventories.
FILES: dict = {}


def parsed(source) -> InventoryManager:
    """Return an inventory; a broken one raises AnsibleError."""
    loader = DataLoader()
    loader.set_basedir(str(ROOT / "playbooks"))
    loader._FILE_CACHE = FILES
    return InventoryManager(loader=loader, sources=[str(source)])


def hosts_variables(source, pattern: str = "all", facts: dict | None = None, **extra):
    """Yield each host's name, its variables, and what makes a templar of variables; facts: {host: known facts}."""
    if AnsibleCollectionConfig.collection_finder is None:
        init_plugin_loader()
    filter_loader.add_directory(str(ROOT / "plugins/filter"))
    lookup_loader.add_directory(str(ROOT / "plugins/lookup"))
    inventory = parsed(source)
    loader = inventory._loader
    manager = VariableManager(loader=loader, inventory=inventory)
    manager._extra_vars = extra
    manager._options_vars = {"ansible_version": {"full": __version__}, "ansible_check_mode": False}
    # Not the facts that playbooks have left in .cache/.
    manager._fact_cache = cache_loader.get("ansible.builtin.memory")
    for host, known in (facts or {}).items():
        manager._fact_cache.set(host, known)
    hostvars = HostVars(inventory=inventory, variable_manager=manager, loader=loader)
    # Put together once for each host, since nothing changes them here.
    hostvars.raw_get = functools.cache(hostvars.raw_get)
    hosts = inventory.get_hosts(pattern)
    assert hosts, f"{source} has no host {pattern}"
    play = Play().load(
        {"name": "Show", "hosts": pattern, "gather_facts": False, "tasks": []}, variable_manager=manager, loader=loader
    )
    for host in hosts:
        known = manager.get_vars(play=play, host=host, _hosts=[one.name for one in hosts])
        known |= {"hostvars": hostvars, "ansible_search_path": [loader.get_basedir()]}
        yield host.name, known, lambda values: Templar(loader, variables=values)


def variables(source, names, pattern: str = "all", facts: dict | None = None, of: str = "", **extra) -> dict:
    """Return {host: {name: value}} as `ansible <pattern> -m debug` shows them; of topology_rules what they find.

    of: the one of these hosts whose values are wanted.
    """
    values = ", ".join(f"'{name}': {name}" for name in names if name != "topology_rules")
    wanted, found = trust_as_template("{{ {" + values + "} }}"), {}
    for host, known, templar_of in hosts_variables(source, pattern, facts, **extra):
        if of not in ("", host):
            continue
        # As JSON, since that is what a report of Ansible holds.
        found[host] = json.loads(json.dumps(templar_of(known).template(wanted)))
        if "topology_rules" in names:
            evaluate = action("shiftmaster_variables").rule_problems
            found[host]["topology_rules"] = evaluate(known["topology_rules"], templar_of(known), known)
    return found
