"""Evaluation as a Ray job: the same as `memr1 eval`, and a last line of JSON with the rows of the table.

    ray job submit --working-dir . -- python rayjobs/evaluate.py /shared/runs/train_local --benchmark factworld

It runs in the job's own process: `--entrypoint-num-gpus 1` gives that a GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from train import report_errors  # the folder of a script is on its path


def main(argv: list[str] | None = None) -> int:
    """Exit codes as in `train.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", help="folder or URL of a run")
    parser.add_argument("overrides", nargs="*", help="key=value changes to the run's config")
    parser.add_argument("--benchmark", default="factworld", help="as of memr1 eval")
    parser.add_argument("--path", help="data file or its URL; not for factworld")
    parser.add_argument("--split", default="test", help="train, validation or test")
    parser.add_argument("--systems", default="", help="comma-separated rows; empty takes those of the run's config")
    parser.add_argument("--adversarial", action="store_true", help="LoCoMo: category 5, too")
    parser.add_argument("--audit", type=Path, help="LoCoMo: corrected labels")
    parser.add_argument("--judge", action="store_true", help="a last column by the model of judge.url and judge.model")
    args = parser.parse_intermixed_args(argv)
    return report_errors(lambda: evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Run the evaluation and write the report anew; the result to print."""
    from rich.console import Console

    from memr1.evaluation.evaluate import evaluate_folder
    from memr1.training.folders import opened
    from memr1.training.report import write_report

    systems = tuple(s for s in args.systems.split(",") if s)
    with opened(args.run_dir, writes=True) as folder:
        rows = evaluate_folder(
            folder,
            args.benchmark,
            args.path,
            args.split,
            systems,
            args.overrides,
            Console(width=120),
            args.adversarial,
            args.audit,
            args.judge,
        )
        report = write_report(folder)
    return {"run_dir": str(folder.resolve()), "report": str(report), "rows": [row.to_dict() for row in rows]}


if __name__ == "__main__":
    sys.exit(main())
