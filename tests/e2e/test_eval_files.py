"""`memr1 eval` on a file of every benchmark's reader: rows, measures and predictions; all systems on one of them.

Not covered: how good anything is (the model is random); the judge (test_judge.py, test_harness.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memr1.cli import app
from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.evaluation.predictions import load_predictions
from memr1.evaluation.systems import SYSTEMS
from memr1.training.run import train
from memr1.training.runlog import read_evaluation
from tests.e2e import plumbing
from tests.unit import test_automemorybench, test_jsonl, test_longmemeval, test_msc
from tests.unit.small_locomo import conversation

CONFIG = """
backend: local
name: run
model: {name: tiny-random, device: cpu, threads: 1, lora: {rank: 4, alpha: 8}}
memory: {embedder: hash, answerer_top_k: 4, manager_top_k: 3}
data: {factworld: {num_worlds: 1, questions_per_fact_turn: 2, sessions_per_world: 2, people_per_world: 2}}
rollout: {prompts_per_step: 1, group_size: 2, answer_max_new_tokens: 8, manager_max_new_tokens: 8}
evaluation: {at_end: false}
stages:
  - {role: answerer, objective: sft, steps: 1, examples_per_step: 2}
  - {role: manager, objective: sft, steps: 1, examples_per_step: 2}
  - {role: answerer, objective: grpo, steps: 1}
  - {role: manager, objective: grpo, steps: 1}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run whose answers, whatever the random model writes, can be read (see `plumbing`)."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        plumbing.install(patch.setattr)
        yield train(load_config(folder / "run.yaml", [f"output={folder}"]))


def locomo(folder: Path) -> Path:
    """Two conversations, of which only conv-41 is for tests; one of its questions has no answer in it."""
    (talk,) = conversation()
    talk["qa"].append(
        {"question": "Who saw a whale?", "adversarial_answer": "Pia", "category": 5, "evidence": ["D1:1"]}
    )
    path = folder / "locomo.json"
    path.write_text(json.dumps([talk, {**talk, "sample_id": "conv-41"}]))
    return path


UTTERANCES = ("--set", "agents.extractor=utterance")


def own(folder: Path, asked_after: str | None = None) -> Path:
    """A dialogue whose one question the dialogue does not answer."""
    (question,) = test_jsonl.RECORD["questions"]
    question = {**question, "asked_after": asked_after, "answer": None, "abstain": True, "evidence": []}
    return test_jsonl.written(folder, {**test_jsonl.RECORD, "questions": [question], "metadata": {"split": "test"}})


# (kind of data, its file, further options, questions, measures beside the text match)
FILES: list[tuple[str, Callable[[Path], Path], tuple[str, ...], int, set[str]]] = [
    ("locomo", locomo, (), 12, {"locomo_f1"}),
    ("locomo", locomo, ("--adversarial",), 13, {"locomo_f1", "abstained"}),
    ("longmemeval", lambda f: test_longmemeval.write(f, [test_longmemeval.NATIVE]), (), 1, set()),
    (
        "longmemeval",
        lambda f: test_longmemeval.write(f, test_longmemeval.changed(question_id="q_abs")),
        (),
        1,
        {"abstained"},
    ),
    ("msc", lambda f: test_msc.write(f, test_msc.LINE), (), 1, set()),
    (
        "automemorybench",
        lambda f: test_automemorybench.write(f, test_automemorybench.CASE),
        (),
        3,
        {"contract", "required", "clean", "admissible", "abstained"},
    ),
    ("jsonl", own, (), 1, {"abstained"}),
]


def evaluated(run: Path, kind: str, path: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """Rows that `memr1 eval` added, and what it printed."""
    before = len(read_evaluation(run))
    result = CliRunner().invoke(
        app,
        ["eval", str(run), "--benchmark", kind, "--path", str(path), *options],
        env={"COLUMNS": "250"},
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    return read_evaluation(run)[before:], result.output


@pytest.mark.parametrize(
    ("kind", "make", "options", "questions", "measures"), FILES, ids=["-".join((f[0], *f[2])) for f in FILES]
)
def test_every_readers_file_is_evaluated(
    run: Path,
    tmp_path: Path,
    kind: str,
    make: Callable[[Path], Path],
    options: tuple[str, ...],
    questions: int,
    measures: set[str],
) -> None:
    rows, said = evaluated(run, kind, make(tmp_path), *options, "--systems", "trained,embedding", *UTTERANCES)
    assert [r["system"] for r in rows] == ["trained", "embedding"], said
    assert {r["n"] + r["unscored"] for r in rows} == {questions}
    assert [measures - set(r["metrics"]) for r in rows] == [set(), set()]
    for row in rows:
        kept = load_predictions(run / "predictions" / row["benchmark"] / f"{row['system']}.jsonl")
        assert len(kept) == questions and [p.error for p in kept if not p.answer] == []
    page = (run / "report.html").read_text()
    assert rows[0]["benchmark"] in page


def test_all_systems_answer_a_conversation_and_each_is_a_row(run: Path, tmp_path: Path) -> None:
    rows, said = evaluated(run, "locomo", locomo(tmp_path), "--systems", ",".join(SYSTEMS), *UTTERANCES)
    left_out = {name for name in SYSTEMS if f"  {name}: left out, there are no oracle operations" in said}
    assert left_out == {name for name, s in SYSTEMS.items() if s.memory == "oracle"}
    assert [r["system"] for r in rows] == [name for name in SYSTEMS if name not in left_out]
    assert {r["n"] for r in rows} == {12}
    held = {r["system"]: r["memory"]["entries"] for r in rows}
    assert (held["no-memory"], held["wiped"], held["add-everything"], held["bm25"]) == (0, 0, 12, 12)
    shown = {
        name: load_predictions(run / "predictions" / rows[0]["benchmark"] / f"{name}.jsonl")[0].retrieved
        for name in ("no-memory", "bm25", "full-context")
    }
    assert [len(texts) for texts in shown.values()] == [0, 4, 12]


def test_data_without_a_question_at_the_end_is_refused_before_anything_is_computed(run: Path, tmp_path: Path) -> None:
    before = read_evaluation(run)
    with pytest.raises(
        MemR1Error, match="nothing to evaluate, since no dialogue has a question that is asked at its end"
    ):
        evaluated(run, "jsonl", own(tmp_path, "t3"), "--systems", "no-memory")
    assert read_evaluation(run) == before
