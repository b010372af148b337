#!/usr/bin/python
"""Module `shiftmaster_restored_files`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shiftmaster_restored_files
short_description: Put restored files in their place, from an archive of the backup server
description:
  - Unpacks a tar archive at C(/). M(ansible.builtin.unarchive) writes by name, so a symbolic link that the application
    puts in the way leads root out of its directory.
  - Nothing is written where the archive holds a path that was not requested, a device, FIFO, socket or sparse file, or
    more than there is room for. A compressed archive is not read. The same holds for an archive with a path twice, or
    with a path below a file or a link, for one without its end or with fewer files than O(count), and for one whose
    list takes more than half of the host's memory.
options:
  src: {description: "The archive, a file of the host. Its names are relative to C(/).", type: path, required: true}
  paths: {type: list, elements: str, required: true, description: "What was requested. Everything in the archive is one
    of these paths, or below one."}
  tops: {type: list, elements: str, default: [], description: "Below these directories no symbolic link is followed. Of
    several, the first that is above a path counts, then O(paths). None of them becomes a link that it is not already."}
  count: {description: How many files and links the archive holds at least., type: int, default: 0}
  owners: {type: dict, default: {}, description: "Directories with the user to whom everything below belongs, and its
    primary group. Everything else gets the numbers that the archive names."}
attributes:
  check_mode: {description: Reads the archive and changes nothing., support: full}
  diff_mode: {description: Shows nothing., support: none}
"""

EXAMPLES = r"""
- name: Put uploaded files in their place
  shiftmaster_restored_files:
    src: /var/lib/shiftmaster-backup/restore.tar
    paths: [/var/www/shiftmaster/shared/media]
    owners: {/var/www/shiftmaster/shared/media: shiftmaster}
"""

RETURN = r"""
files: {description: How many files and links were written., returned: always, type: int}
"""

import contextlib
import os
import pwd
import resource
import tarfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.shiftmaster.backup import place
from ansible.module_utils.shiftmaster.host.printable import printable


def room(paths):
    """Return how many bytes are free where there is the least, for paths that need not exist yet."""
    free = []
    for path in paths:
        path = os.path.join("/", path)
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        disk = os.statvfs(path)
        free.append(disk.f_bavail * disk.f_frsize)
    return min(free, default=0)


@contextlib.contextmanager
def limited_memory(share=2):
    """An extended header is read as a whole, and each entry is kept: both are as large as whoever packed them likes."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // share
    resource.setrlimit(resource.RLIMIT_AS, (size, limits[1]))
    try:
        yield
    except MemoryError:
        raise place.PlaceError("the archive takes more than half of the memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def main():
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path", "required": True},
            "paths": {"type": "list", "elements": "str", "required": True},
            "tops": {"type": "list", "elements": "str", "default": []},
            "count": {"type": "int", "default": 0},
            "owners": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    source, paths, tops = (module.params[name] for name in ("src", "paths", "tops"))
    try:
        owners = {path: pwd.getpwnam(user)[2:4] for path, user in module.params["owners"].items()}
        count = 0
        with limited_memory():
            # Not compressed: a small archive would become a large one.
            with tarfile.open(source, "r:") as archive:
                place.check(place.of_archive(archive), paths, room(paths), tops, module.params["count"])
            if not module.check_mode:
                with tarfile.open(source, "r:") as archive:
                    count = place.place(place.of_archive(archive), tops + paths, owners)
    except (
        place.PlaceError, KeyError, OSError, ValueError, OverflowError, RecursionError, tarfile.TarError,
    ) as error:  # fmt: skip
        module.fail_json(msg="The files were not restored: %s" % printable(str(error)))
    module.exit_json(changed=True, files=count)


if __name__ == "__main__":
    main()
