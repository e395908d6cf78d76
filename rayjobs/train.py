"""Training as a Ray job: the same as `memr1 train`, and a last line of JSON with the run folder and its metrics.

ray job submit --working-dir . -- python rayjobs/train.py configs/train_local.yaml output=/shared/runs --resume auto
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STOPPED = 75
"""Exit code of a run that was told to stop (SIGTERM, Ctrl-C) and did, with a checkpoint: the same command goes on.
Not 0, since what retries jobs must not take it for finished. EX_TEMPFAIL of sysexits.h."""


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 finished, 75 stopped with a checkpoint, 2 bad input (the message says what to do), 130 interrupted,
    1 anything else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value changes")
    parser.add_argument("--resume", default="never", help="never, auto, or a checkpoint folder")
    args = parser.parse_intermixed_args(argv)
    code = [0]

    def body() -> dict[str, Any]:
        result = train(args.config, args.overrides, args.resume)
        code[0] = 0 if result["finished"] else STOPPED
        return result

    return report_errors(body) or code[0]


def train(config_file: Path, overrides: list[str], resume: str) -> dict[str, Any]:
    """Run the training; the result to print."""
    from rich.console import Console

    from memr1.config_file import load_config
    from memr1.training.checkpoints import committed, load_state
    from memr1.training.run import nothing_left
    from memr1.training.run import train as run
    from memr1.training.runlog import read_metrics

    config = load_config(config_file, overrides)
    check_folder("output", config.output)
    run_dir = run(config, resume=resume, console=Console(width=120)).resolve()
    lines = read_metrics(run_dir)
    checkpoints = committed(run_dir)
    return {
        "run_dir": str(run_dir),
        "checkpoint": str(checkpoints[-1]) if checkpoints else None,
        "finished": bool(checkpoints) and nothing_left(config, load_state(checkpoints[-1])),
        "metrics": lines[-1] if lines else {},
    }


def check_folder(field: str, folder: str) -> None:
    """Refuse a relative folder in a job: Ray deletes the job's working directory some time after the job."""
    from memr1.errors import MemR1Error
    from memr1.storage import local_path

    if "runtime_resources" in Path.cwd().parts and not local_path(folder).is_absolute():
        raise MemR1Error(
            f"{field}: {folder!r} is relative and would lie in the job's working directory, which Ray deletes; give a "
            f"folder on storage that all nodes share, for example {field}=/shared/{Path(folder).name}"
        )


def report_errors(body: Callable[[], dict[str, Any]]) -> int:
    """Run `body`, print its result as one line of JSON; errors that are meant for people come without a traceback."""
    from memr1.errors import MemR1Error

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        print(json.dumps(body()), flush=True)
    except MemR1Error as error:
        print(f"memr1: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("memr1: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
