"""Report what a host has of an etcd cluster, as JSON: data, whether the cluster has formed, members that respond.

Arguments: the data directory, the file that is left where the cluster has formed.
"""

import json
import os
import subprocess
import sys

data, formed = sys.argv[1:]
try:
    # `member list` is answered by the majority alone.
    done = subprocess.run(
        ["etcdctl", "member", "list", "--write-out=json", "--command-timeout=4s", "--dial-timeout=2s"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    members = json.loads(done.stdout)["members"] if done.returncode == 0 else None
except (OSError, subprocess.TimeoutExpired, ValueError):
    members = None
found = {
    # Created by the first start, before this member has joined.
    "data": os.path.isdir(os.path.join(data, "member")),
    "formed": os.path.exists(formed),
    "responds": members is not None,
    "members": [
        {"id": "%x" % one["ID"], "name": one.get("name", ""), "peers": one.get("peerURLs", [])} for one in members or []
    ],
}
print(json.dumps(found))
