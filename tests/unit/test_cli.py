"""The `memr1` command as people meet it: quick, helpful, and one clear line when something is wrong.

Not covered: what the commands do when all is well (tests/e2e), `models fetch` (test_models.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from memr1 import __version__, cli

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "ray",
    "chromadb",
    "transformers",
    "sentence_transformers",
    "matplotlib",
    "deepspeed",
    "sqlalchemy",
    "peft",
    "scipy",
)
COMMANDS = [
    *(["train"], ["ablate"], ["eval"], ["report"], ["view"], ["config"], ["models"], ["data"], ["bank"]),
    *(["models", "list"], ["models", "fetch"], ["models", "verify"], ["data", "show"], ["data", "build"]),
]
CONFIG = """
backend: local
model: {name: tiny-random, device: cpu, threads: 1}
memory: {embedder: hash}
stages: [{role: answerer, objective: sft, steps: 1}]
"""


def memr1(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "memr1.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def complaint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> str:
    """What the command says when it refuses: exactly one line on stderr, exit code 2."""
    monkeypatch.setattr(sys, "argv", ["memr1", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, (out, err)
    said = [line for line in err.splitlines() if line.strip() and "Loading weights" not in line]
    assert len(said) == 1 and said[0].startswith("memr1: "), err
    assert "Traceback" not in out
    return said[0].removeprefix("memr1: ")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG + f"output: {tmp_path}\n")
    return path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom memr1.cli import main\nsys.argv = ['memr1', '--help']\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert done.code == 0, done.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    assert all(command[0] in done.stdout for command in COMMANDS)


def test_checking_a_config_imports_nothing_heavy_either(config: Path) -> None:
    code = (
        f"import sys\nfrom memr1.cli import main\nsys.argv = ['memr1', 'config', {str(config)!r}]\n"
        f"try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    assert "name: tiny-random" in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    done = typer.testing.CliRunner().invoke(cli.app, [*command, "--help"])
    assert done.exit_code == 0, done.output
    assert f"Usage: root {' '.join(command)}" in " ".join(done.output.split())
    assert len(done.output) > 200


def test_the_version_is_the_package_s() -> None:
    done = typer.testing.CliRunner().invoke(cli.app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, __version__)


def test_the_real_command_prints_one_line_and_exits_2(tmp_path: Path) -> None:
    done = memr1("train", tmp_path / "no.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"memr1: {tmp_path}/no.yaml: no such config file. See configs/ for examples.\n"


def test_usage_errors_exit_2_too() -> None:
    for arguments in (["train"], ["trian"], ["view", "x", "--step", "one"]):
        done = typer.testing.CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 2


@pytest.mark.parametrize("command", ["train", "config"])
def test_an_unknown_key_is_told_its_neighbour(
    command: str, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = complaint(capsys, monkeypatch, command, config, "rollout.group_sise=4")
    assert said == f"{config}: rollout.group_sise is not a field of RolloutConfig; did you mean group_size?"


def test_an_unreadable_config_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: [\nb: }\n")
    assert complaint(capsys, monkeypatch, "config", path).startswith(f"{path}: not readable as YAML: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.kind=jsonl", "data.path: jsonl needs a file"),
        ("stages=[]", "stages: the configuration has none"),
        ("model.name=tiny-randm", "Did you mean tiny-random?"),
        ("memory.embedder=hahs", "did you mean hash?"),
        ("evaluation.systems=[traind]", "no system 'traind'; did you mean trained?"),
        ("output=/dev/null/x", "the run folder cannot be"),
    ],
)
def test_a_run_that_cannot_start_says_why_in_one_line(
    override: str, said: str, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said in complaint(capsys, monkeypatch, "train", config, override)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "mine.jsonl"),
        ("", "mine.jsonl: holds no dialogue"),
        ('{"id": "a"\n', "mine.jsonl:1: "),
        ('\n{"id": "d", "sesions": []}\n', "mine.jsonl:2: "),
    ],
    ids=["missing", "empty", "malformed", "wrong"],
)
def test_data_that_cannot_be_read_name_file_and_line(
    text: str | None, said: str, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config.parent / "mine.jsonl"
    if text is not None:
        data.write_text(text)
    overrides = ["data.kind=jsonl", f"data.path={data}"]
    assert said in complaint(capsys, monkeypatch, "train", config, *overrides)
    assert said in complaint(capsys, monkeypatch, "data", "show", "jsonl", "--path", data)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["factwrld"], "did you mean factworld?"),
        (["factworld", "--split", "tset"], "there is no split 'tset'"),
        (["factworld", "--index", "-1"], "--index -1"),
        (["locomo"], "data.path is not set"),
    ],
)
def test_data_show_refuses_what_is_not_there(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said in complaint(capsys, monkeypatch, "data", "show", *arguments)


@pytest.mark.parametrize("command", ["eval", "report", "view"])
@pytest.mark.parametrize("exists", [True, False], ids=["empty", "missing"])
def test_a_folder_without_a_run_is_named(
    command: str, exists: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "nothing"
    if exists:
        run.mkdir()
    assert complaint(capsys, monkeypatch, command, run).startswith(f"{run}: ")


def test_eval_refuses_before_it_loads_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    said = complaint(capsys, monkeypatch, "eval", tmp_path)
    assert said == f"{tmp_path}: the run has no committed checkpoint to take weights from; train it first"
    checkpoint = tmp_path / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMITTED").touch()
    (checkpoint / "state.json").write_text(
        json.dumps({"step": 1, "stage": 1, "stage_ends": {"0-answerer-sft": "step_000001"}})
    )
    monkeypatch.setattr("memr1.rollout.pool.LocalPool.__init__", None)
    assert "no system 'full'; " in complaint(capsys, monkeypatch, "eval", tmp_path, "--systems", "full")
    assert "gone.json" in complaint(
        capsys, monkeypatch, "eval", tmp_path, "--benchmark", "locomo", "--path", tmp_path / "gone.json"
    )
    assert "did you mean" in complaint(capsys, monkeypatch, "eval", tmp_path, "--set", "memory.answerer_topk=3")


def test_models_that_do_not_exist_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there are smollm2-135m, minilm, tiny-random" in complaint(
        capsys, monkeypatch, "models", "verify", "tiny-randon"
    )
    assert "'minilmm' is not a built-in model" in complaint(capsys, monkeypatch, "models", "fetch", "minilmm")


def test_data_show_prints_facts_operations_and_questions() -> None:
    done = typer.testing.CliRunner().invoke(cli.app, ["data", "show", "factworld", "--index", "1"])
    assert done.exit_code == 0
    assert done.output.startswith("factworld-train-0-00001: ")
    assert "fact: " in done.output and "-> ADD" in done.output and "(single-hop)" in done.output


def test_systems_are_listed_without_a_run() -> None:
    done = typer.testing.CliRunner().invoke(cli.app, ["eval", "--list-systems"])
    assert done.exit_code == 0
    assert "oracle-trained" in done.output and "full-context" in done.output
