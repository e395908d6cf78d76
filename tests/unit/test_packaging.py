"""What an installation rests on: declared dependencies, exact constraints, shipped files, and what `make` says.

Whether pip can install the constraints is proved by the CI script, which starts from nothing.
"""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.strip().splitlines()]


def declared() -> dict[str, list[Requirement]]:
    """Requirements by group: `` for install_requires, else the name of the extra."""
    cfg = setup_cfg()
    groups = {"": requirements(cfg["options"]["install_requires"])}
    return groups | {extra: requirements(text) for extra, text in cfg["options.extras_require"].items()}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals and re.fullmatch(r"[A-Za-z0-9._-]+", name) and re.fullmatch(r"[0-9][0-9a-z.]*", version), line
            found[canonicalize_name(name)] = version
    return found


def third_party_imports() -> dict[str, str]:
    """Top-level module -> a file of memr1 that imports it."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "memr1").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module
                else []
            )
            for name in names:
                found.setdefault(name.split(".")[0], str(file.relative_to(ROOT)))
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names and name != "memr1"}


def test_every_package_that_memr1_imports_is_declared():
    known = {canonicalize_name(r.name) for group in declared().values() for r in group}
    carried_by = importlib.metadata.packages_distributions()
    undeclared = {
        module: file
        for module, file in third_party_imports().items()
        if not known & {canonicalize_name(name) for name in carried_by.get(module, [module])}
    }
    assert undeclared == {}


def test_constraints_pin_everything_that_is_declared_and_within_its_range():
    exact = pins()
    groups = declared()
    for requirement in groups[""] + groups["serving"] + groups["dev"]:
        version = exact.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} excludes the tested {version}"


def test_constraints_hold_the_tested_versions_and_no_cuda_packages():
    exact = pins()
    tested = {"ray": "2.60.0", "torch": "2.13.0", "transformers": "5.23.0", "deepspeed": "0.19.8"}
    tested |= {"chromadb": "1.5.9", "omegaconf": "2.4.0", "peft": "0.21.2"}
    assert {name: exact[name] for name in tested} == tested
    assert [name for name in exact if re.search(r"nvidia|cuda|triton|cupy", name)] == []
    assert len(exact) > 120


def test_vllm_and_memr1_can_share_an_environment():
    """vLLM 0.32 needs transformers >= 5.16.1 and < 5.20 and torch == 2.13.0; the ranges must leave room for it."""
    ranges = {r.name: r.specifier for r in declared()[""]}
    assert ranges["torch"].contains("2.13.0") and ranges["torch"].contains("2.11.0")
    assert ranges["transformers"].contains("5.17.0") and ranges["transformers"].contains("5.19.0")
    assert not ranges["torch"].contains("2.14.0")


def test_every_file_of_the_package_is_shipped(tmp_path):
    build = "import sys, setuptools; setuptools.setup(script_args=['-q', 'build_py', '--build-lib', sys.argv[1]])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build, tmp_path], cwd=ROOT, check=True, timeout=120)
    shipped, written = (
        {
            str(p.relative_to(root))
            for p in (root / "memr1").rglob("*")
            if p.is_file() and p.suffix != ".pyc" and "__pycache__" not in p.parts
        }
        for root in (tmp_path, ROOT)
    )
    assert shipped == written
    assert {"memr1/serving/web/index.html", "memr1/serving/web/vendor/preact.js"} <= shipped


def test_the_console_script_leads_to_the_command_line():
    target = setup_cfg()["options.entry_points"]["console_scripts"].strip()
    name, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", target).groups()
    assert name == "memr1"
    assert callable(getattr(importlib.import_module(module), function))


def test_the_licence_is_the_full_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert 11_000 < len(text) < 12_000


def test_no_project_file_names_this_machine_or_a_package_host():
    words = (str(ROOT), str(Path.home()), "file://", "http://", "https://", "index-url")
    for file in ("setup.cfg", "pyproject.toml", "constraints.txt", "Makefile", ".ci/run", ".rayignore"):
        text = (ROOT / file).read_text()
        assert [word for word in words if word in text] == [], file


# -------------------------------------------------------------------------------------------------------------- make


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV", "PYTHON")}
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_alone_lists_every_target():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1).split()
    listed = re.findall(r"^  ([a-z0-9-]+) +\S", make().stdout, re.M)
    assert sorted(listed) == sorted(phony)


@needs_make
def test_make_install_says_which_python_it_wants(tmp_path):
    result = make("install", f"VENV={tmp_path}/venv", f"PYTHON={script(tmp_path / 'python', 'exit 1')}")
    assert result.returncode != 0
    assert "memr1 needs Python 3.11 or 3.12" in result.stderr and "make install PYTHON=" in result.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
def test_make_install_says_when_the_venv_module_is_missing(tmp_path):
    python = script(tmp_path / "python", 'case "$*" in *venv*) exit 1;; esac')
    result = make("install", f"VENV={tmp_path}/venv", f"PYTHON={python}")
    assert result.returncode != 0
    assert "has no venv module" in result.stderr and "python3-venv" in result.stderr


@needs_make
def test_make_install_says_when_there_is_no_space(tmp_path):
    result = make("install", f"VENV={tmp_path}/venv", f"PYTHON={script(tmp_path / 'python', '')}", "NEED_MB=999999999")
    assert result.returncode != 0
    assert "MB are free under" in result.stderr and "wants 999999999 MB" in result.stderr


@needs_make
def test_make_install_explains_a_failure_of_pip_and_leaves_no_stamp(tmp_path):
    script(tmp_path / "venv/bin/python", 'case "$*" in *"pip install"*) exit 1;; esac')
    result = make("install", f"VENV={tmp_path}/venv", f"PYTHON={sys.executable}", "NEED_MB=1")
    assert result.returncode != 0
    assert "no network" in result.stderr and "--find-links" in result.stderr
    assert not (tmp_path / "venv/.memr1-installed").exists()


@needs_make
def test_make_install_again_does_nothing(tmp_path):
    script(tmp_path / "venv/bin/python", f'case "$*" in *"pip install"*) echo "$*" >> {tmp_path}/calls;; esac')
    for _ in range(2):
        result = make("install", f"VENV={tmp_path}/venv", f"PYTHON={sys.executable}", "NEED_MB=1", "EXTRAS=serving")
        assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 1
    assert "-c constraints.txt -e .[serving]" in calls[0]


@needs_make
def test_make_eval_locomo_asks_for_the_file(tmp_path):
    (tmp_path / "venv").mkdir()
    script(tmp_path / "venv/bin/python", "")
    common = ("eval-locomo", f"VENV={tmp_path}/venv", f"PYTHON={sys.executable}", "NEED_MB=1")
    assert "LOCOMO=path/to/locomo10.json" in make(*common).stderr
    assert f"LOCOMO={tmp_path}/gone does not exist" in make(*common, f"LOCOMO={tmp_path}/gone").stderr


def test_every_benchmark_is_run_by_make_bench_or_needs_more_than_a_machine():
    run = set(re.search(r"^BENCHMARKS := (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1).split())
    programs = {p.stem: p.read_text() for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()}
    assert run | {"gpu_check", "overheads", "poisoning", "trl_step", "vllm_decode"} == set(programs)
    named = re.compile(r"""add_argument\(\s*["'][^-"'](?!.*nargs="\?")""")
    assert [name for name in sorted(run) if named.search(programs[name])] == [], "they are started without arguments"
    assert named.search(programs["overheads"])


def test_the_ci_script_is_executable_and_stops_at_the_first_failure():
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_no_placeholder_is_left_in_the_pages_that_users_read() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    assert len(pages) > 5
    assert [page.name for page in pages if "@@" in page.read_text() or "TODO" in page.read_text()] == []
