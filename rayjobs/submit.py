"""Submit a job so that the same command may be given again: it attaches to the job while that lives, else tries anew.

    export RAY_API_SERVER_ADDRESS=http://HEAD:8265 RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...
    python rayjobs/submit.py --id nightly -- rayjobs/train.py configs/train_local.yaml output=/shared/runs --resume auto

Follows the job's output and ends with its exit code. The job goes on when this program is interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train import report_errors  # the folder of a script is on its path

from memr1.errors import MemR1Error

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ALLOWED = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "MEMR1_*", "NCCL_*", "GLOO_*", "AWS_REGION", "AWS_ENDPOINT_URL*")
"""Variables of this environment that a job gets, where they are set. Nothing else leaks from here to the cluster."""
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
RUNTIME_ENV = Path(__file__).with_name("runtime_env.yaml")
RECONNECT_S = 2.0
"""Wait before following again when the connection broke."""
MOST_NODES = 10_000
"""What Ray's state API lists at most; unasked it lists 100."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: the job's own, 2 for bad input, 130 when interrupted (the job goes on)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="the job server; else RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265")
    parser.add_argument("--id", help="submission id; else made from the command, so that the same command attaches")
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="a further variable")
    parser.add_argument("--runtime-env", type=Path, default=RUNTIME_ENV, help="YAML file (default: %(default)s)")
    parser.add_argument("--max-mib", type=float, default=50.0, help="limit of the working directory, unpacked")
    parser.add_argument("--num-gpus", type=float, default=0.0, help="GPUs of the job's own process")
    parser.add_argument("--no-wait", action="store_true", help="submit and do not follow")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    parser.add_argument("command", nargs="+", help="after --: a script of rayjobs with its arguments")
    args = parser.parse_args(argv)
    code = [0]

    def body() -> dict[str, Any]:
        result, code[0] = submit(args)
        return result

    return report_errors(body) or code[0]


