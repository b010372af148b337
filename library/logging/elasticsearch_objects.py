#!/usr/bin/python
# State that is available through Elasticsearch's API only.
"""Keep policies, templates, data streams and settings of an Elasticsearch, and verify the rights of its users."""

from __future__ import annotations

DOCUMENTATION = r"""
module: elasticsearch_objects
short_description: Keep what an Elasticsearch holds next to documents
description:
  - Waits until the cluster is well, so that nodes that are changed one after the other never are two. Well is green;
    while nodes are missing that are still to come (O(all_nodes)) it is yellow too, since copies have no place yet. On a
    single node replicas of indices that are not C(logs-shiftmaster.*) do not count.
  - Lifecycle policies, index templates, component templates, snapshot repositories and cluster settings are compared
    with what is there, and written where something of them is missing or different. What is there besides stays.
  - Data streams are created where they are not there, since the user that writes may not create any.
  - Then each user of O(users) must be able to log in, and has to have the privileges that are listed here and none of
    those that it must not have; Elasticsearch itself is queried (C(_security/user/_has_privileges)).
options:
  url: {description: Elasticsearch's address., type: str, required: true}
  ca_file: {description: Authority of its certificate., type: path}
  user: {description: A user that may do all this., type: str, required: true}
  password: {description: The user's password., type: str, required: true}
  nodes: {description: How many nodes the cluster must have., type: int, default: 1}
  all_nodes: {type: int, default: 1, description: How many nodes it has once all are there. With fewer it may be
    yellow.}
  before_restart: {type: bool, default: false, description: "Wait until the node may be restarted, and do nothing else.
    The cluster has to be green, whatever its number of nodes; one that is the only node may be yellow, since no other
    node can have a copy. A silent node is unhealthy."}
  settings: {type: dict, default: {}, description: "Persistent settings of the cluster, such as
    V({cluster.routing.allocation.disk.watermark.low 80%})."}
  policies: {description: "Lifecycle policies, the body by name.", type: dict, default: {}}
  component_templates: {description: "Component templates, the body by name.", type: dict, default: {}}
  templates: {description: "Index templates, the body by name.", type: dict, default: {}}
  repositories: {description: "Snapshot repositories, the body by name.", type: dict, default: {}}
  data_streams: {description: Data streams that must be there., type: list, elements: str, default: []}
  users:
    description: Users whose rights are verified.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: The user., type: str, required: true}
      password: {description: The password., type: str, required: true}
      has: {description: "Privileges that the user must have, by index pattern.", type: dict, default: {}}
      has_not: {description: "Privileges that the user must not have, by index pattern.", type: dict, default: {}}
  timeout_seconds: {description: How long to wait for the health., type: int, default: 120}
attributes:
  check_mode: {support: full, description: Nothing changes; an Elasticsearch that does not respond yet is taken as still
    to come.}
  diff_mode: {description: A sentence for each change., support: full}
"""

EXAMPLES = r"""
- name: Run | Configure policies and templates
  elasticsearch_objects:
    url: https://localhost:9200
    ca_file: /etc/ssl/shiftmaster/ca.crt
    user: shiftmaster_admin
    password: "{{ elasticsearch_admin_password }}"
    policies:
      shiftmaster-logs: {policy: {phases: {delete: {min_age: 90d, actions: {delete: {}}}}}}
    data_streams: [logs-shiftmaster.app-production]
"""

RETURN = r"""
done: {returned: always, type: list, elements: str, description: "What was (in check mode would be) changed, a sentence
  each."}
version: {description: Elasticsearch's version., returned: when it responds, type: str}
status: {description: The cluster's health., returned: when it responds, type: str}
"""

import time

from ansible.module_utils.shiftmaster.host import json_api
from ansible.module_utils.shiftmaster.host.json_api import Api, Failed, NoResponse, keep, message_of, quoted
from ansible.module_utils.shiftmaster.host.quiet import SECRET, TEXT, QuietModule, given, list_of
from ansible.module_utils.shiftmaster.logging.elastic import cluster_health, lacks

# What is compared: where it is requested, how it is found in the response, and what it is called.
KINDS = {
    "policies": ("/_ilm/policy/%s", lambda response, name: response[name], "lifecycle policy"),
    "component_templates": (
        "/_component_template/%s",
        lambda response, name: response["component_templates"][0]["component_template"],
        "component template",
    ),
    "templates": (
        "/_index_template/%s",
        lambda response, name: response["index_templates"][0]["index_template"],
        "index template",
    ),
    "repositories": ("/_snapshot/%s", lambda response, name: response[name], "snapshot repository"),
}


def rights(has):
    """Return the body that queries privileges: {pattern: [privileges]}."""
    return {"index": [{"names": [pattern], "privileges": list(wanted)} for pattern, wanted in sorted(has.items())]}


