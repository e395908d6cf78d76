"""Demonstrations from a teacher: rollouts that a run has saved, or completions of another model.

Memory-SFT of Memory-R1 (arXiv 2508.19828, section 5) clones the trajectories of a stronger model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memr1.agents.roles import ChatCodec
from memr1.errors import MemR1Error
from memr1.learner.packing import TrainSequence
from memr1.training.runlog import read_jsonl, rollout_files


def read_traces(path: str, role: str, codec: ChatCodec, min_reward: float) -> list[TrainSequence]:
    """Completions of a role to clone, from a run folder or a JSON-lines file.

    Of a run folder: every trainable step of the role that ended by itself, could be read and was carried out, in
    rollouts that were paid at least `min_reward` before `memory.pressure` was taken off: under it the right decision
    that adds is paid less than the right one that does not. Its prompts must have been written with this tokenizer.
    Of a file: lines of `role`, `messages` (chat messages with `role` and `content`), `completion`, and optionally
    `reward`, so that the teacher may be any model; lines of other roles, and those paid less, are left out.
    Raises MemR1Error naming file, line and field, and when nothing is left.
    """
    folder = Path(path)
    read = _of_run if folder.is_dir() else _of_file
    found = list(read(folder, role, codec, min_reward))
    if not found:
        raise MemR1Error(
            f"{path}: holds no trace of the {role} with a reward of at least {min_reward:g}; choose another teacher or "
            "lower stages.traces_min_reward"
        )
    return found


def _of_run(folder: Path, role: str, codec: ChatCodec, min_reward: float) -> Iterator[TrainSequence]:
    files = rollout_files(folder)
    if not files:
        raise MemR1Error(f"{folder}: holds no rollouts; name the folder of a run, or a JSON-lines file of traces")
    for path in files.values():
        for number, record in enumerate(read_jsonl(path), start=1):
            if record.get("reward") is None:
                continue
            if round(record["reward"] - record["reward_parts"].get("pressure", 0.0), 9) < min_reward:
                continue
            for step in record["steps"]:
                parsed = step["parsed"]
                carried_out = "error" not in parsed and all(o["ok"] for o in parsed.get("operations", ()))
                if step["role"] != role or not step["trainable"] or step["finish_reason"] != "stop" or not carried_out:
                    continue
                prompt = tuple(codec.tokenizer(step["prompt_text"], add_special_tokens=False)["input_ids"])
                if len(prompt) != step["prompt_tokens"]:
                    raise MemR1Error(
                        f"{path}:{number}: its prompt had {step['prompt_tokens']} tokens and has {len(prompt)} with "
                        "this model's tokenizer; take traces of the same model, or bring them as messages"
                    )
                yield _sequence(prompt, step["completion_text"], codec)


def _of_file(path: Path, role: str, codec: ChatCodec, min_reward: float) -> Iterator[TrainSequence]:
    for number, line in enumerate(read_jsonl(path), start=1):
        where = f"{path}:{number}"
        if line.get("role") not in ("manager", "answerer"):
            raise MemR1Error(f"{where}: role is {line.get('role')!r}; write manager or answerer")
        messages: Any = line.get("messages")
        completion, reward = line.get("completion"), line.get("reward", min_reward)
        if not _is_chat(messages):
            raise MemR1Error(f"{where}: messages: expected a list of objects with the texts role and content")
        if not isinstance(completion, str) or not completion.strip():
            raise MemR1Error(f"{where}: completion: expected a text that is not empty, got {completion!r}")
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise MemR1Error(f"{where}: reward: expected a number, got {reward!r}")
        if line["role"] != role or reward < min_reward:
            continue
        ids, _ = codec.encode(messages)
        if len(ids) > codec.max_prompt_tokens:
            raise MemR1Error(
                f"{where}: the prompt has {len(ids)} tokens; raise rollout.max_prompt_tokens or leave the line out"
            )
        yield _sequence(ids, completion, codec)


def _is_chat(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )  # fmt: skip


def _sequence(prompt: tuple[int, ...], completion: str, codec: ChatCodec) -> TrainSequence:
    ids = codec.encode_completion(completion)
    return TrainSequence(prompt, ids, (True,) * len(ids))
