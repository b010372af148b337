"""The cost of a line of the log, and how many lines the masks process; ends with 1 where a line costs more than it may.

    scripts/with_services python tests/bench_logs.py

A line of JSON with its masks is compared with the guide's plain line without any, both written to a file by the same
handler. Then the worst lines that the patterns' own texts can be made into are masked, short and long: what a pattern
costs grows with a line's length alone, so that both stand about as many characters a second. By Python, as in Django,
and by Oniguruma, of which Logstash has a translation to Java: a metric of the engine, not of Logstash. Its binding
for Python encodes the complete text again for each match, which is what the longest lines show there.
"""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "shiftmaster_monitoring"))
if os.environ.get("SHIFTMASTER_TEST_PYTHON"):
    # Django is there; PyYAML is here.
    where = [os.environ["SHIFTMASTER_TEST_PYTHON"], "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    sys.path.append(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
sys.path.insert(0, str(ROOT / "tests"))
from masked import in_oniguruma  # noqa: E402

MASKS = yaml.safe_load((ROOT / "group_vars/all/masking.yml").read_text(encoding="utf-8"))["log_masks"]
LINES, ROUNDS = 2000, 15
# Additional cost of JSON with its masks over the guide's line, in seconds.
MOST = 100e-6
USUAL = "シフトを保存しました：東3病棟、12 件、2026-01 (east-3)"


def row(what: str, value: str, wanted: str = "") -> None:
    print(f"  {what:58} {value:>12}  {wanted}", flush=True)


def seconds(work) -> float:
    """Return the median of the processor's time that one call takes."""
    found = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for number in range(LINES):
            work(number)
        found.append((time.thread_time() - began) / LINES)
    return statistics.median(found)


def worst() -> list:
    """Return lines that lead patterns far before they fail: repeated beginnings of a match."""
    parts = [
        "a" * 64,
        "a.a.a.a.a.a.a.",
        "://x:" + "y" * 200,
        "Cookie: " + "c" * 64,
        "03-1234-567",
        "090-1234-56",
        "eyJ",
    ]
    parts += ["password" + "_" * 16 + '"' + " " * 2, "患者番号" + "　" * 2 + ":", "氏名：", "-----BEGIN " + "A " * 20]
    parts += [line.replace("«", "").replace("»", "")[:-1] for mask in MASKS for line in mask["must"]]
    return parts


def main() -> int:
    from django.conf import settings
    from django.test import RequestFactory

    settings.configure(SHIFTMASTER_LOG_FORMAT="ecs", SHIFTMASTER_LOG_MASKS=MASKS, SHIFTMASTER_LOG_KEY="a key")
    from shiftmaster_monitoring import carry, logs
    from shiftmaster_monitoring.masks import Masks

    with tempfile.TemporaryDirectory() as directory:
        logger = logging.getLogger("roster.views.month")
        logger.propagate = False
        logger.setLevel(logging.INFO)

        def of(handler):
            logger.handlers = [handler]
            return seconds(
                lambda number: logger.info("シフトを保存しました：東3病棟、%d 件、2026-01 (%s)", number, "east-3")
            )

        plain = logs.Appender(directory + "/plain.log")
        plain.setFormatter(logging.Formatter("%(asctime)s [%(levelname)s] %(name)s: %(message)s"))
        masked = logs.Appender(directory + "/masked.log")
        masked.setFormatter(logs.PlainFormatter(Masks(MASKS)))
        json = logs.handler(directory + "/ecs.log")
        request = RequestFactory().get("/roster/east-3/2026-01/", HTTP_X_REQUEST_ID="0" * 32)
        found = {"plain": [], "masked": [], "json": []}

        def measured(_request):
            for _ in range(3):
                for name, handler in (("plain", plain), ("masked", masked), ("json", json)):
                    found[name].append(of(handler))
            return "answer"

        carry.RequestContext(measured)(request)
        best = {name: statistics.median(values) for name, values in found.items()}
        print("\nA line of the log:")
        row("the guide's line, nothing masked", f"{best['plain'] * 1e6:.0f} us")
        row("the guide's line, masked", f"{best['masked'] * 1e6:.0f} us")
        row("JSON with its masks", f"{best['json'] * 1e6:.0f} us")
        row("  more than plain", f"{(best['json'] - best['plain']) * 1e6:.0f} us", "<= 100 us")

    masks = Masks(MASKS)
    for engine, work in (("Python", masks), ("Oniguruma", lambda text: in_oniguruma(MASKS, text))):
        print(f"\nThe masks in {engine}:")
        row("a usual line", f"{1 / seconds(lambda _number, work=work: work(USUAL)):.0f} /s")
        for size in (200, 2000, 20000):
            spent, which = slowest(work, size)
            row(f"the worst line of {size} characters", f"{1 / spent:.0f} /s", repr(which)[:40])
            row("  characters", f"{size / spent / 1e6:.2f} M/s")
    if best["json"] - best["plain"] > MOST:
        print("ERROR: A line of JSON costs more than it may.", file=sys.stderr)
        return 1
    return 0


def slowest(work, size: int):
    """Return what the worst line of so many characters costs, and what it is made of."""
    found = []
    for part in worst():
        line = (part * (size // len(part) + 1))[:size]
        began = time.thread_time()
        for _ in range(3):
            work(line)
        found.append(((time.thread_time() - began) / 3, part))
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
