"""Exports of runs, read back by transformers and peft alone. What training leaves in a checkpoint is in tests/e2e."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from memr1.cli import app
from memr1.config import Config, ModelConfig, StageConfig
from memr1.config_file import to_yaml
from memr1.errors import MemR1Error
from memr1.models.adapters import LoraSettings, PolicyModel
from memr1.models.registry import resolve_model
from memr1.training.checkpoints import TrainState, save_checkpoint
from memr1.training.export import export_run

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.tensor([[72, 105, 33, 10, 7]])


def make_run(folder: Path, weights: str, state: TrainState) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run folder with one checkpoint whose roles have both moved; (folder, logits by role)."""
    model = ModelConfig(name="tiny-random", weights=weights, device="cpu", dtype="float32", lora=LoraSettings(4, 8))
    stages = (StageConfig("answerer", "sft"), StageConfig("manager", "grpo"))
    config = Config(name="run", output=str(folder), model=model, stages=stages)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.yaml").write_text(to_yaml(config))
    roles = ("manager", "answerer")
    policies = PolicyModel.create("tiny-random", roles, weights, model.lora, dtype="float32", device="cpu")
    logits = {}
    for seed, role in enumerate(policies.roles):
        generator = torch.Generator().manual_seed(seed)
        for p in policies.trainable_parameters(role).values():
            p.data += 0.05 * torch.randn(p.shape, generator=generator)
        with policies.use(role) as m, torch.no_grad():
            logits[role] = m(input_ids=IDS).logits

    def save(to: str) -> None:
        for role in policies.roles:
            policies.save(role, Path(to) / role)

    save_checkpoint(config.run_dir, state, save, None)
    return config.run_dir, logits


def far(model: Any, expected: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(input_ids=IDS).logits - expected).abs().max())


DONE = TrainState(step=7, stage=2)


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_merged_export_is_read_by_plain_transformers_with_the_logits_of_the_run(
    tmp_path: Path, tiny_random: Path, weights: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, logits = make_run(tmp_path, weights, DONE)
    written = export_run(run, tmp_path / "out", merged=True)
    assert [(e.role, e.kind, e.step) for e in written] == [("answerer", "model", 7), ("manager", "model", 7)]
    for e in written:
        model = AutoModelForCausalLM.from_pretrained(e.folder)
        assert type(model).__name__ == "LlamaForCausalLM"
        assert not any("lora" in name for name, _ in model.named_parameters())
        assert far(model, logits[e.role]) < 1e-4
        assert AutoTokenizer.from_pretrained(e.folder).encode("Hi") == [72, 105]
    assert far(AutoModelForCausalLM.from_pretrained(written[0].folder), logits["manager"]) > 0.01


def test_adapters_are_read_by_plain_peft_with_the_logits_of_the_run(tmp_path: Path, tiny_random: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, logits = make_run(tmp_path, "lora", DONE)
    said = CliRunner().invoke(app, ["export", str(run), "--to", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert f"manager: adapter after step 7 in {tmp_path / 'out/manager'}" in said.output.replace("\n", "")
    for role, expected in logits.items():
        base = AutoModelForCausalLM.from_pretrained(resolve_model("tiny-random"))
        assert far(base, expected) > 0.01
        assert far(PeftModel.from_pretrained(base, tmp_path / "out" / role), expected) < 1e-5


def test_only_roles_that_the_run_has_begun_to_train_are_written(tmp_path: Path, tiny_random: Path) -> None:
    run, _ = make_run(tmp_path, "lora", TrainState(step=3, stage=0, stage_step=3))
    assert [e.role for e in export_run(run, tmp_path / "out")] == ["answerer"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["answerer", "config.yaml"]


def test_the_job_exports_what_the_command_does_and_ends_in_a_line_of_json(
    tmp_path: Path, tiny_random: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "rayjobs"))
    import export

    run, _ = make_run(tmp_path, "lora", DONE)
    out = tmp_path / "out"
    assert export.main([str(run), "--to", str(out), "--merged"]) == 0
    roles = [{"role": role, "folder": str(out / role), "kind": "model", "step": 7} for role in ("answerer", "manager")]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"run_dir": str(run), "roles": roles}
    assert all((out / role / "model.safetensors").is_file() for role in ("answerer", "manager"))
    assert export.main([str(run), "--to", str(out)]) == 2
    assert "is there already and not empty; give --to a new folder" in capsys.readouterr().err
    in_job = tmp_path / "runtime_resources"
    in_job.mkdir()
    monkeypatch.chdir(in_job)
    assert export.main([str(run), "--to", "out"]) == 2
    assert "--to: 'out' is relative and would lie in the job's working directory" in capsys.readouterr().err
    assert not (in_job / "out").exists()


def test_what_cannot_be_exported_is_told_before_anything_is_written(tmp_path: Path, tiny_random: Path) -> None:
    with pytest.raises(MemR1Error, match=r"no run there \(no config.yaml\)"):
        export_run(tmp_path / "nothing", tmp_path / "out")
    run, _ = make_run(tmp_path, "lora", DONE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious").write_text("x")
    with pytest.raises(MemR1Error, match="is there already and not empty; give --to a new folder"):
        export_run(run, tmp_path / "full")
    assert (tmp_path / "full/precious").read_text() == "x"
    (run / "checkpoints/step_000007/COMMITTED").unlink()
    with pytest.raises(MemR1Error, match="no committed checkpoint to take weights from"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
