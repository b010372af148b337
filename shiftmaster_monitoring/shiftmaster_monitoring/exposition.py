"""The content of a scrape: the metrics of all processes of this host, and values that are collected at the scrape."""

from __future__ import annotations

import contextlib
import json
import os
import time

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from . import checks, conf, people, queues, shared, slow, trouble
from .runner import Runner

# A worker's main process gives a sign every two seconds.
WORKER_SECONDS = 30
PEOPLE_SECONDS = 2.0
_parsed = {}


def _parse(key: bytes) -> tuple:
    """Return (type, multiprocess mode, family, sample, labels) of a series."""
    found = _parsed.get(key)
    if found is None:
        typ, mode, family, sample, labels = json.loads(key)
        found = _parsed[key] = (typ, mode, family, sample, tuple((name, value) for name, value in labels))
    return found


class Shared:
    """The counters, histograms and gauges of all processes, of ended ones too."""

    def collect(self):
        counted, gauges, living = shared.read()
        texts = {}
        for value in list(shared.store.values):
            texts[value.family] = value.help
            if not value.key.startswith(b'["gauge"'):
                counted.setdefault(value.key, 0.0)
        families, buckets = {}, {}
        for key, value in counted.items():
            typ, _mode, name, sample, labels = _parse(key)
            family = families.get(name)
            if family is None:
                # Of another release's metric nobody here knows the help.
                family = families[name] = Metric(name, texts.get(name, name), typ)
            if typ == "histogram" and sample.endswith("_bucket"):
                rest = tuple(label for label in labels if label[0] != "le")
                buckets.setdefault(name, {}).setdefault(rest, []).append((float(dict(labels)["le"]), value))
            else:
                family.add_sample(sample, dict(labels), value)
        for name, series in buckets.items():
            for labels, found in series.items():
                total = 0.0
                for bound, value in sorted(found):
                    total += value
                    families[name].add_sample(name + "_bucket", dict(labels, le=floatToGoString(bound)), total)
                families[name].add_sample(name + "_count", dict(labels), total)
        self._gauges(families, gauges, texts)
        yield from families.values()
        yield _gauge("shiftmaster_metrics_processes", "Processes that count in the shared directory.", {(): living})

    @staticmethod
    def _gauges(families, gauges, texts):
        """Those of living processes alone, one series or one for each process as the metric defines."""
        joined = {}
        for pid, key, value, at in gauges:
            _typ, mode, name, sample, labels = _parse(key)
            if name not in families:
                families[name] = Metric(name, texts.get(name, name), "gauge")
            if mode in ("all", "liveall", ""):
                labels += (("pid", pid),)
            joined.setdefault((name, sample, labels, mode.replace("live", "")), []).append((value, at))
        for (name, sample, labels, mode), found in joined.items():
            values = [value for value, _at in found]
            one = {"sum": sum, "min": min, "max": max}.get(mode, lambda them: them[-1])(values)
            if mode == "mostrecent":
                one = max(found, key=lambda pair: pair[1])[0]
            families[name].add_sample(sample, dict(labels), one)


def _gauge(name: str, text: str, series: dict, labels=()):
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for values, value in series.items():
        family.add_metric(list(values), value)
    return family


class Measured:
    """What has no counter. Each part has its time, and where it fails the others are there."""

    def __init__(self):
        self.runner = Runner()

    def collect(self, warming: bool = False):
        release = [
            conf.get("SHIFTMASTER_VERSION"),
            conf.get("SHIFTMASTER_RELEASE"),
            os.environ.get("SHIFTMASTER_SLOT"),
        ]
        labels = ("version", "release", "slot")
        yield _gauge(
            "shiftmaster_release_info", "The release that responds.", {tuple(text or "" for text in release): 1}, labels
        )
        if shared.directory() is not None:  # Otherwise prometheus_client's own registry has this process.
            with trouble.contained("the processes cannot be measured"):
                yield from _processes()
        wanted = {"celery": (queues.measure, float(conf.get("SHIFTMASTER_METRICS_BROKER_SECONDS")))}
        if shared.directory() is not None:
            wanted["people"] = (people.active_on_all_hosts, PEOPLE_SECONDS)
        found = self.runner.run(wanted)
        up = {}
        for name, result in found.items():
            if result["status"] == "skipped":
                continue
            up[(name,)] = int(result["status"] == "healthy")
            if result["status"] != "healthy" and not warming:
                trouble.say("metrics of %s" % name, checks.Unhealthy(result.get("error", "")))
        if "people" in found:
            with trouble.contained("active users cannot be counted"):
                # Where the cache does not respond, this host speaks for itself.
                windows = found["people"].get("windows") or people.active()
                yield _gauge(
                    "shiftmaster_active_users",
                    "Distinct users with a recent request; the same on all hosts that share a cache.",
                    {(window,): count for window, count in windows.items()},
                    ("window",),
                )
        if found["celery"]["status"] != "skipped":
            yield from _celery(found["celery"].get("queues", {}))
        yield _gauge(
            "shiftmaster_metrics_collector_up", "Whether what has no counter could be measured.", up, ("collector",)
        )


