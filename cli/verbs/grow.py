"""Database, cache or an application host on a host of its own: the inventory is written where the run is confirmed."""

from __future__ import annotations

import re
from pathlib import Path

from ..environment import BIN, ROOT, Site, run
from ..texts import fail, say
from ..verb import verb
from .play import play


@verb("grow FUNCTION HOST [ADDRESS]")
def grow(site: Site, words: list[str]) -> int:
    # FUNCTION, HOST and perhaps its address; then options.
    count = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    if count not in (2, 3):
        fail("grow_usage", 2)
    words, options = words[:count], words[count:]
    if any(re.match(r"(-i|--inventory)", word) for word in options):
        fail("grow_inventory", 2)
    environment = site.environment()
    hosts = Path(environment.get("ANSIBLE_INVENTORY") or ROOT / "inventory/demo") / "hosts.yml"
    kept = {path: path.read_bytes() if path.exists() else None for path in (hosts, hosts.with_name("hosts.yml.orig"))}
    # A plan is made with the new inventory, which stays only where it is carried out.
    checked = "--check" in options or "-C" in options
    confirmed = not checked and any("confirm=" in word for word in options)
    stays = confirmed or (words[0] == "app" and not checked)
    script = [str(BIN / "python"), str(ROOT / "scripts/grow_inventory.py")]
    code = run([*script, str(hosts), *words], environment)
    try:
        if code or words[0] == "app":
            return code
        code = play("grow", ["-e", f"to={words[1]}", *options], environment)
        if code == 0 and confirmed and any("back=true" in word for word in options):
            return run([*script, "--back", str(hosts), *words], environment)
        if code and confirmed:
            line = " ".join(["./shiftmaster", "grow", *words, "-e back=true", f"-e confirm={words[1]}"])
            print(say("grow_undo", hosts=hosts, host=words[1], line=line))
        return code
    finally:
        if not stays:
            for path, content in kept.items():
                if content is not None:
                    path.write_bytes(content)
                else:
                    path.unlink(missing_ok=True)


COMMANDS = [grow]
