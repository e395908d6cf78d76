"""view: page through the rollouts of a run in the terminal. Called by `memr1 view RUN`.

Reads `rollouts/step_*.jsonl` as `runlog.py` writes them. Without a terminal (a pipe, a test) it prints and returns.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memr1.errors import MemR1Error
from memr1.training.report import operation_text
from memr1.training.runlog import read_rollouts, rollout_files

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

PRINT_LIMIT = 20
"""Rollouts printed at most when nobody can press a key; `index` and `filter` choose others."""

_HELP = "n next, p previous, a number jumps, s STEP goes to a step, q quits"
_COMPARISON = re.compile(r"^(reward|advantage)\s*(<=|>=|!=|=|<|>)\s*(-?[\d.]+(?:e-?\d+)?)$")
_FIELD = re.compile(r"^(role|task|group|category|error|text)\s*[:=]\s*(.*)$", re.S)


def view(
    run_dir: str | Path,
    step: int | None = None,
    index: int | None = None,
    filter: str | None = None,
    interactive: bool = True,
    *,
    console: Console | None = None,
) -> None:
    """Show the rollouts of one step, one at a time with keys, or all up to `PRINT_LIMIT` without a terminal.

    step: default the last one saved. index: position within the step (after filtering), from 0; negative counts from
    the end. filter: `reward<0.5`, `advantage>0`, `role:manager`, `task:…`, `group:…`, `category:…`, `error:…` (a colon
    alone: any error), `text:…`, or plain text looked for in prompts, completions, question and answer.
    interactive: False prints without asking; a stdin that is no terminal has the same effect.
    Raises MemR1Error for a missing folder, no rollouts, an unknown step or index, and a filter that fits nothing.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise MemR1Error(f"{run_dir}: no such run folder; a run's folder is <output>/<name> of its config")
    files = rollout_files(run_dir)
    if not files:
        raise MemR1Error(f"{run_dir}: no rollouts were saved there; they appear after the first reinforcement step")
    keep = make_filter(filter)
    step, rollouts = _load(files, step, filter, keep)
    position = _position(index, len(rollouts), step)
    if not (interactive and sys.stdin.isatty()):
        first, last = (0, min(len(rollouts), PRINT_LIMIT)) if index is None else (position, position + 1)
        for i in range(first, last):
            console.print(render(rollouts[i], step, i, len(rollouts)))
        if index is None and last < len(rollouts):
            console.print(f"{len(rollouts) - last} more rollouts of step {step}; choose with an index or a filter")
        return
    _page(console, files, step, rollouts, position, filter, keep)


def make_filter(text: str | None) -> Callable[[Mapping[str, Any]], bool]:
    """The predicate that a filter stands for (syntax: see `view`). MemR1Error for a comparison without a number."""
    if not text:
        return lambda rollout: True
    comparison = _COMPARISON.match(text.strip())
    if comparison:
        name, sign, number = comparison.group(1), comparison.group(2), float(comparison.group(3))
        return lambda rollout: rollout.get(name) is not None and _compare(rollout[name], sign, number)
    if re.match(r"^(reward|advantage)\s*[<>=!]", text.strip()):
        raise MemR1Error(f"filter {text!r}: compare with a number, for example reward<0.5")
    pair = _FIELD.match(text.strip())
    if not pair:
        return lambda rollout: text.lower() in _searchable(rollout)
    name, value = pair.group(1), pair.group(2).strip().lower()
    if name == "role":
        return lambda rollout: any(str(s.get("role")).lower() == value for s in rollout.get("steps") or [])
    if name == "text":
        return lambda rollout: value in _searchable(rollout)
    if name == "category":
        return lambda rollout: value in str((rollout.get("outcome") or {}).get("category") or "").lower()
    key = {"task": "task_id", "group": "group_id", "error": "error"}[name]
    return lambda rollout: rollout.get(key) is not None and value in str(rollout[key]).lower()


