"""What every generation engine promises, as tests over an engine that a subclass makes: see `EngineContract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memr1.errors import MemR1Error
from memr1.models.adapters import PolicyModel
from memr1.rollout.engine import Completion, Engine, GenerationRequest, SamplingParams, WeightUpdate
from tests.unit.small_models import plain_logprobs

ROLES = ("manager", "answerer")
TEXTS = ("Where does Ada live?", "Where does Ada work, and since when?", "q", "Where does Ada live?")
MAX_TOKENS = 160
"""Longest prompt and completion together."""


def save_model(folder: Path) -> tuple[str, tuple[int, ...]]:
    """A random llama with wide weights and the tokenizer of the built-in model, on disk; its name and end tokens."""
    import transformers as tf

    from memr1.models.packaged import fetch

    tokenizer = tf.AutoTokenizer.from_pretrained(str(fetch("tiny-random")))
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, initializer_range=0.3,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), (tokenizer.eos_token_id, ord("e"))


def make_policies(source: str, mode: str, device: str = "cpu") -> PolicyModel:
    """Policies that differ from the base and from one another in every layer."""
    policies = PolicyModel.create(source, ROLES, mode, device=device, dtype="float32")
    for number, role in enumerate(ROLES):
        policies.load_weights(role, _torch(_noisy(policies, role, number)))
    return policies


def _noisy(policies: PolicyModel, role: str, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = 0.2 if policies.mode == "lora" else 0.05
    return {
        n: (w.cpu().numpy() + scale * rng.standard_normal(w.shape)).astype(np.float32)
        for n, w in policies.weights(role).items()
    }


def _torch(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(w.copy()) for n, w in weights.items()}


def ask(policy: str = "answerer", *, n: int = 12, t: float = 1.0, stop: tuple[str, ...] = ()) -> list[Any]:
    """One request for each of `TEXTS`, each with a seed of its own."""
    return [
        GenerationRequest(tuple(text.encode()), policy, SamplingParams(n, t, seed=(7 << 40) + i, stop=stop))
        for i, text in enumerate(TEXTS)
    ]


def same(a: list[Completion], b: list[Completion]) -> None:
    """Equal tokens, reasons and, up to rounding, log-probabilities."""
    assert [(x.ids, x.finish_reason) for x in a] == [(y.ids, y.finish_reason) for y in b]
    for x, y in zip(a, b, strict=True):
        assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)


class EngineContract:
    """Subclasses are test classes with fixtures `engine` (an `Engine` with `policies`, ended by `eos`) and `eos`."""

    def check(self, engine: Any, requests: list[GenerationRequest], found: list[Completion]) -> None:
        """Log-probabilities are those that the current weights give the tokens at the temperature of sampling."""
        for r, c in zip(requests, found, strict=True):
            with engine.policies.use(r.policy) as model, torch.no_grad():
                expected = plain_logprobs(model, r.prompt_ids, c.ids, r.sampling.temperature or 1.0)
            assert c.logprobs == pytest.approx(expected.tolist(), abs=1e-4)

    @pytest.mark.parametrize("policy", ["base", *ROLES])
    @pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
    def test_logprobs_are_those_of_the_sampling_distribution(
        self, engine: Any, policy: str, temperature: float
    ) -> None:
        requests = ask(policy, t=temperature)
        self.check(engine, requests, engine.generate(requests))

    def test_policies_in_one_call_do_not_mix(self, engine: Any) -> None:
        requests = [r for three in zip(*(ask(p, t=0.7) for p in ("base", *ROLES)), strict=True) for r in three]
        found = engine.generate(requests)
        self.check(engine, requests, found)
        assert len({c.ids for c in found[:3]}) == 3

    def test_a_request_depends_on_its_seed_and_not_on_its_batch(self, engine: Engine) -> None:
        requests = ask()
        together = engine.generate(requests)
        same(together, [engine.generate([r])[0] for r in requests])
        same(together, engine.generate(requests[::-1])[::-1])
        assert together[0].ids != together[3].ids  # one prompt, two seeds

    def test_greedy_takes_the_likeliest_token(self, engine: Any) -> None:
        requests = ask(t=0.0)
        for r, c in zip(requests, engine.generate(requests), strict=True):
            with engine.policies.use(r.policy) as model, torch.no_grad():
                logits = model(torch.tensor([r.prompt_ids + c.ids], device=model.device)).logits[
                    0, len(r.prompt_ids) - 1 : -1
                ]
            assert c.ids == tuple(logits.argmax(-1).tolist())

    def test_end_tokens_are_included_and_the_reason_is_told(self, engine: Engine, eos: tuple[int, ...]) -> None:
        found = [c for seed in range(4) for c in engine.generate([*ask(n=60, t=1.0 + 0.1 * seed)])]
        assert {c.finish_reason for c in found} == {"stop", "length"}
        for c in found:
            assert (c.ids[-1] in eos) == (c.finish_reason == "stop")
            assert not set(c.ids[:-1]) & set(eos)
            assert len(c.logprobs) == len(c.ids)

    def test_every_request_has_its_own_limit(self, engine: Engine) -> None:
        requests = [
            GenerationRequest(tuple(b"Where?"), "manager", SamplingParams(n, 1.0, seed=11)) for n in (1, 2, 5, 9)
        ]
        found = engine.generate(requests)
        longest = found[-1].ids
        for r, c in zip(requests, found, strict=True):
            assert c.ids == longest[: r.sampling.max_new_tokens]

    def test_a_stop_text_ends_a_completion_and_is_part_of_it(self, engine: Engine) -> None:
        def text(ids: tuple[int, ...]) -> str:
            return bytes(i for i in ids if i < 256).decode("latin1")  # the model's tokens are bytes

        free = engine.generate(ask(n=60))
        pairs = [c.ids[i : i + 2] for c in free for i in range(2, len(c.ids) - 1)]
        stop = text(next(pair for pair in pairs if all(32 < token < 127 for token in pair)))
        cut = engine.generate(ask(n=60, stop=("never said", stop)))
        for whole, c in zip(free, cut, strict=True):
            end = next((n for n in range(len(whole.ids)) if stop in text(whole.ids[:n])), None)
            expected = (whole.ids, whole.finish_reason) if end is None else (whole.ids[:end], "stop")
            assert (c.ids, c.finish_reason) == expected
        assert sum(len(c.ids) for c in cut) < sum(len(c.ids) for c in free)

    def test_an_empty_prompt_and_senseless_settings_are_refused(self, engine: Engine) -> None:
        with pytest.raises(ValueError, match="request 0 has an empty prompt"):
            engine.generate([GenerationRequest((), "base", SamplingParams(2))])
        for settings in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"seed": -1}, {"stop": ("",)}):
            with pytest.raises(ValueError, match="are needed"):
                SamplingParams(**{"max_new_tokens": 2, **settings})

    # -- weights ------------------------------------------------------------------------------------------------

    def test_no_cache_outlives_its_weights(self, engine: Any) -> None:
        """Prompts that were generated from before, asked again after a push: with the old keys and values, or the old
        merged weights, log-probabilities would be those of another model."""
        before = {p: engine.generate(ask(p, t=0.0)) for p in ("base", *ROLES)}
        for version, role in ((11, "answerer"), (12, "answerer"), (13, "manager")):
            others = {p: engine.generate(ask(p, t=0.0)) for p in before if p != role}
            old = engine.generate(ask(role, t=0.0))
            update = WeightUpdate.build(role, version, _noisy(engine.policies, role, version))
            assert engine.load_weights(update) == version
            requests = ask(role, t=0.0)
            new = engine.generate(requests)
            self.check(engine, requests, new)
            assert [c.ids for c in new] != [c.ids for c in old]
            assert {c.weight_version for c in new} == {version}
            for policy, expected in others.items():
                same(engine.generate(ask(policy, t=0.0)), expected)

    def test_weights_read_from_files_are_used_too(self, engine: Any, tmp_path: Path) -> None:
        engine.policies.save("manager", tmp_path / "manager")
        kept, version = engine.generate(ask("manager", t=0.0)), engine.weight_versions()["manager"]
        engine.load_weights(WeightUpdate.build("manager", 40, _noisy(engine.policies, "manager", 40)))
        assert [c.ids for c in engine.generate(ask("manager", t=0.0))] != [c.ids for c in kept]
        engine.policies.load("manager", tmp_path / "manager")
        engine.set_weight_versions({"manager": version})
        again = engine.generate(ask("manager", t=0.0))
        same(again, kept)
        assert {c.weight_version for c in again} == {version}

    @pytest.mark.parametrize("how", ["missing", "unknown", "wrong shape"])
    def test_weights_that_do_not_fit_are_refused_and_nothing_changes(self, engine: Any, how: str) -> None:
        before, versions = engine.generate(ask("manager", t=0.0)), engine.weight_versions()
        weights = _noisy(engine.policies, "manager", 3)
        name = sorted(weights)[0]
        if how == "unknown":
            weights["model.layers.9.weight"] = weights[name]
        else:
            first = weights.pop(name)
            if how == "wrong shape":
                weights[name] = first[:-1]
        with pytest.raises(MemR1Error, match=f"do not fit this model; {how}: "):
            engine.load_weights(WeightUpdate.build("manager", 99, weights))
        assert engine.weight_versions() == versions
        same(engine.generate(ask("manager", t=0.0)), before)

    def test_timings_are_sums_since_the_last_call(self, engine: Any) -> None:
        engine.pop_timings()
        found = engine.generate(ask(n=5))
        timings = engine.pop_timings()
        assert timings["decode_tokens"] == sum(len(c.ids) for c in found)
        assert 0 <= timings["prefill_tokens"] <= sum(len(t) for t in TEXTS)
        assert all(v >= 0 for name, v in timings.items() if name.endswith("_s"))
        assert engine.pop_timings() == {}
