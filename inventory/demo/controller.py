#!/usr/bin/env python3
"""Inventory source: what the containers of the demo and the tests must know of this machine.

They reach the outside the way this machine does. Where that goes through a proxy
with its own certificate authority, the containers have to trust it too; so the
certificates which the administrator of this machine added are handed to role `base`.
The demo's published ports are here too, since the application has to know its own address.
"""

from __future__ import annotations

import json
from pathlib import Path

ADDED_CERTIFICATES = Path("/usr/local/share/ca-certificates")
# Written by scripts/demo.py.
SETTINGS = Path(__file__).resolve().parents[2] / ".cache/demo/settings.json"


def main() -> None:
    certificates = [
        {"name": path.stem, "content": path.read_text(encoding="ascii")}
        for path in sorted(ADDED_CERTIFICATES.glob("*.crt"))
    ]
    settings = json.loads(SETTINGS.read_text(encoding="utf-8")) if SETTINGS.exists() else {}
    variables = {
        "base_extra_ca_certificates": certificates,
        "demo_https_port": settings.get("demo_https_port", 8443),
        "demo_prometheus_port": settings.get("demo_prometheus_port", 9090),
        "demo_alertmanager_port": settings.get("demo_alertmanager_port", 9093),
    }
    print(json.dumps({"_meta": {"hostvars": {}}, "all": {"vars": variables}}))


if __name__ == "__main__":
    main()
