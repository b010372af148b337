"""Renames the active link as fast as it can, far more often than any deploy, for the seconds given."""

import os
import sys
import time

os.chdir("/var/www/shiftmaster")
end, turn = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end:
    for slot in ("green", "blue"):
        os.symlink(f"slots/{slot}", "active.flip")
        os.rename("active.flip", "active")
        turn += 1
print(turn)
