#!/usr/bin/python3
"""Gives a container metrics of its own where the kernel gives all containers those of the entire machine.

The machine runs other steps of the tests at the same time: by its processors, memory and pressure alerts would come and
go as those do, and a fault of them would be a fault of all. So /proc/stat, /proc/meminfo and /proc/pressure/*
are the kernel's files with other numbers in them: an idle host, until a test writes into the directory WANTED how
busy its processors are and how much of its memory is in use, in percent (files `cpu` and `memory`). A stub for the
kernel alone: what reads the files, and everything after it, is real. lxcfs does the same for containers.
"""

import os
import subprocess
import time

WANTED = "/var/lib/own-metrics"
DIRECTORY = "/run/own-metrics"
KERNEL = DIRECTORY + "/kernel"
FILES = ("stat", "meminfo", "pressure/cpu", "pressure/io", "pressure/memory")
QUIET_PERCENT = {"cpu": 3, "memory": 30}
TICKS = os.sysconf("SC_CLK_TCK")


def wanted(name):
    try:
        with open(os.path.join(WANTED, name), encoding="ascii") as stream:
            return min(100.0, float(stream.read()))
    except (OSError, ValueError):
        return QUIET_PERCENT[name]


def stat(text, used):
    """For each processor, used = (busy, idle) ticks since the beginning."""
    lines = []
    for line in text.splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu"):
            share = len(text.split("\ncpu")) - 1 if name == "cpu" else 1
            busy, idle = (int(ticks) * share for ticks in used)
            line = " ".join([name, str(busy), "0", "0", str(idle)] + ["0"] * (len(numbers) - 4))
        lines.append(line)
    return "\n".join(lines) + "\n"


def meminfo(text, percent):
    total = int(text.split("MemTotal:")[1].split()[0])
    available = int(total * (100 - percent) / 100)
    return "".join(
        "MemAvailable:   %d kB\n" % available if line.startswith("MemAvailable:") else line
        for line in text.splitlines(keepends=True)
    )


def calm(text):
    """No process has waited."""
    return "".join("%s avg10=0.00 avg60=0.00 avg300=0.00 total=0\n" % line.split()[0] for line in text.splitlines())


def write(used):
    for name in FILES:
        with open(os.path.join(KERNEL, name), encoding="ascii") as stream:
            text = stream.read()
        if name == "stat":
            text = stat(text, used)
        elif name == "meminfo":
            text = meminfo(text, wanted("memory"))
        else:
            text = calm(text)
        # In place: the file is mounted. In one write, so that a reader gets no half.
        descriptor = os.open(os.path.join(DIRECTORY, name), os.O_WRONLY | os.O_CREAT, 0o644)
        old = os.fstat(descriptor).st_size
        os.write(descriptor, text.encode("ascii"))
        if old > len(text):
            os.ftruncate(descriptor, len(text))
        os.close(descriptor)


def main():
    os.makedirs(os.path.join(DIRECTORY, "pressure"), exist_ok=True)
    os.makedirs(KERNEL, exist_ok=True)
    if not os.path.exists(os.path.join(KERNEL, "stat")):
        subprocess.run(["mount", "-t", "proc", "proc", KERNEL], check=True)
    # From nothing, as after a boot.
    used, before = [0.0, 0.0], time.monotonic()
    write(used)
    for name in FILES:
        if not os.path.ismount("/proc/" + name):
            subprocess.run(["mount", "--bind", os.path.join(DIRECTORY, name), "/proc/" + name], check=True)
    # The unit is up when exporters may read: systemd starts them after it.
    subprocess.run(["systemd-notify", "--ready"], check=True)
    while True:
        time.sleep(1)
        now = time.monotonic()
        share = wanted("cpu") / 100
        used[0] += (now - before) * TICKS * share
        used[1] += (now - before) * TICKS * (1 - share)
        before = now
        write(used)


if __name__ == "__main__":
    main()
