"""The rollout pager and the progress line, as a person reads them."""

import io

import pytest
from rich.console import Console

from memr1.errors import MemR1Error
from memr1.training.progress import Progress, numbers_line
from memr1.training.runlog import RunLog
from memr1.training.view import PRINT_LIMIT, bank_changes, make_filter, view
from tests.unit import synthetic_run as run


@pytest.fixture
def run_dir(tmp_path):
    run.write_run(tmp_path, evaluation=False)
    return tmp_path


def shown(run_dir, **options):
    console = Console(file=io.StringIO(), width=110)
    view(run_dir, interactive=False, console=console, **options)
    return console.file.getvalue()


def test_the_last_step_is_shown_with_everything_a_manager_did(run_dir):
    text = shown(run_dir, index=0)
    for expected in (
        "step 52 · rollout 1 of 2 · world-2/t0 · group m0",
        "1. manager (manager)  6 + 4 tokens · weights v5 · finish length · trains",
        "Facts: Ada moved to Oslo.",
        '✓ UPDATE 0 "Ada lives in Oslo."',
        "✗ DELETE 7 – rejected: no live entry 7",
        "bank  2 → 2 entries",
        "- [0] Ada lives in Rome.",
        "~ [0] Ada lives in Oslo.",
        "- [1] Ada has a cat.",
        "+ [2] Ada likes ferries.",
        "gold       Oslo",
        "answer     (none)",
        "reward     0   advantage -1",
        "parts      em_set 0",
    ):
        assert expected in text, expected
    assert "rollout 2" not in text


def test_an_answerer_rollout_shows_retrieved_and_selected_entries_and_prompts_as_they_are(run_dir):
    text = shown(run_dir, step=13, index=0)
    assert "retrieved  2 entries, 1 selected (●)" in text
    assert "● [0] Ada moved to Rome. (2024-05-01)" in text
    assert "    [1] Ada has a cat. (2024-05-02)" in text
    assert "[bold]not markup[/bold]" in text
    assert "parsed: selected = ['0'], answer = Rome" in text


def test_selected_entries_that_were_never_retrieved_are_pointed_out(tmp_path):
    record = run.trajectory_record(run.answerer_trajectory(), None)
    record["outcome"] = {**record["outcome"], "selected": ["0", "9"]}
    RunLog(tmp_path).rollouts(1, [record])
    assert "selected but never retrieved: 9" in shown(tmp_path)


def test_without_a_terminal_at_most_a_limit_is_printed(tmp_path):
    RunLog(tmp_path).rollouts(1, [run.answerer_trajectory(i) for i in range(PRINT_LIMIT + 3)])
    text = shown(tmp_path)
    assert text.count("rollout ") == PRINT_LIMIT
    assert "3 more rollouts of step 1" in text
    assert f"rollout {PRINT_LIMIT + 3} of {PRINT_LIMIT + 3}" in shown(tmp_path, index=-1)


def test_a_bare_record_and_a_failed_episode_can_be_shown(tmp_path):
    RunLog(tmp_path).rollouts(1, [{}, run.trajectory_record(run.answerer_trajectory(error="engine lost"), None)])
    text = shown(tmp_path)
    assert "error      engine lost" in text
    assert text.count("reward     –   advantage –") == 2


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("reward<0.5", ["world-1/q1"]),
        ("reward = 1", ["world-1/q0"]),
        ("reward!=1", ["world-1/q1"]),
        ("advantage>=0.7", ["world-1/q0"]),
        ("task:q1", ["world-1/q1"]),
        ("role:answerer", ["world-1/q0", "world-1/q1"]),
        ("role:manager", []),
        ("category:single", ["world-1/q0", "world-1/q1"]),
        ("paris", ["world-1/q1"]),
        ("text:ada has a cat", ["world-1/q0", "world-1/q1"]),
        ("error:", []),
        (None, ["world-1/q0", "world-1/q1"]),
    ],
)
def test_filters_keep_what_they_say(text, kept):
    rollouts = [
        run.trajectory_record(run.answerer_trajectory(0), 0.7),
        run.trajectory_record(run.answerer_trajectory(1, reward=0.0, answer="Paris"), -0.7),
    ]
    assert [r["task_id"] for r in rollouts if make_filter(text)(r)] == kept


def test_wrong_requests_say_what_there_is(run_dir, tmp_path_factory):
    with pytest.raises(MemR1Error, match="step 14 has no saved rollouts; saved steps are 13, 52"):
        view(run_dir, step=14)
    with pytest.raises(MemR1Error, match="index 2: step 52 has 2 rollouts here; give 0 to 1"):
        view(run_dir, index=2)
    with pytest.raises(MemR1Error, match="'zebra' fits none of the 2 rollouts"):
        view(run_dir, filter="zebra")
    with pytest.raises(MemR1Error, match="compare with a number"):
        view(run_dir, filter="reward<good")
    with pytest.raises(MemR1Error, match="no such run folder"):
        view(run_dir / "none")
    with pytest.raises(MemR1Error, match="no rollouts were saved there"):
        view(tmp_path_factory.mktemp("empty"))


