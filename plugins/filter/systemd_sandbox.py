"""Filter `systemd_sandbox`."""

from __future__ import annotations

# What no service of this repository needs; systemd.exec(5) describes each.
RESTRICTIONS = {
    "NoNewPrivileges": "true",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "true",
    "PrivateTmp": "true",
    "PrivateDevices": "true",
    "ProtectClock": "true",
    "ProtectControlGroups": "true",
    "ProtectHostname": "true",
    "ProtectKernelLogs": "true",
    "ProtectKernelModules": "true",
    "ProtectKernelTunables": "true",
    "ProtectProc": "invisible",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces": "true",
    "RestrictRealtime": "true",
    "RestrictSUIDSGID": "true",
    "LockPersonality": "true",
    "MemoryDenyWriteExecute": "true",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service",
    "SystemCallErrorNumber": "EPERM",
}


def systemd_sandbox(changes):
    """Return the lines of a unit that restrict its service. changes: other values by name; none leaves one out."""
    return "\n".join(f"{name}={value}" for name, value in {**RESTRICTIONS, **changes}.items() if value is not None)


class FilterModule:
    def filters(self):
        return {"systemd_sandbox": systemd_sandbox}
