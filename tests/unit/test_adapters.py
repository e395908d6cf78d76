"""Policies by role: independence, equality with the base, files that other tools read, strict loading.

Gradients are checked for where they arrive, not for their values (the learner's tests do that).
"""

from __future__ import annotations

import copy
import json

import pytest
import torch

from memr1.errors import MemR1Error
from memr1.models.adapters import LoraSettings, PolicyModel
from memr1.models.registry import load_causal_lm, load_tokenizer

ROLES = ("manager", "answerer")
LORA = LoraSettings(rank=4, alpha=8)
IDS = torch.tensor([[257, 117, 115, 101, 114, 10, 72, 105, 258, 10]])
MODES = pytest.mark.parametrize("mode", ["lora", "full"])


def create(mode: str, roles=ROLES, seed: int = 0, **kwargs) -> PolicyModel:
    return PolicyModel.create("tiny-random", roles, mode, LORA, seed, dtype="float32", device="cpu", **kwargs)


def plain_model(dtype: str = "float32"):
    return load_causal_lm("tiny-random", dtype, "cpu")


@torch.no_grad()
def logits_of(module) -> torch.Tensor:
    return module(IDS).logits


def logits(policies: PolicyModel, policy: str) -> torch.Tensor:
    with policies.use(policy) as module:
        return logits_of(module)


def shift(policies: PolicyModel, role: str, seed: int = 1) -> None:
    """Moves every weight of a role by a random amount, as training would."""
    generator = torch.Generator().manual_seed(seed)
    moved = {n: w + 0.05 * torch.randn(w.shape, generator=generator) for n, w in policies.weights(role).items()}
    policies.load_weights(role, moved)


@MODES
def test_every_policy_equals_the_untouched_model_at_the_start(mode):
    policies = create(mode)
    expected = logits_of(plain_model())
    assert policies.policies() == ["base", "manager", "answerer"]
    for policy in policies.policies():
        assert torch.equal(logits(policies, policy), expected), policy


@MODES
def test_changing_one_role_changes_neither_another_nor_the_base(mode):
    policies = create(mode)
    expected = logits_of(plain_model())
    shift(policies, "manager")
    assert (logits(policies, "manager") - expected).abs().max() > 0.01
    assert torch.equal(logits(policies, "answerer"), expected)
    assert torch.equal(logits(policies, "base"), expected)


@MODES
def test_a_loaded_module_gives_the_same_policies_as_its_name(mode):
    named = create(mode)
    handed = PolicyModel.create(plain_model(), ROLES, mode, LORA)
    for policies in (named, handed):
        shift(policies, "answerer")
    for policy in named.policies():
        assert torch.equal(logits(named, policy), logits(handed, policy)), policy


def test_uses_nest_and_give_back_the_outer_policy():
    policies = create("lora")
    shift(policies, "manager", seed=1)
    shift(policies, "answerer", seed=2)
    alone = {p: logits(policies, p) for p in policies.policies()}
    with policies.use("manager") as manager:
        with policies.use("base") as base:
            assert torch.equal(logits_of(base), alone["base"])
            with policies.use("answerer") as answerer:
                assert torch.equal(logits_of(answerer), alone["answerer"])
            assert torch.equal(logits_of(base), alone["base"])
        assert torch.equal(logits_of(manager), alone["manager"])
        with pytest.raises(RuntimeError), policies.use("base"):
            raise RuntimeError
        assert torch.equal(logits_of(manager), alone["manager"])


@MODES
def test_gradients_reach_the_trained_role_only_whatever_was_used_in_between(mode):
    policies = create(mode)
    shift(policies, "manager")  # LoRA's B must not be zero, or A gets no gradient
    policies.train_only("manager")
    for policy in ("base", "answerer"):  # peft makes an adapter trainable whenever it becomes active
        logits(policies, policy)
    trainable = policies.trainable_parameters("manager")
    with policies.use("manager") as module:
        assert module.training
        logits_of(module)
        module(IDS).logits.square().mean().backward()
    assert all(p.requires_grad and p.grad is not None and p.grad.abs().sum() > 0 for p in trainable.values())
    ours = {id(p) for p in trainable.values()}
    for policy in policies.policies():
        for name, p in policies._module(policy).named_parameters():
            assert id(p) in ours or (not p.requires_grad and p.grad is None), f"{policy}: {name}"
    policies.eval_only()
    assert not any(p.requires_grad for p in trainable.values())
    assert not policies.module("manager").training


@MODES
def test_train_mode_gives_the_log_probabilities_of_eval_mode(mode):
    model = plain_model()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    policies = PolicyModel.create(model, ROLES, mode, LORA)
    before = logits(policies, "manager")
    policies.train_only("manager")
    assert torch.equal(logits(policies, "manager"), before)


