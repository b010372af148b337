"""A newer package for a host to be patched with, and who still runs the earlier one."""

import time

# Mapped by the application's Python, nginx and PostgreSQL.
PACKAGE = "zlib1g"
# The package that is there, with a higher version, in a repository of this host's own.
PUBLISH = r"""
set -eu
rm -rf /srv/patches && mkdir -p /srv/patches/root && cd /srv/patches
apt-get -q=2 download PACKAGE=$(dpkg-query -W -f '${Version}' PACKAGE | sed 's/[+]patch.*//') >/dev/null
dpkg-deb -R PACKAGE_*.deb root && rm PACKAGE_*.deb
sed -i 's/^Version: .*/&+patchNUMBER/' root/DEBIAN/control
dpkg-deb -b root PACKAGE.deb >/dev/null
{ cat root/DEBIAN/control; echo "Filename: ./PACKAGE.deb"; echo "Size: $(stat -c %s PACKAGE.deb)"
  echo "SHA256: $(sha256sum PACKAGE.deb | cut -d' ' -f1)"; echo; } > Packages
rm -r root
echo 'deb [trusted=yes] file:/srv/patches ./' > /etc/apt/sources.list.d/patches.list
"""
OUTDATED = "grep -l 'r-xp.*libz.*(deleted)' /proc/[0-9]*/maps 2>/dev/null | cut -d/ -f3 | xargs -r ps -o comm= -p"


def publish(operations) -> None:
    """Offer the next version."""
    number = int((version(operations).partition("+patch")[2]) or 0) + 1
    operations.shell(PUBLISH.replace("PACKAGE", PACKAGE).replace("NUMBER", str(number)))


def offered(operations) -> str:
    return operations.shell("sed -n 's/^Version: //p' /srv/patches/Packages").strip()


def version(operations) -> str:
    return operations.shell(f"dpkg-query -W -f '${{Version}}' {PACKAGE}")


def outdated(operations, *expected: str) -> set:
    """Names of processes that run the earlier one. Others than expected get 30 s to end what they do."""
    deadline = time.monotonic() + 30
    while True:
        found = set(operations.shell(OUTDATED, check=False).split())
        if found <= set(expected) or time.monotonic() > deadline:
            return found
        time.sleep(1)
