"""Where a service's weights come from: runs, checkpoints, exports in both forms, models; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from memr1.errors import MemR1Error
from memr1.rollout.engine import GenerationRequest, SamplingParams
from memr1.serving.source import Source, find_source, load_runner
from memr1.training.checkpoints import TrainState
from memr1.training.export import export_run
from tests.unit.test_export import DONE, make_run

PROMPT = tuple(range(40, 60))


def said(source: Source) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
    """Greedy tokens and their log-probabilities by policy."""
    policies = ("base", "manager", "answerer")
    requests = [GenerationRequest(PROMPT, policy, SamplingParams(8)) for policy in policies]
    completions = load_runner(source, 1).engine.generate(requests)
    return {policy: (c.ids, c.logprobs) for policy, c in zip(policies, completions, strict=True)}


def near(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4


@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("merged", [False, True], ids=["as trained", "merged"])
def test_an_export_is_served_with_the_weights_of_its_run(
    tmp_path: Path, tiny_random: Path, weights: str, merged: bool
) -> None:
    run, _ = make_run(tmp_path, weights, DONE)
    expected = said(find_source(str(run)))
    assert expected["manager"] != expected["answerer"], "the roles have moved"
    export_run(run, tmp_path / "out", merged=merged)
    source = find_source(str(tmp_path / "out"))
    assert (source.warning, source.label, source.roles) == (None, "out", ("manager", "answerer"))
    found = said(source)
    for role in ("manager", "answerer"):
        assert found[role][0] == expected[role][0] and near(found[role][1], expected[role][1])


def test_a_role_that_was_not_trained_is_the_base_and_said_so(tmp_path: Path, tiny_random: Path) -> None:
    run, _ = make_run(tmp_path, "lora", TrainState(step=3, stage=1))
    export_run(run, tmp_path / "out")
    source = find_source(str(tmp_path / "out"))
    assert source.roles == ("answerer",) and "no trained weights of the manager." in (source.warning or "")
    found = said(source)
    # not bit for bit: an adapter without weights is merged too, and merged weights may be multiplied by another library
    assert found["manager"][0] == found["base"][0] and near(found["manager"][1], found["base"][1])
    assert not near(found["answerer"][1], found["base"][1])


def test_what_is_missing_is_named(tmp_path: Path, tiny_random: Path) -> None:
    run, _ = make_run(tmp_path, "lora", DONE)
    export_run(run, tmp_path / "out")
    (tmp_path / "out" / "config.yaml").unlink()
    with pytest.raises(MemR1Error, match="out: an export without config.yaml; copy that file too"):
        find_source(str(tmp_path / "out"))
    (checkpoint,) = (run / "checkpoints").iterdir()
    adapter = checkpoint / "policies" / "manager" / "adapter_model.safetensors"
    adapter.rename(tmp_path / "elsewhere")
    with pytest.raises(MemR1Error, match="manager.*adapter_model"):
        load_runner(find_source(str(run)), 1)
    adapter.write_bytes((tmp_path / "elsewhere").read_bytes()[:1000])
    with pytest.raises(MemR1Error, match="manager"):
        load_runner(find_source(str(run)), 1)
    adapter.unlink()
    (adapter.parent / "adapter_config.json").unlink()
    adapter.parent.rmdir()
    with pytest.raises(MemR1Error, match="the weights of the manager are missing; name another checkpoint"):
        find_source(str(run))
    with pytest.raises(MemR1Error, match="no-such-model"):
        find_source("no-such-model")