@MODES
def test_an_architecture_with_other_layers_and_dropout_keeps_the_same_promises(mode, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.1)
    assert config.resid_pdrop > 0  # as modules here; Llama keeps its dropout as a number
    model = GPT2LMHeadModel(config).eval()
    expected = logits_of(model)
    policies = PolicyModel.create(model, ROLES, mode, LORA)
    shift(policies, "manager")
    moved = logits(policies, "manager")
    policies.train_only("manager")
    assert torch.equal(logits(policies, "manager"), moved)
    assert torch.equal(logits(policies, "base"), expected)
    assert torch.equal(logits(policies, "answerer"), expected)
    policies.export_merged("manager", tmp_path)
    assert (logits_of(load_causal_lm(str(tmp_path), "float32", "cpu")) - moved).abs().max() < 1e-4


def test_lora_dropout_acts_in_training_only_when_asked_for():
    settings = LoraSettings(rank=4, alpha=8, dropout=0.5)
    policies = PolicyModel.create("tiny-random", ROLES, "lora", settings, dtype="float32", device="cpu")
    shift(policies, "manager")
    assert torch.equal(logits(policies, "manager"), logits(policies, "manager"))
    policies.train_only("manager")
    assert not torch.equal(logits(policies, "manager"), logits(policies, "manager"))


def test_one_optimizer_step_moves_the_role_it_was_given():
    policies = create("lora")
    policies.train_only("answerer")
    before = policies.weights("answerer"), policies.weights("manager")
    optimizer = torch.optim.SGD(policies.trainable_parameters("answerer").values(), lr=1.0)
    with policies.use("answerer") as module:
        module(IDS, labels=IDS).loss.backward()
    optimizer.step()
    after = policies.weights("answerer"), policies.weights("manager")
    assert sum(not torch.equal(before[0][n], after[0][n]) for n in before[0]) == len(before[0]) // 2  # the B halves
    assert all(torch.equal(before[1][n], after[1][n]) for n in before[1])


def test_adapters_start_by_seed_and_role_alone():
    one = create("lora", ("manager",), seed=3).weights("manager")
    two = create("lora", ("answerer", "manager"), seed=3).weights("manager")
    assert all(torch.equal(one[n], two[n]) for n in one)
    other_seed = create("lora", ("manager",), seed=4).weights("manager")
    other_role = create("lora", ("answerer",), seed=3).weights("answerer")
    name = next(n for n in one if "lora_A" in n)
    assert not torch.equal(one[name], other_seed[name])
    assert not torch.equal(one[name], other_role[name])


def test_adapters_cover_every_linear_layer_but_the_head_and_are_float32_over_a_bfloat16_base():
    policies = PolicyModel.create("tiny-random", ROLES, "lora", LORA, dtype="bfloat16", device="cpu")
    weights = policies.weights("manager")
    assert len(weights) == 2 * 7 * 2  # layers x linear modules x (A, B)
    assert "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight" in weights
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert policies.module("manager").model.embed_tokens.weight.dtype == torch.bfloat16
    expected = logits_of(plain_model("bfloat16"))
    assert expected.dtype == torch.bfloat16
    assert torch.equal(logits(policies, "manager"), expected)


@MODES
def test_weights_are_copies_and_loading_them_restores_the_policy(mode):
    policies = create(mode)
    shift(policies, "manager")
    expected, kept = logits(policies, "manager"), policies.weights("manager")
    shift(policies, "manager", seed=5)
    assert not torch.equal(logits(policies, "manager"), expected)
    policies.load_weights("manager", kept)
    assert torch.equal(logits(policies, "manager"), expected)
    for w in kept.values():
        w.zero_()
    assert torch.equal(logits(policies, "manager"), expected)


@MODES
def test_copy_weights_makes_a_role_equal_and_leaves_it_independent(mode):
    policies = create(mode)
    shift(policies, "manager")
    expected = logits(policies, "manager")
    policies.copy_weights("manager", "answerer")
    shift(policies, "manager", seed=6)
    assert torch.equal(logits(policies, "answerer"), expected)


@MODES
def test_loading_lists_every_missing_unknown_and_misshapen_name_and_changes_nothing(mode):
    policies = create(mode)
    shift(policies, "manager")
    expected, weights = logits(policies, "manager"), policies.weights("manager")
    first, second, *_ = weights
    bad = {n: torch.zeros_like(w) for n, w in weights.items() if n != first} | {
        "stranger": torch.zeros(1),
        second: torch.zeros(3, 5),
    }
    with pytest.raises(MemR1Error) as e:
        policies.load_weights("manager", bad)
    shape = tuple(weights[second].shape)
    assert str(e.value) == (
        f"weights for role 'manager' do not fit this model; missing: {first}; unknown: stranger; "
        f"wrong shape: {second} is (3, 5), expected {shape}"
    )
    assert torch.equal(logits(policies, "manager"), expected)


