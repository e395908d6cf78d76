"""`memr1 debug`: the commands around `memr1.training.debug`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Play without updating, update without playing, or look at every tensor.", no_args_is_help=True)

ConfigPath = Annotated[Path, typer.Argument(help="YAML file, for example configs/train_local.yaml.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value change; may be repeated.")]
Stage = Annotated[int, typer.Option(help="Which stage, from 0; one that learns from rollouts.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint to go on from; fresh weights if not given.")]


@app.command()
def rollout(
    config: ConfigPath,
    out: Annotated[Path, typer.Option(help="Folder to write batch_000001.json and so on to.")],
    steps: Annotated[int, typer.Option(min=1, help="Batches to play.")] = 1,
    stage: Stage = 0,
    checkpoint: Checkpoint = None,
    overrides: Set = None,
) -> None:
    """Play the groups of some steps and save them; nothing is updated."""
    from memr1.config_file import load_config
    from memr1.training.debug import Rehearsal

    rehearsal = Rehearsal(load_config(config, overrides or ()), stage, checkpoint, plays=True)
    out.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(rehearsal.play(steps), start=rehearsal.first + 1):
        path = out / f"batch_{number:06d}.json"
        batch.save(path)
        print(f"{path}: {len(batch.records)} rollouts, {len(batch.sequences)} sequences to train on")
        _show(batch.metrics)
    rehearsal.close()


@app.command()
def update(
    config: ConfigPath,
    batches: Annotated[Path, typer.Argument(help="A batch file, or a folder of them.")],
    stage: Stage = 0,
    checkpoint: Checkpoint = None,
    overrides: Set = None,
) -> None:
    """Train on saved batches, one step each; nothing is played."""
    from memr1.config_file import load_config
    from memr1.training.batch import Batch
    from memr1.training.debug import Rehearsal, saved_batches

    paths = saved_batches(batches)
    loaded = [Batch.load(path) for path in paths]
    rehearsal = Rehearsal(load_config(config, overrides or ()), stage, checkpoint, plays=False)
    for path, metrics in zip(paths, rehearsal.update(loaded), strict=True):
        print(f"{path}:")
        _show(metrics)


@app.command()
def replay(
    config: ConfigPath,
    batch: Annotated[Path, typer.Argument(help="A batch file, of `memr1 debug rollout` or of a checkpoint.")],
    index: Annotated[
        int, typer.Option(help="Which sequence of the batch, from 0; shown with the rest of its trajectory.")
    ] = 0,
    stage: Stage = 0,
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option(help="Write all tensors to this .npz file as well.")] = None,
    overrides: Set = None,
) -> None:
    """Show every tensor of one trajectory on its way through the update, and its tokens one by one."""
    import numpy as np
    from rich.console import Console

    from memr1.config_file import load_config
    from memr1.errors import MemR1Error
    from memr1.training.batch import Batch
    from memr1.training.debug import replay as tensors_of
    from memr1.training.debug import token_table, trajectory_of

    settings, sequences = load_config(config, overrides or ()), Batch.load(batch).sequences
    if not 0 <= index < len(sequences):
        raise MemR1Error(f"--index {index}: {batch} has {len(sequences)} sequences, counted from 0")
    if not 0 <= stage < len(settings.stages):
        raise MemR1Error(f"--stage {stage}: the configuration has {len(settings.stages)} stages, counted from 0")
    chosen, steps = settings.stages[stage], trajectory_of(sequences, index)
    shown = tensors_of(settings, chosen, [sequences[i] for i in steps], checkpoint)
    for number, tensors in zip(steps, shown, strict=True):
        print(f"sequence {number}" + (f", of a trajectory of {len(steps)}" if len(steps) > 1 else ""))
        for name, value in tensors.items():
            print(f"{name} {value.dtype}{list(value.shape)}\n{np.array2string(value, threshold=10**6)}")
        Console(width=160).print(token_table(settings, tensors))
    if chosen.objective == "ppo":
        print("advantages and loss are the critic's to tell, whose weights are not read here")
    if out is not None:
        several = len(steps) > 1
        named = zip(steps, shown, strict=True)
        arrays = {f"{i}/{name}" if several else name: value for i, tensors in named for name, value in tensors.items()}
        np.savez(out, **arrays)  # type: ignore[arg-type]


def _show(metrics: dict[str, float]) -> None:
    for name, value in sorted(metrics.items()):
        print(f"  {name} {value:.6g}")