def render(rollout: Mapping[str, Any], step: int, index: int, count: int) -> RenderableType:
    """One rollout as a rich renderable: calls, operations, bank diff, entries, answer against gold, reward."""
    from rich.console import Group
    from rich.rule import Rule

    outcome = rollout.get("outcome") or {}
    title = f"step {step} · rollout {index + 1} of {count} · {rollout.get('task_id')} · group {rollout.get('group_id')}"
    blocks: list[RenderableType] = [Rule(_text(title, "bold"), align="left")]
    for number, call in enumerate(rollout.get("steps") or [], start=1):
        blocks += _call(call, number, hide={"operations"} if outcome.get("operations") else set())
    if outcome.get("facts"):
        blocks += [_heading("facts"), *[_text(f"  {fact}") for fact in outcome["facts"]]]
    if outcome.get("operations"):
        blocks.append(_heading("operations"))
        for operation in outcome["operations"]:
            ok = operation.get("ok", True)
            blocks.append(_text(f"  {'✓' if ok else '✗'} {operation_text(operation)}", "green" if ok else "red"))
    if "bank_before" in outcome or "bank_after" in outcome:
        blocks += _bank_diff(outcome.get("bank_before") or [], outcome.get("bank_after") or [])
    if outcome.get("retrieved"):
        blocks += _retrieved(outcome["retrieved"], outcome.get("selected") or [])
    blocks += _verdict(rollout, outcome)
    return Group(*blocks, _text(""))


def bank_changes(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str | None, str | None]]:
    """(sign, id, old text, new text) of every entry that differs: `+` added, `-` deleted, `~` changed."""
    old = {str(e.get("id")): str(e.get("text", "")) for e in before}
    new = {str(e.get("id")): str(e.get("text", "")) for e in after}
    changes: list[tuple[str, str, str | None, str | None]] = []
    for key, text in old.items():
        if key not in new:
            changes.append(("-", key, text, None))
        elif new[key] != text:
            changes.append(("~", key, text, new[key]))
    return changes + [("+", key, None, text) for key, text in new.items() if key not in old]


def _call(call: Mapping[str, Any], number: int, hide: set[str]) -> list[RenderableType]:
    tokens = f"{call.get('prompt_tokens', '?')} + {call.get('completion_tokens', '?')} tokens"
    flags = [tokens, f"weights v{call.get('weight_version', '?')}", f"finish {call.get('finish_reason', '?')}"]
    flags.append("trains" if call.get("trainable") else "frozen")
    blocks: list[RenderableType] = [
        _heading(f"{number}. {call.get('role', 'model')} ({call.get('policy', '?')})", " · ".join(flags)),
        _text(str(call.get("prompt_text", "")), "dim"),
        _text(str(call.get("completion_text", "")) or "(empty completion)", "bold cyan"),
    ]
    parsed = {k: v for k, v in (call.get("parsed") or {}).items() if k not in hide}
    if parsed.get("error"):
        blocks.append(_text(f"  not parsed: {parsed['error']}", "red"))
    elif parsed:
        blocks.append(_text("  parsed: " + ", ".join(f"{k} = {v}" for k, v in parsed.items())))
    return blocks


