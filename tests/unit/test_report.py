"""The run log, and the report made from it. Whether the figures look good is for eyes; that they exist is tested."""

import base64
import json
import logging
import re
from dataclasses import replace

import pytest

from memr1.errors import MemR1Error
from memr1.evaluation.predictions import dump_predictions, load_predictions
from memr1.evaluation.rows import Row, summarize
from memr1.training.report import sample_rollouts, write_report
from memr1.training.report_evaluation import _comparisons
from memr1.training.report_plots import duration, moving_average, stage_segments, time_shares
from memr1.training.runlog import (
    RunLog,
    machine_info,
    read_evaluation,
    read_info,
    read_jsonl,
    read_metrics,
    read_rollouts,
    rollout_files,
)
from tests.unit import synthetic_run as run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "demo"
    last = run.write_run(path)
    write_report(path)
    return path, last


def test_metrics_come_back_as_they_were_logged(tmp_path):
    with RunLog(tmp_path) as log:
        log.metrics(
            1, "answerer-sft", 1, {"learner/loss": 2.5, "reward/mean": float("nan"), "x": float("inf")}, time=7.0
        )
        log.metrics(2, "answerer-sft", 2, {"learner/loss": 1, "flag": True})
    first, second = read_metrics(tmp_path)
    assert first == {
        "step": 1,
        "stage": "answerer-sft",
        "stage_step": 1,
        "time": 7.0,
        "learner/loss": 2.5,
        "reward/mean": None,
        "x": None,
    }
    assert (second["learner/loss"], second["flag"]) == (1, 1)
    assert second["time"] > 1.6e9


def test_numpy_and_torch_numbers_are_logged_as_numbers(tmp_path):
    import numpy as np
    import torch

    log = RunLog(tmp_path)
    log.metrics(1, "s", 1, {"a": np.float32(0.5), "b": torch.tensor(2), "c": np.float64("nan")})
    line = read_metrics(tmp_path)[0]
    assert (line["a"], line["b"], line["c"]) == (0.5, 2, None)
    with pytest.raises(MemR1Error, match="metric 'v' at step 2: expected one number"):
        log.metrics(2, "s", 2, {"v": np.ones(3)})
    assert len(read_metrics(tmp_path)) == 1


def test_a_metric_that_is_no_number_is_refused_and_not_written(tmp_path):
    log = RunLog(tmp_path)
    with pytest.raises(MemR1Error, match="'who' at step 3: expected a number, found 'me'"):
        log.metrics(3, "s", 1, {"who": "me"})
    with pytest.raises(MemR1Error, match="'time' at step 3: the name is reserved"):
        log.metrics(3, "s", 1, {"time": 1.0})
    assert read_metrics(tmp_path) == []


def test_a_torn_last_line_is_left_out_and_never_glued_to_the_next(tmp_path, caplog):
    log = RunLog(tmp_path)
    log.metrics(1, "s", 1, {"a": 1.0})
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 2, "stage": "Zo\xc3')  # killed in the middle of a character
    with caplog.at_level(logging.WARNING):
        assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    assert "metrics.jsonl:2: the last line is torn" in caplog.text
    RunLog(tmp_path).metrics(2, "s", 2, {"a": 2.0})
    assert [(line["step"], line["a"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0)]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}', encoding="utf-8")
    RunLog(tmp_path).metrics(2, "s", 2, {})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_other_damage_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(MemR1Error, match=r"metrics\.jsonl:2: not JSON"):
        read_metrics(tmp_path)
    path.write_text('{"step": 1}\n[2]\n', encoding="utf-8")
    with pytest.raises(MemR1Error, match=r"metrics\.jsonl:2: expected an object, found list"):
        read_metrics(tmp_path)
    # a complete last line that is no JSON is damage, not a torn write
    path.write_text('{"step": 1}\nnonsense\n', encoding="utf-8")
    with pytest.raises(MemR1Error, match=r"metrics\.jsonl:2: not JSON"):
        read_metrics(tmp_path)


def test_rollouts_come_back_with_their_advantage(tmp_path):
    log = RunLog(tmp_path)
    record = run.trajectory_record(run.answerer_trajectory(), 0.7)
    path = log.rollouts(12, [record, run.manager_trajectory()])
    assert path == tmp_path / "rollouts" / "step_000012.jsonl"
    first, second = read_rollouts(path)
    assert (first["advantage"], first["reward"], first["outcome"]["gold"]) == (0.7, 1.0, "Rome")
    assert (first["steps"][0]["prompt_tokens"], first["steps"][0]["weight_version"]) == (6, 3)
    assert (second["advantage"], second["outcome"]["operations"][1]["reason"]) == (None, "no live entry 7")
    log.rollouts(12, [record])
    assert len(read_rollouts(path)) == 1


