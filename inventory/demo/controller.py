#!/usr/bin/env python3
"""Inventory source: what the containers of the demo and the tests must know of this machine.

They reach the outside the way this machine does. Where that goes through a proxy
with its own certificate authority, the containers have to trust it too; so the
certificates which the administrator of this machine added are handed to role `base`.
"""

from __future__ import annotations

import json
from pathlib import Path

ADDED_CERTIFICATES = Path("/usr/local/share/ca-certificates")


def main() -> None:
    certificates = [
        {"name": path.stem, "content": path.read_text(encoding="ascii")}
        for path in sorted(ADDED_CERTIFICATES.glob("*.crt"))
    ]
    print(
        json.dumps(
            {
                "_meta": {"hostvars": {}},
                "all": {"vars": {"base_extra_ca_certificates": certificates}},
            }
        )
    )


if __name__ == "__main__":
    main()
