"""Prediction: one question answered by one system, and its file. Written by the harness, read by tables and reports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from memr1.data.types import Contract
from memr1.errors import MemR1Error


@dataclass(frozen=True)
class Prediction:
    """One question answered by one system."""

    benchmark: str
    system: str
    dialogue_id: str
    question_id: str
    category: str
    category_id: int | None
    question: str
    gold: str | None
    """None where the dataset has no answer; such a prediction is kept but not scored."""
    answer: str | None
    """None where the completion could not be parsed, or where `error` says why there is none."""
    retrieved: tuple[str, ...] = ()
    """Texts of the entries shown to the answerer, best first."""
    selected: tuple[str, ...] = ()
    """Ids of the entries that the answerer said it used."""
    evidence_recall: float | None = None
    """Share of the question's evidence turns that the entries shown come from; None where unknown."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_cut: bool = False
    """True when memories were dropped to fit the prompt into its budget."""
    seconds: float = 0.0
    error: str | None = None
    abstain: bool = False
    """True where the right answer is that the dialogue does not say."""
    disputed: bool = False
    """True where an audit of the dataset's labels proposed a correction."""
    evidence: tuple[str, ...] = ()
    """Ids of the turns that hold the answer."""
    shown_turns: tuple[tuple[str, ...], ...] = ()
    """Ids of the turns that each entry of `retrieved` came from."""
    reached: str | None = None
    """How far the evidence came: `nothing`, `memory` or `prompt`; see `memr1.evaluation.failures`."""
    judged: float | None = None
    """1.0 where the judge accepted the answer, 0.0 where not; None without a judge or a verdict."""
    judge_error: str | None = None
    """Why the judge gave no verdict."""
    contract: Contract | None = None
    """What the answer and the entries shown must and must not hold, where the dataset says so."""

    @property
    def key(self) -> tuple[str, str]:
        """What makes the question unique within its benchmark."""
        return self.dialogue_id, self.question_id


def dump_predictions(predictions: Iterable[Prediction], path: str | Path) -> None:
    """Write one JSON object per line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(dataclasses.asdict(prediction), ensure_ascii=False) + "\n")


def load_predictions(path: str | Path) -> list[Prediction]:
    """Read what `dump_predictions` wrote. MemR1Error names the file and line of anything else."""
    path = Path(path)
    if not path.is_file():
        raise MemR1Error(f"{path}: no such file of predictions; `memr1 eval` writes one")
    known = {f.name for f in dataclasses.fields(Prediction)}
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            unknown = sorted(set(data) - known)
            if unknown:
                raise MemR1Error(f"{path}:{number}: {unknown[0]} is not a field of a prediction")
            for name in ("retrieved", "selected", "evidence"):
                data[name] = tuple(data.get(name, ()))
            data["shown_turns"] = tuple(map(tuple, data.get("shown_turns", ())))
            if data.get("contract") is not None:
                data["contract"] = Contract(**{k: tuple(v) for k, v in data["contract"].items()})
            out.append(Prediction(**data))
        except (ValueError, TypeError) as error:
            raise MemR1Error(f"{path}:{number}: not a prediction: {error}; write the file again") from error
    return out


def by_question(predictions: Iterable[Prediction]) -> dict[tuple[str, str], Prediction]:
    """Predictions by their keys. MemR1Error when a question comes twice."""
    out: dict[tuple[str, str], Prediction] = {}
    for p in predictions:
        if p.key in out:
            raise MemR1Error(
                f"{p.benchmark}: {p.system} has two predictions for question {p.dialogue_id}/{p.question_id}"
            )
        out[p.key] = p
    return out