def test_texts_that_break_naive_json_lines_survive(tmp_path):
    text = 'a\nb\u2028c \ud83d\ude00 "q" \ud800'
    path = RunLog(tmp_path).rollouts(1, [{"outcome": {"answer": text, "score": float("nan"), "ids": ("a", "b")}}])
    assert len(path.read_text(encoding="utf-8").split("\n")) == 2
    outcome = read_rollouts(path)[0]["outcome"]
    assert outcome["answer"].startswith("a\nb\u2028c ")
    assert (outcome["score"], outcome["ids"]) == (None, ["a", "b"])


def test_an_outcome_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(MemR1Error, match="cannot write object"):
        RunLog(tmp_path).rollouts(1, [{"outcome": {"model": object()}}])
    assert rollout_files(tmp_path) == {}


def test_resuming_leaves_every_step_exactly_once(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(1, 8):
            log.metrics(step, "s", step, {"a": float(step)})
            log.rollouts(step, [{"reward": float(step)}])
        log.evaluation(3, "s", {"benchmark": "b", "system": "trained"})
        log.evaluation(7, "s", {"benchmark": "b", "system": "trained"})
    with RunLog(tmp_path) as log:
        log.truncate_after(5)
        for step in range(6, 9):
            log.metrics(step, "s", step, {"a": -float(step)})
    assert [line["a"] for line in read_metrics(tmp_path)] == [1.0, 2.0, 3.0, 4.0, 5.0, -6.0, -7.0, -8.0]
    assert list(rollout_files(tmp_path)) == [1, 2, 3, 4, 5]
    assert [line["step"] for line in read_evaluation(tmp_path)] == [3]


def test_facts_about_the_run_are_merged(tmp_path):
    log = RunLog(tmp_path)
    log.info({"model": "m", "seed": 1})
    log.info({"seed": 2, "machine": machine_info()})
    info = read_info(tmp_path)
    assert (info["model"], info["seed"]) == ("m", 2)
    assert info["machine"]["cpus"] >= 1
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(MemR1Error, match=r"run\.json: not JSON"):
        read_info(tmp_path)


def test_a_broken_tensorboard_warns_once_and_the_log_goes_on(tmp_path, monkeypatch, caplog):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it now raises ImportError
    log = RunLog(tmp_path, tensorboard=True)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            log.metrics(step, "s", step, {"a": 1.0})
    assert len([r for r in caplog.records if "TensorBoard mirror off" in r.message]) == 1
    assert len(read_metrics(tmp_path)) == 3


def test_the_tensorboard_mirror_holds_the_logged_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, tensorboard=True) as log:
        log.metrics(1, "s", 1, {"reward/mean": 0.25, "hole": float("nan")})
        log.metrics(2, "s", 2, {"reward/mean": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]
    assert events.Tags()["scalars"] == ["reward/mean"]


def test_an_unwritable_run_folder_is_explained(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(MemR1Error, match="the run folder cannot be made"):
        RunLog(tmp_path / "file" / "run")


def test_a_finished_run_gets_all_sections_and_figures(finished):
    path, last = finished
    html = (path / "report.html").read_text(encoding="utf-8")
    for heading in ("Evaluation", "Training", "Where the time went", "Rollouts", "Config"):
        assert re.search(rf"<h2[^>]*>{heading}</h2>", html), heading
    figures = {p.name for p in (path / "plots").glob("*.png")}
    assert {"reward.png", "operations.png", "kl.png", "mismatch.png", "bank.png", "time.png"} <= figures
    assert {"evaluation-factworld.png", "evaluation-factworld-steps.png"} <= figures
    assert {"failures-factworld.png", "growth-factworld.png"} <= figures
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(embedded) == len(figures)
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in embedded)
    assert f"Step {last}, world-2/t1" in html
    assert "12 steps" in html


def test_failures_costs_and_memories_are_tables(finished):
    markdown = (finished[0] / "report.md").read_text(encoding="utf-8")
    kept = [p for p in run.predictions() if p.system == "no-memory"]
    wrong = sum(p.answer != "rome" for p in kept)
    share = f"{100 * wrong / 60:.1f}"
    assert f"| no-memory | {share} | {share} | 0.0 | 0.0 | 0.0 |" in markdown  # nothing is stored without a memory
    assert "| no-memory | 200 | 12.0 | 0.10 | – | – |" in markdown
    assert "| trained | 200 | 12.0 | 0.10 | 200 | 0.10 |" in markdown  # 12000 tokens and 6 s for 60 questions
    assert "| trained | 8.0 | 25.0 | 15.0 | 0.0 | 50.0 | 5.0 | 10.0 |" in markdown
    (growth,) = {r.memory.growth for r in [summarize(kept, run.footprints())] if r.memory}
    after = {0: 0.0, 1: 3.0, 2: 5.5, 3: 8.0}  # each of three sessions, means of two dialogues
    for tenth, entries in enumerate(growth, 1):
        session, within = divmod(3 * tenth, 10)
        step = after.get(session + 1, 8.0) - after[session]
        assert entries == pytest.approx(after[session] + step * within / 10)


def test_a_benchmark_without_the_metric_still_has_its_table(tmp_path):
    declined = [replace(p, abstain=True, answer="unknown") for p in run.predictions() if p.system == "trained"]
    with RunLog(tmp_path) as log:
        log.evaluation(1, "evaluation", summarize(declined, measures=("abstained",)).to_dict())
    write_report(tmp_path)
    assert "| trained | 60 | 100.0 [" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not (tmp_path / "plots" / "evaluation-factworld.png").exists()


def test_a_headline_counts_the_questions_that_its_metric_applies_to(tmp_path):
    answered = [p for p in run.predictions() if p.system == "trained"]
    declined = [replace(p, abstain=i < 20) for i, p in enumerate(answered)]
    with RunLog(tmp_path) as log:
        log.evaluation(1, "evaluation", summarize(declined, measures=("abstained",)).to_dict())
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "em_set, n = 40" in text and "n = 60" not in text


def test_the_page_fetches_nothing_from_elsewhere(finished):
    html = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "@import" not in html
    assert "<script" not in html


def test_model_output_cannot_become_markup(tmp_path):
    log = RunLog(tmp_path)
    bad = run.answerer_trajectory(answer="<script>alert(1)</script> ```x")
    log.rollouts(1, [bad])
    write_report(tmp_path)
    assert "<script>" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "````\n0\n**Answer:** <script>alert(1)</script> ```x\n````" in markdown


def test_the_report_prints_the_latest_numbers_in_the_order_of_the_last_evaluation(finished):
    path, last = finished
    markdown = (path / "report.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (path / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = next(r for r in rows if r["system"] == "trained" and r["step"] == last)["metrics"]["em_set"]
    cell = f"{100 * trained['mean']:.1f} [{100 * trained['low']:.1f}, {100 * trained['high']:.1f}]"
    assert f"**factworld, trained: {cell}**" in markdown
    table = markdown.split("### factworld")[1]
    systems = re.findall(r"^\| ([\w-]+) \| 60 \|", table, flags=re.M)
    assert systems == ["no-memory", "bm25", "untrained", "trained"]
    assert "| system | 1 multi-hop (n=20) | 2 temporal (n=20) | update (n=20) |" in markdown
    assert "![Reward](plots/reward.png)" in markdown
    assert "10 min 12 s, first to last step" in markdown  # 51 gaps of 12 s


def test_the_trained_system_is_compared_by_question_with_those_whose_predictions_were_kept(finished):
    markdown = (finished[0] / "report.md").read_text(encoding="utf-8")
    sentences = re.findall(r"^- (factworld em_set: trained .*)$", markdown, flags=re.M)
    assert len(sentences) == 1
    assert re.search(r"trained 70\.0 against bm25 31\.7, difference \+38\.3 .* n = 60: a real difference", sentences[0])


def test_answerers_are_compared_on_the_perfect_bank_too(tmp_path):
    run.write_run(tmp_path)
    folder = tmp_path / "predictions" / "factworld"
    for ours, name in (("trained", "oracle-trained"), ("bm25", "oracle-warm")):
        kept = load_predictions(folder / f"{ours}.jsonl")
        dump_predictions([replace(p, system=name) for p in kept], folder / f"{name}.jsonl")
    systems = ["bm25", "oracle-warm", "oracle-trained", "trained"]
    sentences = _comparisons(folder, systems, "em_set")
    assert [s.split(",")[0] for s in sentences] == [
        "factworld em_set: trained 70.0 against bm25 31.7",
        "factworld em_set: trained 70.0 against oracle-warm 31.7",
        "factworld em_set: trained 70.0 against oracle-trained 70.0",
        "factworld em_set: oracle-trained 70.0 against oracle-warm 31.7",
    ]
    assert _comparisons(folder, ["bm25"], "em_set") == []


def test_predictions_on_other_questions_are_not_compared_and_the_report_says_so(tmp_path):
    run.write_run(tmp_path)
    path = tmp_path / "predictions" / "factworld" / "bm25.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"w0"', '"another world"'), encoding="utf-8")
    write_report(tmp_path)
    assert "- not compared: compare: trained and bm25 share no scored question" in (tmp_path / "report.md").read_text()


def test_rows_that_were_measured_on_other_data_stand_in_no_table_with_the_newest(tmp_path):
    run.write_run(tmp_path)
    rows = read_evaluation(tmp_path)
    with RunLog(tmp_path) as log:
        for name in ("trained", "bm25"):
            row = next(r for r in reversed(rows) if r["system"] == name)
            log.evaluation(row["step"], "evaluation", Row.from_dict({**row, "measured_on": "other"}).to_dict())
    write_report(tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    table = markdown.split("### factworld")[1]
    assert re.findall(r"^\| ([\w-]+) \| 60 \|", table, flags=re.M) == ["trained", "bm25"]
    assert "> factworld: no-memory, untrained left out, measured on other data or settings than the newest" in markdown


def test_facts_are_written_for_people(finished):
    markdown = (finished[0] / "report.md").read_text(encoding="utf-8")
    assert "| started | 2023-11-14 22:13 UTC |" in markdown
    assert "| training time | 9 min 50 s |" in markdown
    assert "| machine | cpus 2, memory_gib 15.6 |" in markdown


def test_an_empty_run_says_what_is_missing(tmp_path):
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for sentence in (
        "No training step was logged",
        "No evaluation was done",
        "No rollouts were saved",
        "no config.yaml",
    ):
        assert sentence in html
    assert "<img" not in html
    assert not re.search(r"<h2", html)


def test_a_run_without_evaluation_shows_its_curves(tmp_path):
    run.write_run(tmp_path, evaluation=False)
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No evaluation was done yet." in html
    assert "Reward, answerer-grpo" in html


def test_a_single_step_can_be_reported(tmp_path):
    RunLog(tmp_path).metrics(1, "manager-grpo", 1, {"reward/mean": 0.5, "ops/add_fraction": 1.0, "time/step_s": 2.0})
    write_report(tmp_path)
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"reward.png", "operations.png", "time.png"}


def test_figures_of_an_earlier_report_do_not_linger(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.png").write_bytes(b"x")
    write_report(tmp_path)
    assert list((tmp_path / "plots").iterdir()) == []


def test_a_report_of_nothing_or_of_damage_is_refused(tmp_path):
    with pytest.raises(MemR1Error, match="no such run folder"):
        write_report(tmp_path / "none")
    with pytest.raises(MemR1Error, match="'em' is not one of"):
        write_report(tmp_path, metric="em")
    (tmp_path / "evaluation.jsonl").write_text('{"benchmark": "x"}\n', encoding="utf-8")
    with pytest.raises(MemR1Error, match="evaluation row"):
        write_report(tmp_path)
    (tmp_path / "evaluation.jsonl").unlink()
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(MemR1Error, match=r"config\.yaml of the run: not readable"):
        write_report(tmp_path)


def test_the_best_and_the_worst_rollout_of_the_first_and_last_step_are_shown(tmp_path):
    log = RunLog(tmp_path)
    for step in (3, 4, 5):
        rewards = (0.5, 0.0, 1.0, None)
        log.rollouts(step, [{"task_id": f"t{r}", "reward": r, "steps": []} for r in rewards])
    assert [r["title"] for r in sample_rollouts(tmp_path)] == [
        "Step 3, t1.0",
        "Step 3, t0.0",
        "Step 5, t1.0",
        "Step 5, t0.0",
    ]


def test_the_moving_average_steps_over_holes():
    assert moving_average([1.0, None, 3.0, 5.0], 2) == [1.0, 1.0, 3.0, 4.0]
    assert moving_average([None, 2.0], 3) == [None, 2.0]


def test_a_stage_that_comes_twice_is_two_stretches():
    lines = [{"stage": s, "stage_step": n} for s, n in (("a", 1), ("a", 2), ("b", 1), ("a", 1), ("a", 2), ("a", 1))]
    assert stage_segments(lines) == [("a", 0, 2), ("b", 2, 3), ("a", 3, 5), ("a", 5, 6)]


def test_time_that_no_part_claims_is_other():
    lines = [{"stage": "s", "time/rollout_s": 2.0, "time/update_s": 3.0, "time/step_s": 6.0}] * 2
    assert time_shares(lines) == {"s": {"rollout": 4.0, "update": 6.0, "other": 2.0}}


def test_durations_read_naturally():
    assert [duration(s) for s in (8.44, 61, 3599.7, 7500)] == ["8.4 s", "1 min 01 s", "1 h 00 min", "2 h 05 min"]


def test_reading_a_file_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(MemR1Error, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl")
