"""Prints the pseudonyms of users in the logs: python -m shiftmaster_monitoring.pseudonym NUMBER...

It needs the application's environment. The number is the user's primary key. A name that somebody has typed in vain is
requested as name:NAME.
"""

from __future__ import annotations

import sys


def main(users) -> int:
    import django

    django.setup()
    from shiftmaster_monitoring import logs

    if not logs.pseudonym(""):
        print("SHIFTMASTER_LOG_KEY is not set: the logs name nobody.", file=sys.stderr)
        return 1
    for user in users:
        print("%s  %s" % (logs.pseudonym(user), user))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
