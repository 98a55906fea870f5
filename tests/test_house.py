"""Rules of the house that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.reference import LISTS, sections
from schemas.presets import demo
from schemas.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    p
    for folder in ("schemas", "jobs", "itemsage_model", "retrieval", "pipeline")
    for p in (ROOT / folder).rglob("*.py")
)


def test_every_module_imports_without_a_word_or_a_file(tmp_path: Path):
    names = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SOURCES if p.stem not in ("__init__", "__main__")
    ]
    code = f"import importlib, sys; sys.path.insert(0, {str(ROOT)!r})\nfor n in {names!r}: importlib.import_module(n)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
    assert list(tmp_path.iterdir()) == []


def test_every_package_is_installed():
    declared = set(re.search(r"^packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text(), re.M)[1].split(", "))
    tops = ("schemas", "itemsage_model", "retrieval", "jobs", "pipeline", "examples")
    there = {".".join(p.relative_to(ROOT).parent.parts) for top in tops for p in (ROOT / top).rglob("__init__.py")}
    assert {name.strip('"') for name in declared} == there


def calls_of_hash(source: str) -> list[int]:
    """Lines that call the built-in hash, which differs between processes."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "hash"]


@pytest.mark.fault("E3", "loud", "a call of the built-in hash in any module")
def test_no_builtin_hash_of_values():
    assert calls_of_hash("key = 7\nkey = abs(hash('id')) % 7") == [2]
    assert {path: lines for path in SOURCES if (lines := calls_of_hash(path.read_text()))} == {}


def test_pipeline_toml_names_every_key_with_its_default():
    documented = load_settings(ROOT / "pipeline.toml")
    assert documented == Settings(warehouse=documented.warehouse, dates=documented.dates)
    text = (ROOT / "pipeline.toml").read_text()
    for section, model in sections().items():
        if section not in LISTS:
            for key in model.model_fields:
                assert re.search(rf"^(# )?{key} = ", text, re.M), f"{section}.{key} is not in pipeline.toml"


def test_the_demo_settings_are_the_demo_preset():
    settings = load_settings(ROOT / "demo.toml")
    model, features = demo()
    assert settings.model == model
    assert (settings.features.char_trigrams, settings.features.word_bigrams) == (
        features.char_trigrams, features.word_bigrams
    )  # fmt: skip


@pytest.mark.parametrize(
    "path", [p for p in (ROOT / "jobs").glob("*.py") if "STAGE =" in p.read_text()], ids=lambda p: p.stem
)
def test_a_job_says_what_it_reads_and_writes_and_how_to_run_it(path: Path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    for word in (
        "Reads:",
        "Writes:",
        "ne row",
        "Safe to rerun",
        f"spark-submit --properties-file spark-defaults.conf jobs/{path.name}",
    ):
        assert word in text, f"{path.name}: {word!r} is missing"
