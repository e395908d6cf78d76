"""Every preset is valid, and goes through the dry run on the hardware that it is written for.

Not covered: training with them; the sizes of the models' activations, which are bounds by formula.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from memr1.config import Config
from memr1.config_file import load_config
from memr1.errors import MemR1Error
from memr1.training.dry_run import dry_run, read_gpus
from tests.unit.small_locomo import conversation

PRESETS = Path(__file__).parents[2] / "configs" / "memory_r1"
HARDWARE = {
    "llama31_8b_8gpu": "8x80",
    "qwen25_7b_4gpu": "4x80",
    "qwen25_3b_1gpu": "1x80",
    "smollm2_135m_1gpu": "1x8",
    "smollm2_135m_cpu": "",
}


def resolved(name: str, folder: Path, *overrides: str) -> Config:
    (folder / "talk.json").write_text(json.dumps(conversation()))
    (folder / "teacher.jsonl").write_text("{}\n")
    changes = ["memory.embedder=hash", f"output={folder}", *overrides]
    if "factworld" not in (PRESETS / f"{name}.yaml").read_text():
        changes.append(f"data.path={folder / 'talk.json'}")
    else:
        changes.append("data.factworld.num_worlds=2")
    if name == "smollm2_135m_cpu" and not any("traces" in o for o in overrides):
        changes.append(f"stages.1.traces={folder / 'teacher.jsonl'}")
    return load_config(PRESETS / f"{name}.yaml", changes)


def report(config: Config, gpus: str) -> str:
    heard = io.StringIO()
    dry_run(config, read_gpus(gpus or "0"), Console(file=heard, width=400))
    return heard.getvalue()


def test_every_preset_is_tested() -> None:
    assert {p.stem for p in PRESETS.glob("*.yaml")} == set(HARDWARE)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.model] if n.startswith("smollm2") else []) for n in HARDWARE]
)
def test_a_preset_goes_through_the_dry_run_on_its_hardware(name: str, tmp_path: Path) -> None:
    config = resolved(name, tmp_path)
    said = report(config, HARDWARE[name])
    for part in ("# Configuration\nname: memory_r1_", "# Data", "# Plan", "# Memory", "# Tokens in a step"):
        assert part in said
    for role in ("answerer", "manager"):  # two whole prompts of each, the chat template around them
        (shown,) = re.findall(rf"^# Prompts of the {role}, .*?(?=^# Pro|^# Plan)", said, re.DOTALL | re.MULTILINE)
        lengths = [int(tokens) for tokens in re.findall(r"^--- (\d+) tokens", shown, re.MULTILINE)]
        assert len(lengths) == 2 and 0 < lengths[0] <= lengths[1] <= config.rollout.max_prompt_tokens
        assert len(shown) > 500 and shown.count("user") >= 2
    assert "# Not checked here\n- the weights of the model" in said
    hub = "/" in config.model.name
    assert (f"the tokenizer of {config.model.name}, which is not here" in said) == hub
    assert ("facts extracted by the model" in said) == (config.agents.extractor == "llm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["talk.json", "teacher.jsonl"]


@pytest.mark.parametrize("path", [*PRESETS.glob("*.yaml"), PRESETS.parent / "train_local.yaml"], ids=lambda p: p.stem)
def test_every_system_of_a_preset_shows_as_many_memories(path: Path) -> None:
    config = load_config(path, [])
    assert config.turns_shown == config.memory.answerer_top_k


@pytest.mark.parametrize(("name", "gpus"), [("llama31_8b_8gpu", "8x40"), ("qwen25_3b_1gpu", "1x24")])
def test_a_preset_is_refused_where_it_does_not_fit(name: str, gpus: str, tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="GiB and has"):
        report(resolved(name, tmp_path), gpus)


@pytest.mark.parametrize("name", ["llama31_8b_8gpu", "qwen25_7b_4gpu"])
def test_the_published_settings_are_in_the_presets_for_several_gpus(name: str, tmp_path: Path) -> None:
    config = resolved(name, tmp_path)
    rollout, memory = config.rollout, config.memory
    assert (rollout.prompts_per_step, rollout.max_prompt_tokens) == (128, 4096)
    assert (rollout.answer_max_new_tokens, rollout.manager_max_new_tokens) == (2048, 2048)
    assert (memory.answerer_top_k, memory.per_speaker, memory.manager_top_k, memory.pressure) == (60, True, 5, 0.0)
    assert (config.data.window, rollout.temperature) == (50, 1.0)
    assert config.agents.protocol == "json" and config.agents.distillation
    assert {s.reward for s in config.stages} == {"em_set"} and {s.schedule for s in config.stages} == {"constant"}
    if config.model.weights == "full":
        assert {s.learning_rate for s in config.stages} == {1e-6}
        assert config.algo.critic.learning_rate == 1e-5


@pytest.mark.model
def test_a_teacher_that_is_not_there_stops_the_dry_run(tmp_path: Path) -> None:
    with pytest.raises(MemR1Error, match="absent.jsonl is not there"):
        report(resolved("smollm2_135m_cpu", tmp_path, f"stages.1.traces={tmp_path / 'absent.jsonl'}"), "")