def _bank_diff(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    changes = bank_changes(before, after)
    blocks: list[RenderableType] = [_heading("bank", f"{len(before)} → {len(after)} entries")]
    if not changes:
        blocks.append(_text("  no change", "dim"))
    for sign, key, old, new in changes:
        if old is not None:
            blocks.append(_text(f"  - [{key}] {old}", "red"))
        if new is not None:
            blocks.append(_text(f"  {'~' if sign == '~' else '+'} [{key}] {new}", "green"))
    return blocks


def _retrieved(entries: Sequence[Mapping[str, Any]], selected: Sequence[Any]) -> list[RenderableType]:
    chosen = {str(s) for s in selected}
    blocks: list[RenderableType] = [_heading("retrieved", f"{len(entries)} entries, {len(chosen)} selected (●)")]
    for entry in entries:
        mark = str(entry.get("id")) in chosen
        date = f" ({entry['date']})" if entry.get("date") else ""
        style = "" if mark else "dim"
        blocks.append(_text(f"  {'●' if mark else ' '} [{entry.get('id')}] {entry.get('text', '')}{date}", style))
    invented = sorted(chosen - {str(e.get("id")) for e in entries})
    if invented:
        blocks.append(_text(f"  selected but never retrieved: {', '.join(invented)}", "red"))
    return blocks


def _verdict(rollout: Mapping[str, Any], outcome: Mapping[str, Any]) -> list[RenderableType]:
    blocks: list[RenderableType] = [_heading("outcome")]
    if outcome.get("question") is not None:
        category = f"  ({outcome['category']})" if outcome.get("category") else ""
        blocks.append(_text(f"  question   {outcome['question']}{category}"))
    if "gold" in outcome or "answer" in outcome:
        reward = rollout.get("reward")
        style = "" if reward is None else ("bold green" if reward > 0 else "bold red")
        answer = outcome.get("answer")
        blocks.append(_text(f"  gold       {outcome.get('gold')}"))
        blocks.append(_text(f"  answer     {'(none)' if answer is None else answer}", style))
    blocks.append(
        _text(f"  reward     {_number(rollout.get('reward'))}   advantage {_number(rollout.get('advantage'))}")
    )
    parts = rollout.get("reward_parts") or {}
    if parts:
        blocks.append(_text("  parts      " + ", ".join(f"{k} {_number(v)}" for k, v in parts.items())))
    if rollout.get("error"):
        blocks.append(_text(f"  error      {rollout['error']}", "bold red"))
    return blocks


def _page(
    console: Console,
    files: Mapping[int, Path],
    step: int,
    rollouts: list[dict[str, Any]],
    position: int,
    filter_text: str | None,
    keep: Callable[[Mapping[str, Any]], bool],
) -> None:
    """Ask for keys until q; a mistyped key explains the keys and asks again."""
    show = True
    while True:
        if show:
            console.clear()
            console.print(render(rollouts[position], step, position, len(rollouts)))
        show = True
        try:
            key = input(f"[{_HELP}] ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            return
        moved = re.fullmatch(r"s\s*(\d+)", key)
        if key == "q":
            return
        if key in ("n", ""):
            position = min(position + 1, len(rollouts) - 1)
        elif key == "p":
            position = max(position - 1, 0)
        elif key.isdigit() and 1 <= int(key) <= len(rollouts):
            position = int(key) - 1
        elif moved:
            try:
                step, rollouts = _load(files, int(moved.group(1)), filter_text, keep)
                position = 0
            except MemR1Error as error:
                console.print(_text(str(error), "red"))
                show = False
        else:
            console.print(_text(f"{key!r}: {_HELP}; rollouts are 1 to {len(rollouts)}, steps {_span(files)}", "red"))
            show = False


def _load(
    files: Mapping[int, Path], step: int | None, text: str | None, keep: Callable[[Mapping[str, Any]], bool]
) -> tuple[int, list[dict[str, Any]]]:
    step = max(files) if step is None else step
    if step not in files:
        raise MemR1Error(f"step {step} has no saved rollouts; saved steps are {_span(files)}")
    everything = read_rollouts(files[step])
    if not everything:
        raise MemR1Error(f"{files[step]}: holds no rollouts; choose another step of {_span(files)}")
    rollouts = [r for r in everything if keep(r)]
    if not rollouts:
        raise MemR1Error(f"filter {text!r} fits none of the {len(everything)} rollouts of step {step}")
    return step, rollouts


def _position(index: int | None, count: int, step: int) -> int:
    if index is None:
        return 0
    if not -count <= index < count:
        raise MemR1Error(f"index {index}: step {step} has {count} rollouts here; give 0 to {count - 1}")
    return index % count


def _span(files: Mapping[int, Path]) -> str:
    steps = list(files)
    return ", ".join(map(str, steps)) if len(steps) <= 8 else f"{steps[0]} to {steps[-1]} ({len(steps)} steps)"


def _compare(value: float, sign: str, number: float) -> bool:
    same = abs(value - number) < 1e-9
    return {
        "<": value < number and not same,
        ">": value > number and not same,
        "<=": value < number or same,
        ">=": value > number or same,
        "=": same,
        "!=": not same,
    }[sign]


def _searchable(rollout: Mapping[str, Any]) -> str:
    outcome = rollout.get("outcome") or {}
    texts = [outcome.get(k) for k in ("question", "answer", "gold")]
    for call in rollout.get("steps") or []:
        texts += [call.get("prompt_text"), call.get("completion_text")]
    return "\n".join(str(t) for t in texts if t is not None).lower()


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"


def _heading(title: str, detail: str = "") -> Text:
    text = _text(title, "bold yellow")
    return text.append(f"  {detail}", style="dim") if detail else text


def _text(content: str, style: str = "") -> Text:
    """Text as it is: prompts are full of brackets, which rich would read as markup."""
    from rich.text import Text

    return Text(content, style=style)
