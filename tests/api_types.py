"""Writes what the roles send to Elasticsearch as TypeScript; tsc compares it with the types of the vendor's client.

    scripts/test_api_types

Each body is there a second time with one key misspelt, where tsc has to complain: an open type verifies nothing.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ansible.module_utils  # noqa: E402
from ansible.template import trust_as_template  # noqa: E402
from rendered import ROOT, templar  # noqa: E402

ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path.insert(0, str(ROOT / "library/logging"))
import elasticsearch_objects  # noqa: E402

VARIABLES = {
    **{f"elasticsearch_{name}_password": f"password-of-{name}-1" for name in ("admin", "writer", "kibana", "canary")},
    "elasticsearch_nodes": {"log1": "192.0.2.1", "log2": "192.0.2.2"},
    "elasticsearch_snapshot_repositories": {"logs": {"type": "fs", "settings": {"location": "/mnt/snapshots"}}},
}
OPTIONS = {
    "compilerOptions": {
        "strict": True, "noEmit": True, "skipLibCheck": True, "module": "node16", "moduleResolution": "node16",
        "target": "es2022", "types": [],
    },
    "files": ["bodies.ts"],
}  # fmt: skip


def templated(expression: str):
    return templar("elasticsearch", **VARIABLES).template(trust_as_template("{{ " + expression + " }}"))


def bodies():
    """Yield (type, what is sent with what is in its path, the place of a key that is misspelt in the second one)."""
    for name, body in templated("__elasticsearch_policies").items():
        body, phases = {"name": name, **body}, ("policy", "phases")
        yield "IlmPutLifecycleRequest", body, (*phases, "delete", "min_age")
        yield "IlmPutLifecycleRequest", body, (*phases, "hot", "actions", "rollover", "max_age")
    for name, body in templated("__elasticsearch_component_templates").items():
        body = {"name": name, **body}
        yield "ClusterPutComponentTemplateRequest", body, ("template", "mappings", "date_detection")
        yield "ClusterPutComponentTemplateRequest", body, ("template", "mappings", "properties", "message", "type")
    for name, body in templated("__elasticsearch_templates").items():
        for key in ("index_patterns", "priority", "data_stream", "composed_of"):
            yield "IndicesPutIndexTemplateRequest", {"name": name, **body}, (key,)
    for name, body in templated("elasticsearch_snapshot_repositories").items():
        body = {"name": name, "repository": body}
        yield "SnapshotCreateRepositoryRequest", body, ("repository", "settings", "location")
    for name in templated("__elasticsearch_streams"):
        yield "IndicesCreateDataStreamRequest", {"name": name}, ("name",)
    yield "ClusterPutSettingsRequest", {"persistent": templated("__elasticsearch_cluster_settings")}, ("persistent",)
    for user in templated("__elasticsearch_verified"):
        body = elasticsearch_objects.rights(elasticsearch_objects.merged(user["has"], user["has_not"]))
        yield "SecurityHasPrivilegesRequest", body, ("index", 0, "privileges")
    for name, role in templated("__elasticsearch_roles").items():
        yield "SecurityPutRoleRequest", {"name": name, **role}, ("indices", 0, "names")
    found = {"query": {"term": {"http.request.id": "0f"}}}
    yield "SearchRequest", {"index": "logs-shiftmaster.canary-demo", **found}, ("query", "term")


def misspelt(body, place):
    body = copy.deepcopy(body)
    found = body
    for key in place[:-1]:
        found = found[key]
    found[place[-1] + "x"] = found.pop(place[-1])
    return body


def text_of(body) -> str:
    return json.dumps(body, ensure_ascii=False)


def main() -> int:
    directory, lines = Path(sys.argv[1]), ["import type { estypes } from '@elastic/elasticsearch'"]
    count = 0
    for count, (kind, body, place) in enumerate(bodies(), 1):
        lines.append(f"export const body{count}: estypes.{kind} = {text_of(body)}")
        lines.append(f"// @ts-expect-error {'.'.join(map(str, place))} is misspelt")
        lines.append(f"export const wrong{count}: estypes.{kind} = {text_of(misspelt(body, place))}")
    (directory / "bodies.ts").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "tsconfig.json").write_text(json.dumps(OPTIONS), encoding="utf-8")
    done = subprocess.run(["node", "node_modules/typescript/bin/tsc", "--project", "."], cwd=directory, check=False)
    if done.returncode == 0:
        print(f"{count} bodies are of the published types, and none of them with a misspelt key")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
