"""Filter `installed_package`."""

from __future__ import annotations

import fnmatch


def installed_package(package, lines):
    """Return name, version (for apt; * for any) and with (names that come along) of a package, from dpkg.

    lines: "package want status version" of each package that dpkg knows, as dpkg-query --show prints it. Returned are
    the package and installed (version, empty where it is not there), held, and missing: whether it has to be
    installed, also where a killed run left it half installed.
    """
    # A package that dpkg only knows by name has no version.
    known = {name: rest for name, *rest in (line.split() for line in lines if line.strip())}
    want, status, *version = known.get(package["name"], ["-", "not-installed"])
    installed = version[0] if version and status not in ("not-installed", "config-files") else ""
    complete = all(known.get(name, ["", ""])[1] == "installed" for name in [package["name"], *package.get("with", [])])
    return dict(
        package,
        installed=installed,
        held=want == "hold",
        missing=not complete or not fnmatch.fnmatchcase(installed, package["version"].replace("[", "[[]")),
    )


class FilterModule:
    def filters(self):
        return {"installed_package": installed_package}