@MODES
def test_what_is_saved_loads_back_equal_into_any_role(mode, tmp_path):
    policies = create(mode)
    shift(policies, "manager")
    policies.save("manager", tmp_path / "manager")
    fresh = create(mode, ("extractor", "answerer"), seed=9)
    fresh.load("answerer", tmp_path / "manager")
    assert torch.equal(logits(fresh, "answerer"), logits(policies, "manager"))
    assert torch.equal(logits(fresh, "extractor"), logits(policies, "base"))


def test_a_saved_adapter_loads_with_plain_peft(tmp_path):
    from peft import PeftModel

    policies = create("lora")
    shift(policies, "manager")
    policies.save("manager", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert torch.equal(logits_of(PeftModel.from_pretrained(plain_model(), tmp_path)), logits(policies, "manager"))


def test_an_adapter_that_plain_peft_saved_loads_into_a_role(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = get_peft_model(plain_model(), config).eval()
    theirs.save_pretrained(tmp_path)
    policies = create("lora")
    policies.load("answerer", tmp_path)
    assert torch.equal(logits(policies, "answerer"), logits_of(theirs))


@MODES
def test_a_merged_export_is_a_plain_model_with_the_same_outputs(mode, tmp_path):
    policies = create(mode)
    shift(policies, "manager")
    before = {p: logits(policies, p) for p in policies.policies()}
    policies.export_merged("manager", tmp_path)
    merged = load_causal_lm(str(tmp_path), "float32", "cpu")
    assert (logits_of(merged) - before["manager"]).abs().max() < 1e-4
    assert (logits_of(merged) - before["base"]).abs().max() > 0.01
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert load_tokenizer(str(tmp_path)).encode("Hi") == [72, 105]
    assert all(torch.equal(logits(policies, p), before[p]) for p in before)


@MODES
def test_tied_embeddings_stay_tied_through_training_saving_and_export(mode, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(load_causal_lm("tiny-random", "float32", "cpu").config.name_or_path)
    config.tie_word_embeddings = True
    tied = LlamaForCausalLM(config).eval()
    policies = PolicyModel.create(copy.deepcopy(tied), ROLES, mode, LORA)
    shift(policies, "manager")
    head, embedding = (f(policies.module("manager")) for f in (_head, _embedding))
    assert head is embedding
    expected = logits(policies, "manager")
    policies.save("manager", tmp_path / "saved")
    policies.export_merged("manager", tmp_path / "merged")
    policies.load("answerer", tmp_path / "saved")
    assert torch.equal(logits(policies, "answerer"), expected)
    merged = load_causal_lm(str(tmp_path / "merged"), "float32", "cpu")
    assert _head(merged) is _embedding(merged)
    assert (logits_of(merged) - expected).abs().max() < 1e-4
    assert torch.equal(logits(policies, "base"), logits_of(tied))


def _head(model):
    return model.get_output_embeddings().weight


def _embedding(model):
    return model.get_input_embeddings().weight


def test_an_adapter_of_another_shape_or_scale_is_refused(tmp_path):
    policies = create("lora")
    policies.save("manager", tmp_path)
    config_file = tmp_path / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, "lora_alpha": 64}))
    with pytest.raises(MemR1Error, match="lora_alpha is 64 and this model's adapters have 8"):
        policies.load("manager", tmp_path)
    config_file.write_text(json.dumps(config))
    attention_only = LoraSettings(rank=4, alpha=8, target_modules=("q_proj", "v_proj"))
    other = PolicyModel.create("tiny-random", ROLES, "lora", attention_only, dtype="float32", device="cpu")
    with pytest.raises(MemR1Error, match=r"unknown: .*k_proj"):
        other.load("manager", tmp_path)


