"""Tell the runs on this head node that it is about to go, and wait until they have written their checkpoints.

    python rayjobs/preempt.py            on the head before it is stopped: `preStop` of its pod, a spot machine's hook

`ray start --block` ends its processes at once when it is told to stop, and the drivers of jobs with them. This sends
every driver SIGTERM first: `rayjobs/train.py` then finishes its step, saves, and exits with 75, which counts as failed,
so that whatever retries the job goes on with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil
from submit import connect  # the folder of a script is on its path
from train import report_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes as in `train.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="the job server (default: %(default)s)")
    parser.add_argument("--wait-s", type=float, default=150.0, help="how long to wait (default: %(default)s)")
    args = parser.parse_args(argv)
    return report_errors(lambda: preempt(args.address, args.wait_s))


def preempt(address: str, wait_s: float) -> dict[str, Any]:
    """Signal the drivers of all living jobs on this machine; which ones, which still live after `wait_s`, and how long
    it took."""
    from memr1.rllib.cluster import interface_of

    client = connect(address)
    began = time.monotonic()
    drivers = {
        str(job.submission_id or job.job_id): job.driver_info  # a program that was not submitted has the latter only
        for job in client.list_jobs()
        if not job.status.is_terminal()
    }
    here = {name: d for name, d in drivers.items() if d is not None and interface_of(d.node_ip_address)}
    told = {name: int(driver.pid) for name, driver in here.items()}
    for pid in told.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    left = list(told)
    while left and time.monotonic() < began + wait_s:
        time.sleep(0.5)
        left = [name for name in left if _lives(client, name, told[name])]
    return {"told": sorted(told), "left": left, "seconds": round(time.monotonic() - began, 1)}


def _lives(client: Any, name: str, pid: int) -> bool:
    """Whether a job has not ended. Where the job server does not say, its driver's process tells."""
    try:
        return not client.get_job_status(name).is_terminal()
    except (RuntimeError, OSError):  # it knows submitted jobs only, and may be going as well
        with suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        return False


if __name__ == "__main__":
    sys.exit(main())
