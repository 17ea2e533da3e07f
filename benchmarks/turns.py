"""Seconds and memory of programs that the scripts of this folder run in turns."""

import os
import pathlib
import subprocess
import sys
import time


def proportional_memory(group):
    """Bytes of all processes of a group (sum of proportional set sizes)."""
    total = 0
    for process in pathlib.Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.getpgid(int(process.name)) == group:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except OSError:
            pass
    return total


def run(command, log, cwd=None):
    """Seconds of a command, and its peak of memory in bytes, taken ten times a second. Its output is appended to the file `log`."""
    start = time.monotonic()
    with open(log, "ab") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, start_new_session=True, cwd=cwd)
    peak = 0
    while process.poll() is None:
        peak = max(peak, proportional_memory(process.pid))
        time.sleep(0.1)
    seconds = time.monotonic() - start
    if process.returncode:
        sys.exit(f"{command}: exit code {process.returncode}, see {log}")
    return seconds, peak