def submit(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Submit or attach; what to print as the last line, and the exit code."""
    runtime_env = load_runtime_env(args.runtime_env)
    runtime_env["env_vars"] = {**(runtime_env.get("env_vars") or {}), **job_environment(os.environ, args.env)}
    folder = Path(runtime_env["working_dir"])
    size = check_size(folder, runtime_env.get("excludes") or [], args.max_mib)
    entrypoint = entry_point(args.command, folder)
    wanted = args.id or f"memr1-{hashlib.sha256(entrypoint.encode()).hexdigest()[:10]}"
    address = args.address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    plan = {"id": wanted, "address": address, "entrypoint": entrypoint, "working_dir_mib": round(size / 2**20, 2)}
    if args.dry_run:
        return plan | {"runtime_env": runtime_env}, 0
    client = connect(address)
    job = newest(client.list_jobs(), wanted)
    if job is not None and not job.status.is_terminal():
        name = str(job.submission_id)
        print(f"attached to {name}, which is {job.status.value.lower()}", file=sys.stderr)
    else:
        name = wanted if job is None else f"{wanted}.{attempt(str(job.submission_id), wanted) + 1}"
        runtime_env["env_vars"]["MEMR1_JOB"] = name
        gpus = args.num_gpus or None
        try:
            client.submit_job(
                entrypoint=entrypoint, submission_id=name, runtime_env=runtime_env, entrypoint_num_gpus=gpus
            )
        except RuntimeError as error:
            if name not in [j.submission_id for j in client.list_jobs()]:
                raise MemR1Error(f"{address}: the cluster did not take the job: {error}") from error
            print(f"{name} was submitted by somebody else just now; attached", file=sys.stderr)
        else:
            print(f"submitted {name}", file=sys.stderr)
        if gpus and (most := most_gpus(address)) is not None and most < gpus:
            print(
                f"{address}: --num-gpus is {gpus:g} and no node has more than {most:g}; {name} waits until one joins "
                f"that has. `ray job stop {name}` ends it",
                file=sys.stderr,
            )
    if args.no_wait:
        return plan | {"id": name}, 0
    try:
        follow(client, name)
    except KeyboardInterrupt:
        print(f"{name} goes on; the same command attaches again, `ray job stop {name}` ends it", file=sys.stderr)
        raise
    done = client.get_job_info(name)
    said = str(done.message).split(", last available logs")[0]  # they were printed
    return plan | {"id": name, "status": done.status.value, "message": said}, exit_code(done)


def load_runtime_env(path: Path) -> dict[str, Any]:
    """A runtime environment as Ray takes it, its working directory absolute (relative to where this runs)."""
    import yaml
    from ray.runtime_env import RuntimeEnv

    try:
        data = yaml.safe_load(path.read_text())
        if not isinstance(data, dict) or not Path(str(data.get("working_dir", ""))).is_dir():
            raise MemR1Error(f"{path}: working_dir: name a folder that exists; the job's code comes from there")
        data["working_dir"] = str(Path(data["working_dir"]).resolve())
        RuntimeEnv(**{k: v for k, v in data.items() if k != "working_dir"})  # that one is uploaded first
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise MemR1Error(f"{path}: no runtime environment of Ray: {error}") from error
    return data


def job_environment(environment: Mapping[str, str], extra: Iterable[str]) -> dict[str, str]:
    """Variables for the job: the allowed ones that are set here, and `NAME` or `NAME=VALUE` of `extra`.

    Raises MemR1Error for a name that is not set, and for what looks like a secret: Ray shows a job's environment to
    everybody who sees its dashboard.
    """
    patterns = [re.compile(name.replace("*", ".*")) for name in ALLOWED]
    chosen = {
        name: value
        for name, value in environment.items()
        if any(p.fullmatch(name) for p in patterns) and not SECRET.search(name)
    }
    for item in extra:
        name, equals, value = item.partition("=")
        if SECRET.search(name):
            raise MemR1Error(
                f"--env {name}: looks like a secret, and Ray's dashboard shows a job's environment; put it on the "
                "nodes (a Kubernetes Secret, see cluster/README.md)"
            )
        if not equals and name not in environment:
            raise MemR1Error(f"--env {name}: is not set here; set it, or give {name}=VALUE")
        chosen[name] = value if equals else environment[name]
    return chosen


def check_size(folder: Path, excludes: Sequence[str], max_mib: float) -> int:
    """Bytes that Ray would upload, after its own rules; MemR1Error beyond `max_mib`, with what is largest."""
    # Ray has no public way to ask what it will upload, and rules of our own could differ from its rules
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            top = path.relative_to(folder).parts[0]
            sizes[top] = sizes.get(top, 0) + path.stat().st_size

    _dir_travel(folder, [_get_excludes(folder, list(excludes))], add, include_gitignore=True)
    total = sum(sizes.values())
    if total > max_mib * 2**20:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
        raise MemR1Error(
            f"{folder}: the working directory has {total / 2**20:.1f} MiB and the limit is {max_mib:g}; largest: "
            + ", ".join(f"{name} ({size / 2**20:.1f} MiB)" for name, size in largest)
            + ". Name what the job does not need in .rayignore, or raise --max-mib (Ray itself takes 500)"
        )
    return total


def entry_point(command: Sequence[str], folder: Path) -> str:
    """The shell line of the job; scripts run under `python`. MemR1Error when the script is not in the folder."""
    parts = list(command)
    if parts[0].endswith(".py"):
        parts.insert(0, "python")
    for part in parts[1:2] if Path(parts[0]).name.startswith("python") else ():
        if not (folder / part).is_file():
            raise MemR1Error(f"{part}: no such file in the working directory {folder}; give its path from there")
    return shlex.join(parts)


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server. MemR1Error when nobody is there or the token is not the cluster's."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise MemR1Error(
            f"{address}: the cluster wants another token. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's "
            "own before this program starts"
        ) from error
    except (ConnectionError, OSError) as error:
        raise MemR1Error(
            f"{address}: no job server there ({error}). Start the cluster, forward the port, or name another --address"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise MemR1Error(f"{address}: not the job server of a Ray cluster: {error}") from error


def most_gpus(address: str) -> float | None:
    """GPUs of the node that has most of them; a cluster that grows on demand may get others. None where the cluster
    does not say."""
    from ray.util.state import list_nodes

    try:
        nodes = list_nodes(address, limit=MOST_NODES)
    except Exception:  # the job is submitted, and must not seem to have failed for want of a hint
        return None
    return max((n.resources_total.get("GPU", 0.0) for n in nodes if n.state == "ALIVE"), default=0.0)


def attempt(submission_id: str, wanted: str) -> int:
    """1 for `wanted` itself, n for `wanted.n`, 0 for ids of other jobs."""
    if submission_id == wanted:
        return 1
    head, _, number = submission_id.rpartition(".")
    return int(number) if head == wanted and number.isdigit() else 0


def newest(jobs: Iterable[JobDetails], wanted: str) -> JobDetails | None:
    """The latest attempt of a submission, or None."""
    found = [(attempt(j.submission_id, wanted), j) for j in jobs if j.submission_id]
    return max((pair for pair in found if pair[0]), key=lambda pair: pair[0], default=(0, None))[1]


def follow(client: JobSubmissionClient, name: str) -> None:
    """Print a job's output until it has ended; takes the thread up again after a broken connection."""
    seen = 0

    async def tail() -> None:
        nonlocal seen
        position = 0
        async for text in client.tail_job_logs(name):  # starts from the beginning each time
            fresh = text[max(0, seen - position) :]
            position += len(text)
            seen = max(seen, position)
            print(fresh, end="", flush=True)

    while True:
        try:
            asyncio.run(tail())
        except (RuntimeError, OSError) as error:
            print(f"connection lost ({error}); following again", file=sys.stderr)
        # the server may still close the stream a moment before it has written down how the job ended
        if client.get_job_status(name).is_terminal():
            return
        time.sleep(RECONNECT_S)


def exit_code(job: JobDetails) -> int:
    """The exit code of the job's process; 1 where it never ran or was stopped before it could say."""
    if job.status.value == "SUCCEEDED":
        return 0
    return job.driver_exit_code or 1


if __name__ == "__main__":
    sys.exit(main())