def evaluated(response, has, has_not):
    """Return the differences between the response and the wanted state, a sentence each."""
    found = response.get("index", {})
    problems = []
    for pattern, wanted in sorted(has.items()):
        problems += [
            "may not %s in %s" % (privilege, pattern)
            for privilege in wanted
            if found.get(pattern, {}).get(privilege) is not True
        ]
    for pattern, refused in sorted(has_not.items()):
        problems += [
            "may %s in %s" % (privilege, pattern)
            for privilege in refused
            if found.get(pattern, {}).get(privilege) is not False
        ]
    return problems


def merged(has, has_not):
    found = {}
    for part in (has, has_not):
        for pattern, privileges in part.items():
            found.setdefault(pattern, [])
            found[pattern] += [privilege for privilege in privileges if privilege not in found[pattern]]
    return found


def well(health, nodes, all_nodes):
    """Whether a cluster is as it has to be after a change of one of its nodes."""
    missing = health["number_of_nodes"] < all_nodes
    good = ("green", "yellow") if missing else ("green",)
    return health["number_of_nodes"] >= nodes and health["status"] in good


def restartable(health):
    """Whether a node of the cluster may be away for a while."""
    return health["status"] == "green" or (health["status"] == "yellow" and health["number_of_nodes"] == 1)


class Elasticsearch(json_api.Instance):
    def healthy(self):
        """Return the health if it is the wanted one; nothing where no node responds before a restart."""
        try:
            health = cluster_health(self.api)
        except NoResponse:
            if self.p["before_restart"]:
                return {}
            raise
        nodes = (self.p["nodes"], self.p["all_nodes"])
        if restartable(health) if self.p["before_restart"] else well(health, *nodes):
            return health
        raise Failed("it is %s with %d nodes" % (health["status"], health["number_of_nodes"]))

    def keep(self, kind):
        path, of, called = KINDS[kind]
        for name, body in sorted(self.p[kind].items()):
            where = path % quoted(name)
            status, response = self.api.send(where)
            if status not in (200, 404):
                raise Failed("GET %s returns %s: %s" % (where, status, message_of(response)))
            missing = lacks(body, of(response, name)) if status == 200 else ["all of it"]
            if missing:
                self.done.append("%s %s: %s" % (called, name, ", ".join(missing[:5])))
                if not self.module.check_mode:
                    self.api.call(where, "PUT", body)

    def keep_settings(self):
        if not self.p["settings"]:
            return
        present = self.api.call("/_cluster/settings")["persistent"]
        missing = lacks(self.p["settings"], present)
        if missing:
            self.done.append("cluster settings: " + ", ".join(missing))
            if not self.module.check_mode:
                self.api.call("/_cluster/settings", "PUT", {"persistent": self.p["settings"]})

    def keep_streams(self):
        for name in self.p["data_streams"]:
            status, response = self.api.send("/_data_stream/" + quoted(name))
            if status == 404:
                self.done.append("data stream %s" % name)
                if not self.module.check_mode:
                    self.api.call("/_data_stream/" + quoted(name), "PUT")
            elif status != 200:
                raise Failed("the data stream %s: %s: %s" % (name, status, message_of(response)))

    def problems_of(self, user):
        body = rights(merged(user["has"], user["has_not"]))
        status, response = self.api.send(
            "/_security/user/_has_privileges", "POST", body, login=(user["name"], user["password"])
        )
        if status != 200:
            return ["cannot log in (%s): %s" % (status, message_of(response))]
        return evaluated(response, user["has"], user["has_not"])

    def prove(self):
        deadline = time.monotonic() + json_api.REREAD_SECONDS
        for user in self.p["users"]:
            problems = self.problems_of(user)
            while problems and time.monotonic() < deadline:
                time.sleep(1)
                problems = self.problems_of(user)
            if problems:
                raise Failed("the user %s %s" % (user["name"], "; ".join(problems)))
        status, _response = self.anonymous()
        if status not in (401, 403):
            raise Failed("an unknown client gets %s" % status)

    def anonymous(self):
        return Api(self.p["url"], self.p["ca_file"]).send("/_search")

    def run(self):
        wanted = "healthy with %d of %d nodes" % (self.p["nodes"], self.p["all_nodes"])
        if self.p["before_restart"]:
            wanted = "green, so that no node may be restarted"
        health = self.wait(self.healthy, "the cluster is not " + wanted)
        if self.p["before_restart"]:
            return {"version": None, "status": health.get("status")}
        version = self.api.call("/")["version"]["number"]
        self.keep_settings()
        for kind in KINDS:
            self.keep(kind)
        self.keep_streams()
        if not self.module.check_mode:
            self.prove()
        return {"version": version, "status": health["status"]}


def argument_spec():
    contents = dict.fromkeys(("settings", *KINDS), given({}))
    return {
        **json_api.ARGUMENTS,
        **contents,
        "nodes": given(1),
        "all_nodes": given(1),
        "before_restart": given(False),
        "data_streams": given([], elements="str"),
        "users": list_of(name=TEXT, password=SECRET, has=given({}), has_not=given({})),
        "timeout_seconds": given(120),
    }


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    keep(module, "Elasticsearch", Elasticsearch(module))


if __name__ == "__main__":
    main()
