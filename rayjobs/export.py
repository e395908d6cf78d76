"""Export of a run's weights as a Ray job: the same as `memr1 export`, and a last line of JSON with what was written.

    python rayjobs/submit.py -- rayjobs/export.py /shared/runs/train_local --to /shared/out --merged

It runs in the job's own process: `submit.py --num-gpus 1` gives that a GPU.
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
    parser.add_argument("run_dir", help="folder or URL of a run")
    parser.add_argument("--to", type=Path, required=True, help="new folder; each role gets one in it")
    parser.add_argument("--merged", action="store_true", help="add adapters into the base's weights")
    args = parser.parse_args(argv)
    return report_errors(lambda: export(args.run_dir, args.to, args.merged))


def export(run_dir: str, to: Path, merged: bool) -> dict[str, Any]:
    """Write the weights; the result to print."""
    from memr1.training.export import export_run
    from memr1.training.folders import opened

    check_folder("--to", str(to))
    with opened(run_dir) as folder:
        written = export_run(folder, to, merged=merged)
    roles = [{"role": e.role, "folder": str(e.folder.resolve()), "kind": e.kind, "step": e.step} for e in written]
    return {"run_dir": str(folder.resolve()), "roles": roles}


if __name__ == "__main__":
    sys.exit(main())
