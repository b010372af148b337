#!/usr/bin/python
# State that is available through Kibana's API only.
"""Keep saved objects of a Kibana (data views, searches, dashboards) as a file has them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kibana_objects
short_description: Keep Kibana's saved objects as code
description:
  - Waits until Kibana reports that it is available, exports the objects of the list and compares their attributes and
    references; when one is missing or different, all are imported again (C(_import?overwrite=true)). Others stay.
options:
  url: {description: Kibana's address., type: str, required: true}
  ca_file: {description: Authority of its certificate., type: path}
  user: {description: A user that may write saved objects., type: str, required: true}
  password: {description: The user's password., type: str, required: true}
  objects: {type: list, elements: dict, required: true, description: "Saved objects, each with type, id, attributes and
    references."}
  record: {type: path, description: "File in a directory of root's that keeps a digest of the objects and of what Kibana
    made of them. Newer versions of Kibana write objects in their own form, which differs from O(objects) in each run."}
  timeout_seconds: {type: int, default: 300, description: How long Kibana may take to be available; after an update it
    migrates what it has saved.}
attributes:
  check_mode: {support: full, description: Nothing changes; a Kibana that does not respond yet is taken as still to
    come.}
  diff_mode: {description: A sentence for each object., support: full}
"""

EXAMPLES = r"""
- name: Run | Configure searches and dashboard
  kibana_objects:
    url: https://localhost:5601
    ca_file: /etc/ssl/shiftmaster/ca.crt
    user: shiftmaster_admin
    password: "{{ kibana_admin_password }}"
    objects: "{{ lookup('ansible.builtin.file', 'objects.ndjson').splitlines() | map('from_json') }}"
"""

RETURN = r"""
done: {returned: always, type: list, elements: str, description: "What was (in check mode would be) changed, a sentence
  each."}
version: {description: Kibana's version., returned: when it responds, type: str}
"""

import hashlib
import json
import os
import uuid

from ansible.module_utils.shiftmaster.host import safe_files
from ansible.module_utils.shiftmaster.host.json_api import ARGUMENTS, Failed, Instance, keep, message_of
from ansible.module_utils.shiftmaster.host.quiet import QuietModule, given
from ansible.module_utils.shiftmaster.logging.elastic import lacks


def loaded(value):
    """Return attributes with their texts of JSON read: Kibana may write these in another order."""
    if isinstance(value, dict):
        return {key: loaded(inner) for key, inner in value.items()}
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def differing(wanted, exported):
    """Return a sentence for each object that is missing or different."""
    present = {(found.get("type"), found.get("id")): found for found in exported}
    problems = []
    for item in wanted:
        found = present.get((item["type"], item["id"]))
        called = "%s %s" % (item["type"], item["attributes"].get("title", item["id"]))
        if found is None:
            problems.append("%s is missing" % called)
            continue
        missing = lacks(loaded(item["attributes"]), loaded(found.get("attributes") or {}))
        if sorted_references(item) != sorted_references(found):
            missing.append("references")
        if missing:
            problems.append("%s differs: %s" % (called, ", ".join(missing[:5])))
    return problems


def digest(wanted, exported):
    """Return the evidence that Kibana converted these objects into those: newer versions change their form."""
    kept = [[item["type"], item["id"], loaded(item["attributes"]), sorted_references(item)] for item in exported]
    text = json.dumps([wanted, sorted(kept, key=lambda item: item[:2])], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sorted_references(item):
    return sorted((one["type"], one["id"], one["name"]) for one in item.get("references") or [])


def lines_of(text):
    """Return the objects of an export; the API returns lines of JSON, of which one alone has already been read."""
    if isinstance(text, dict):
        return [text]
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def form(objects):
    """Return (body, content type) of a form with the objects as a file."""
    boundary = uuid.uuid4().hex
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)
    head = '--%s\r\nContent-Disposition: form-data; name="file"; filename="objects.ndjson"\r\n' % boundary
    body = "%sContent-Type: application/ndjson\r\n\r\n%s\r\n--%s--\r\n" % (head, lines, boundary)
    return body.encode("utf-8"), "multipart/form-data; boundary=" + boundary


class Kibana(Instance):
    def version(self):
        """Return the version of a Kibana that is available."""
        response = self.api.call("/api/status")
        if response["status"]["overall"]["level"] != "available":
            raise Failed(message_of(response))
        return response["version"]["number"]

    def exported(self):
        body = {
            "objects": [{"type": item["type"], "id": item["id"]} for item in self.p["objects"]],
            "excludeExportDetails": True,
        }
        status, response = self.api.send("/api/saved_objects/_export", "POST", body)
        if status == 400:  # One of them is not there: then none is exported.
            return []
        if status != 200:
            raise Failed("the export returns %s: %s" % (status, message_of(response)))
        return lines_of(response)

    def run(self):
        version = self.wait(self.version, "it is not available")
        exported = self.exported()
        self.done = differing(self.p["objects"], exported)
        if self.done and self.recorded() == digest(self.p["objects"], exported):
            self.done = []
        if self.done and not self.module.check_mode:
            data, kind = form(self.p["objects"])
            response = self.api.call("/api/saved_objects/_import?overwrite=true", "POST", data=data, kind=kind)
            if not response.get("success"):
                raise Failed("objects are rejected: %s" % message_of(response))
            exported = self.exported()
            if len(exported) < len(self.p["objects"]):
                raise Failed("after the import %d objects are missing" % (len(self.p["objects"]) - len(exported)))
            if self.p["record"]:
                safe_files.write(self.p["record"], digest(self.p["objects"], exported).encode(), 0o644)
        return {"version": version}

    def recorded(self):
        """Return the digest of the last import; nothing where there was none."""
        try:
            with open(self.p["record"] or os.devnull, encoding="ascii") as stream:
                return stream.read()
        except FileNotFoundError:
            return ""


def argument_spec():
    objects = {"type": "list", "elements": "dict", "required": True}
    return {**ARGUMENTS, "objects": objects, "record": {"type": "path"}, "timeout_seconds": given(300)}


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    keep(module, "Kibana", Kibana(module, headers={"kbn-xsrf": "ansible"}))


if __name__ == "__main__":
    main()
