"""Training tasks made ahead of training, as a Ray job: the same as `memr1 data build`, and a last line of JSON.

    python rayjobs/submit.py -- rayjobs/build_data.py CONFIG data.cache=/shared/tasks

It runs in the job's own process: `submit.py --num-gpus 1` gives that a GPU. An interrupted build goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from train import check_folder, report_errors  # the folder of a script is on its path


def main(argv: list[str] | None = None) -> int:
    """Exit codes as in `train.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", help="key=value changes")
    args = parser.parse_intermixed_args(argv)
    return report_errors(lambda: build(args.config, args.overrides))


def build(config_file: Path, overrides: list[str]) -> dict[str, Any]:
    """Make the tasks; the result to print."""
    from rich.console import Console

    from memr1.config_file import load_config
    from memr1.training.data_build import build as run

    config = load_config(config_file, overrides)
    check_folder("data.cache", str(config.cache_dir))
    report = run(config, console=Console(width=120))
    return {"cache": str(config.cache_dir.resolve()), "report": report}


if __name__ == "__main__":
    sys.exit(main())