@MODES
def test_missing_and_damaged_files_are_named(mode, tmp_path):
    policies = create(mode)
    with pytest.raises(MemR1Error, match=r"nothing.*(adapter_config\.json|model\.safetensors)"):
        policies.load("manager", tmp_path / "nothing")
    policies.save("manager", tmp_path)
    file = tmp_path / ("adapter_model.safetensors" if mode == "lora" else "model.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MemR1Error, match=r"safetensors: is damaged"):
        policies.load("manager", tmp_path)


def test_a_full_policy_saved_in_shards_loads_back(tmp_path):
    policies = create("full")
    shift(policies, "manager")
    policies.module("manager").save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    policies.load("answerer", tmp_path)
    assert torch.equal(logits(policies, "answerer"), logits(policies, "manager"))


def test_bad_names_modes_and_settings_are_refused():
    for roles in ((), ("manager", "manager"), ("base",), ("a.b",), ("",)):
        with pytest.raises(MemR1Error, match="roles"):
            create("lora", roles)
    with pytest.raises(MemR1Error, match="'qlora' is unknown; use lora or full"):
        create("qlora")
    with pytest.raises(MemR1Error, match=r"rank >= 1"):
        LoraSettings(rank=0)
    with pytest.raises(MemR1Error, match=r"lora\.target_modules: c_attn match nothing in tiny-random; its .* q_proj"):
        lora = LoraSettings(target_modules=("q_proj", "c_attn"))  # peft would be content with the first
        PolicyModel.create("tiny-random", ROLES, "lora", lora, device="cpu")
    with pytest.raises(MemR1Error, match=r"lora\.target_modules='.*c_attn' does not fit tiny-random"):
        PolicyModel.create("tiny-random", ROLES, "lora", LoraSettings(target_modules=".*c_attn"), device="cpu")
    policies = create("lora")
    with pytest.raises(MemR1Error, match="'judge' is not a policy of this model; there are base, manager, answerer"):
        logits(policies, "judge")
    with pytest.raises(MemR1Error, match="'base' is not a role"):
        policies.weights("base")


@pytest.mark.parametrize("packs", [False, True])
def test_merged_weights_give_the_logits_of_the_adapter_follow_its_changes_and_leave_the_base_untouched(
    packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from memr1.models import cpu

    if packs and not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        pytest.skip("this torch was built without oneDNN")
    monkeypatch.setattr(cpu, "prefers_packed", lambda: packs)
    made: list[torch.Size] = []
    monkeypatch.setattr(cpu, "pack", lambda weight, pack=cpu.pack: made.append(weight.shape) or pack(weight))
    model = PolicyModel.create("tiny-random", ("manager", "answerer"), dtype="float32", device="cpu")
    ids = torch.arange(3, 20)[None]

    def logits(use: object) -> torch.Tensor:
        with torch.inference_mode(), use("manager") as module:  # type: ignore[operator]
            return module(input_ids=ids).logits

    base = _logits_of_base(model, ids)
    for seed in (0, 1):  # the second round must not see the first round's merged weights
        generator = torch.Generator().manual_seed(seed)
        weights = {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in model.weights("manager").items()}
        model.load_weights("manager", weights)
        plain, merged = logits(model.use), logits(model.use_merged)
        assert (plain - base).abs().max() > 1e-2
        assert torch.allclose(plain, merged, atol=1e-4)
        assert torch.equal(_logits_of_base(model, ids), base)
        assert torch.equal(logits(model.use), plain)
        with model.use("manager") as outer, torch.inference_mode():  # as inside a learner that stays active
            assert torch.allclose(logits(model.use_merged), plain, atol=1e-4)
            assert torch.equal(outer(input_ids=ids).logits, plain)
    layers = [m for m in model.module("base").modules() if isinstance(m, torch.nn.Linear)]
    large = [m for m in layers if min(m.weight.shape) >= cpu.LEAST_SIDE]
    head = model.module("base").get_output_embeddings()
    assert any(m is head for m in large)
    # packed anew for each of the two adapters, but for the head, which has none
    assert len(made) == (2 * (len(large) - 1) + 1 if packs else 0)


def _logits_of_base(model: PolicyModel, ids: object) -> torch.Tensor:
    import torch

    with torch.inference_mode(), model.use("base") as module:
        return module(input_ids=ids).logits


def test_a_shared_base_is_held_once_and_each_keeps_adapters_of_its_own() -> None:
    engine, learner = create("lora"), create("lora", seed=7)
    shift(engine, "answerer")
    shift(learner, "answerer", seed=2)
    before = logits(engine, "answerer"), logits(learner, "answerer")
    learner.share_base(engine)
    held = [
        {p.data_ptr() for name, p in policies.module("base").named_parameters() if "lora_" not in name}
        for policies in (engine, learner)
    ]
    assert held[0] == held[1] and held[0]
    with engine.use_merged("answerer") as merged, torch.no_grad():  # swaps weights of its own modules only
        assert torch.equal(logits(learner, "answerer"), before[1])
        assert torch.allclose(logits_of(merged), before[0], atol=1e-5)
    assert torch.equal(logits(engine, "answerer"), before[0])
    engine.forget_merged()
    with engine.use_merged("answerer") as merged, torch.no_grad():
        assert torch.allclose(logits_of(merged), before[0], atol=1e-5)


def test_only_the_same_model_shares_and_whole_copies_do_not() -> None:
    with pytest.raises(ValueError, match="not the same frozen weights"):
        create("lora").share_base(PolicyModel.create(plain_model(), ROLES))
    one, other = create("full"), create("full")
    one.share_base(other)
    pointers = [{p.data_ptr() for role in ROLES for p in m.module(role).parameters()} for m in (one, other)]
    assert not pointers[0] & pointers[1]
