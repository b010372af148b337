"""How far the units of a deployed host are closed, and what an independent audit (lynis) finds there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import Operations

INVENTORY = Path(__file__).parent.parent / "inventory"
# Exposure by `systemd-analyze security`, 0 to 10.
LIMIT = 2.5
# Units that need more, with the reason. The key is the unit's name without an instance.
EXCEPTIONS = {
    "logrotate.service": (
        6.5,
        "Debian's unit, with a time limit of ours: it runs commands of any package as root, and files of any user",
    ),
    "shiftmaster.service": (
        3.0,
        "a restart performs a cutover as root: it runs the release's code as the application's user (CAP_SETUID),"
        " changes the priority of both slots' processes (CAP_SYS_NICE, /proc of other users) and makes directories",
    ),
}
HARDENING_INDEX = 80
# Tests of lynis that cannot be passed here, with the reason; everything else counts, with what is optional and off
# (fail2ban, aide, remote syslog) as missing.
NOT_APPLICABLE = {
    **{
        f"KRNL-6000:{key}": "of the complete machine: role base sets it outside of containers only"
        for key in (
            "dev.tty.ldisc_autoload",
            "fs.protected_fifos",
            "fs.protected_regular",
            "fs.protected_symlinks",
            "kernel.core_uses_pid",
            "kernel.ctrl-alt-del",
            "kernel.kptr_restrict",
            "kernel.unprivileged_bpf_disabled",
        )
    },
    "KRNL-6000:net.ipv4.conf.all.forwarding": "role base leaves it alone: containers on a host need it",
    "USB-3000": "a container and a virtual machine have no USB ports",
    "DBS-1884": "Redis has users with rules of their own (an ACL file), with which requirepass is not allowed",
    "DBS-1886": "the same rules take CONFIG from everyone but the administrator",
    "HTTP-6710": "lynis finds no TLS in files that nginx includes from another place; scenario tls measures TLS",
}


@pytest.fixture(scope="module")
def operations():
    return Operations(INVENTORY, "default-trixie")


def units(operations):
    """Every service that this repository installs or has a drop-in for; of templates the running instances, or one."""
    found = operations.shell(
        "cd /etc/systemd/system && { find . -maxdepth 1 -type f -name '*.service'; "
        "find . -maxdepth 2 -path '*.service.d/*.conf' -printf '%h\\n' | sed 's/[.]d$//'; } | sed 's|^[.]/||' | sort -u"
    ).split()
    names = []
    for name in found:
        if "@." in name:
            pattern = name.replace("@.", "@*.")
            listed = operations.shell(
                f"systemctl list-units --all --plain --no-legend '{pattern}' | cut -d' ' -f1"
            ).split()
            names += listed or [name.replace("@.", "@check.")]
        # A drop-in for transient units, by the beginning of their names.
        else:
            names.append(name.replace("-.service", "-check.service"))
    return names


@pytest.fixture
def transient(operations):
    """A unit of each kind in which root runs what a release brings, as releasecode.py starts them; their names."""
    names = []
    for kind, user in (("code", "shiftmaster"), ("build", "shiftmaster-build")):
        names.append(f"shiftmaster-{kind}-check.service")
        operations.shell(
            f"systemd-run --quiet --collect --service-type=exec --unit={names[-1]} --property=User={user} "
            "--property=KillSignal=SIGKILL -- sleep 600"
        )
    yield set(names)
    operations.shell(f"systemctl stop {' '.join(names)}")


def test_units_are_sandboxed_as_the_table_specifies(operations, transient):
    names = units(operations)
    assert {"shiftmaster.service", "postgresql@17-main.service", "chrony.service", "nftables.service"} <= set(names)
    assert transient <= set(names)
    output = operations.shell(f"systemd-analyze security --no-pager {' '.join(names)}")
    exposed = dict(re.findall(r"Overall exposure level for (\S+): ([\d.]+)", output))
    assert set(exposed) == set(names)
    too_open = {
        name: value
        for name, value in exposed.items()
        if float(value) > EXCEPTIONS.get(re.sub("@.*[.]", "@.", name), (LIMIT, ""))[0]
    }
    assert too_open == {}, output
    needless = [name for name in EXCEPTIONS if name in exposed and float(exposed[name]) <= LIMIT]
    assert needless == [], "these need no exception"


def test_lynis_finds_a_hardened_host(operations):
    """The package is installed here, and is none of a host in production."""
    operations.shell(
        "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends lynis"
    )
    profile = "".join(f"skip-test={test}\\n" for test in NOT_APPLICABLE)
    operations.shell(f"printf '{profile}' >/etc/lynis/custom.prf")
    try:
        report = operations.shell("cd /tmp && lynis audit system --quick --no-colors")
        (index,) = re.findall(r"Hardening index : (\d+)", report)
        assert int(index) >= HARDENING_INDEX, report[report.index("Suggestions") :]
    finally:
        operations.shell("apt-get purge -y -q lynis && rm -f /etc/lynis/custom.prf && rm -f /var/log/lynis*")