def test_keys_move_jump_change_steps_and_quit(run_dir, monkeypatch):
    keys = iter(["n", "n", "p", "s 13", "2", "9", "x", "s 99", "q", "never read"])
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda prompt: next(keys))
    console = Console(file=io.StringIO(), width=110)
    view(run_dir, console=console)
    text = console.file.getvalue()
    import re

    assert re.findall(r"step (\d+) · rollout (\d)", text) == [
        ("52", "1"),
        ("52", "2"),
        ("52", "2"),
        ("52", "1"),
        ("13", "1"),
        ("13", "2"),
    ]
    assert "'9': n next" in text
    assert "step 99 has no saved rollouts" in text
    assert next(keys) == "never read"


def test_end_of_input_ends_the_pager(run_dir, monkeypatch):
    def closed(prompt):
        raise EOFError

    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", closed)
    console = Console(file=io.StringIO(), width=110)
    view(run_dir, console=console)
    assert console.file.getvalue().count("rollout 1 of 2") == 1


def test_bank_changes_name_what_was_added_changed_and_deleted():
    before = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 3, "text": "c"}]
    after = [{"id": 1, "text": "a"}, {"id": 2, "text": "B"}, {"id": 4, "text": "d"}]
    assert bank_changes(before, after) == [("~", "2", "b", "B"), ("-", "3", "c", None), ("+", "4", None, "d")]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_time_left_counts_known_stages_at_their_own_pace_and_others_at_the_average():
    clock = Clock()
    console = Console(file=io.StringIO(), width=200)
    with Progress([("answerer-sft", 2), ("answerer-grpo", 3), ("manager-grpo", 2)], console=console, clock=clock) as p:
        assert p.time_left() is None
        clock.now = 10
        p.update("answerer-sft", 1, {"learner/loss": 2.0})
        assert p.time_left() == pytest.approx(10 * 6)
        clock.now = 20
        p.update("answerer-sft", 2, {})
        clock.now = 60
        p.update("answerer-grpo", 1, {"reward/mean": 0.5})
        # 2 steps at 40 s, then 2 at the average of (10 + 10 + 40) / 3
        assert p.time_left() == pytest.approx(2 * 40 + 2 * 20)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "answerer-sft 1/2 | loss 2.000 | 1 min 00 s left",
        "answerer-sft 2/2 | 50.0 s left",
        "answerer-grpo 1/3 | reward 0.500 | 2 min 00 s left",
    ]


def test_a_resumed_run_does_not_count_steps_it_did_not_make():
    clock = Clock()
    with Progress([("a", 10), ("b", 60)], console=Console(file=io.StringIO()), clock=clock) as p:
        clock.now = 5
        p.update("b", 51, {})
        assert p.time_left() == pytest.approx(9 * 5)


def test_a_stage_name_may_come_twice():
    clock = Clock()
    with Progress([("a", 2), ("b", 1), ("a", 2)], console=Console(file=io.StringIO()), clock=clock) as p:
        for name, step in (("a", 1), ("a", 2), ("b", 1), ("a", 1)):
            clock.now += 1
            p.update(name, step, {})
        assert p.time_left() == pytest.approx(1.0)
        p.update("a", 2, {})
        assert p.time_left() == 0.0
        with pytest.raises(MemR1Error, match="step 1 of stage 'b' does not follow"):
            p.update("b", 1, {})
    with pytest.raises(MemR1Error, match="no stages"):
        Progress([])


def test_the_line_holds_what_there_is_and_nothing_else():
    metrics = {
        "reward/mean": 0.625,
        "ops/add_fraction": 0.4,
        "ops/noop_fraction": 0.6,
        "parse/reject_fraction": 0.03,
        "tokens/per_second": 118.4,
        "learner/loss": float("nan"),
    }
    assert numbers_line(metrics) == "reward 0.625 · add 40% noop 60% · unreadable 3% · 118 tok/s"
    assert numbers_line({}) == ""


def test_in_a_terminal_there_is_a_bar():
    console = Console(file=io.StringIO(), width=140, force_terminal=True, legacy_windows=False)
    with Progress([("answerer-grpo", 4)], console=console) as p:
        p.update("answerer-grpo", 3, {"reward/mean": 0.5})
    text = console.file.getvalue()
    assert "3/4" in text
    assert "reward 0.500" in text
    assert "[1/1]" in text
    assert "━" in text
