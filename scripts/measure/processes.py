"""Processes as /proc and the cgroup file system show them."""

import glob
import os
import time

CGROUPS = "/sys/fs/cgroup"
TICKS = os.sysconf("SC_CLK_TCK")


def milliseconds(begin):
    return (time.perf_counter() - begin) * 1000


def pss_kb(pid):
    """The process's proportional share of memory, in kB; None when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return None


def cpu_seconds(pid):
    """User and system time of the process so far; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, IndexError):
        return 0.0


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def named(comm):
    """Processes with this command name."""
    found = []
    for pid in all_pids():
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                if file.read().strip() == comm:
                    found.append(pid)
        except OSError:
            pass
    return found


def hierarchies():
    """Where the cgroup hierarchies are mounted: one with v2 alone, else one for each controller."""
    if os.path.exists(f"{CGROUPS}/cgroup.controllers"):
        return [CGROUPS]
    return sorted(path for path in glob.glob(f"{CGROUPS}/*") if os.path.isdir(path))


def memory_hierarchy():
    """The hierarchy that every container's cgroup is in."""
    return CGROUPS if os.path.exists(f"{CGROUPS}/cgroup.controllers") else f"{CGROUPS}/memory"


def cgroup_pids(directory):
    """The processes in a cgroup, those of the cgroups below it left out."""
    try:
        with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
            return [int(line) for line in file if line.strip() != "0"]
    except OSError:
        return []


def wait_for(condition, seconds=60, interval=0.0005):
    """The first true value of `condition()`; asked often, so that the answer is fresh."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(interval)