def _celery(waiting: dict):
    lengths = {(name,): length for name, (length, _age) in waiting.items()}
    ages = {(name,): age for name, (_length, age) in waiting.items() if age is not None}
    yield _gauge("shiftmaster_celery_queue_length", "Tasks that wait at the broker.", lengths, ("queue",))
    yield _gauge(
        "shiftmaster_celery_queue_oldest_task_age_seconds", "How long the oldest of them waits.", ages, ("queue",)
    )
    if shared.directory() is not None:
        yield _gauge(
            "shiftmaster_celery_workers",
            "Workers of this host that have lately shown that they live.",
            {(): _workers()},
        )


def _workers() -> int:
    living, now = 0, time.time()
    with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(shared.directory(), "workers")) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                age = now - entry.stat().st_mtime
                living += age <= WORKER_SECONDS
                if age > 3600:
                    os.unlink(entry.path)
    return living


_TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid) -> list:
    with open("/proc/%s/stat" % pid, encoding="utf-8", errors="replace") as stream:
        return stream.read().rpartition(")")[2].split()


def _processes():
    """Memory and processor time of the web processes of this slot: gunicorn's master and its children."""
    master = os.getppid() if os.environ.get("SHIFTMASTER_SLOT") else os.getpid()
    memory, ticks = 0, 0
    for pid in os.listdir("/proc"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if not pid.isdigit():
                continue
            stat = _stat(pid)
            if int(pid) == master or (int(stat[1]) == master and master != os.getpid()):
                memory += slow.resident_bytes(pid)
                # The master has inherited the time of those that have ended, so that the sum never falls.
                ticks += sum(int(value) for value in (stat[11:15] if int(pid) == master else stat[11:13]))
    yield _gauge(
        "process_resident_memory_bytes",
        "Memory of this slot's web processes; what they share counts for each.",
        {(): memory},
    )
    cpu = CounterMetricFamily("process_cpu_seconds", "Processor time of this slot's web processes.")
    cpu.add_metric([], ticks / _TICKS)
    yield cpu


class Exposition:
    """One for each process; safe with several threads."""

    def __init__(self):
        self._measured = Measured()

    def text(self, warming: bool = False) -> bytes:
        """Return everything in Prometheus' text format. Unavailable values are left out, and logged once.

        warming: nobody waits for it; what takes too long is loaded further meanwhile, and not worth a word.
        """
        registry = CollectorRegistry(auto_describe=False)
        # First: it ends sessions, which the shared metrics then have.
        registry.register(_Given(list(self._measured.collect(warming))))
        if shared.directory() is not None:
            registry.register(_Given(self._shared()))
        text = generate_latest(registry)
        return text if shared.directory() is not None else generate_latest(REGISTRY) + text

    @staticmethod
    def _shared() -> list:
        try:
            families, up = list(Shared().collect()), 1
        except (OSError, shared.Busy) as error:
            # No metrics are better than those of one process, which would look like counters that fell.
            trouble.say("the shared metrics cannot be read", error)
            families, up = [], 0
        return [
            *families,
            _gauge("shiftmaster_metrics_shared_up", "Whether the shared directory can be read.", {(): up}),
        ]


class _Given:
    """A collector of what has been collected: a registry of one scrape writes it down."""

    def __init__(self, families):
        self.families = families

    def describe(self):
        return []

    def collect(self):
        return self.families
