"""What must stand nowhere in the code: nothing is unpickled or evaluated, no shell, no SQL put together from values.

And what must stand in SECURITY.md: every dependency that is held back, as it is pinned, with tests that exist.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in (
        "schemas",
        "jobs",
        "itemsage_model",
        "retrieval",
        "pipeline",
        "examples",
        "experiments",
        "benchmarks",
    )
    for path in (ROOT / folder).rglob("*.py")
)
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
EXPOSED = {"setuptools", "pkg_resources", "diskcache"}
"""Dependencies of dependencies that have open advisories (SECURITY.md), so that nothing of ours imports them."""
EVALUATES = {"eval", "exec", "compile", "__import__"}
SQL = {"sql", "expr", "selectExpr", "where", "filter"}
UNSAFE_CALLS = {"os.system", "os.popen", "yaml.load", "torch.load", "numpy.load", "np.load", "tempfile.mktemp"}
UNSAFE_CALLS |= {"torch.jit.load", "torch.jit.script", "torch.export.load", "pd.read_pickle", "pandas.read_pickle"}


def findings(source: str) -> Iterator[str]:
    """What a source file has that must not be there, with its line."""
    for node in ast.walk(ast.parse(source)):
        for found in _of_node(node):
            yield f"{getattr(node, 'lineno', 0)}: {found}"


def _of_node(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"import {name.name}" for name in node.names if name.name.partition(".")[0] in PICKLES | EXPOSED)
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLES | EXPOSED:
        yield f"import {node.module}"
    if not isinstance(node, ast.Call):
        return
    name = ast.unparse(node.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in EVALUATES or name in UNSAFE_CALLS:
        is_safe = name.endswith("load") and keywords.get("weights_only") == "True"
        if not is_safe and keywords.get("allow_pickle") != "False":
            yield name
    if keywords.get("shell", "False") != "False":
        yield f"{name}(shell=...)"
    if keywords.get("allow_pickle", "False") != "False":
        yield f"{name}(allow_pickle=...)"
    if name.rpartition(".")[2] in SQL and node.args and _is_put_together(node.args[0]):
        yield f"{name}: SQL put together from values"


def _is_put_together(argument: ast.expr) -> bool:
    """An f-string with values, `%`, `+` or .format on a string."""
    if isinstance(argument, ast.JoinedStr):
        return any(isinstance(part, ast.FormattedValue) for part in argument.values)
    if isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Add | ast.Mod):
        return any(_is_text(side) for side in (argument.left, argument.right))
    return (
        isinstance(argument, ast.Call)
        and isinstance(argument.func, ast.Attribute)
        and argument.func.attr == "format"
        and _is_text(argument.func.value)
    )


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_stands_in_the_code(path: Path) -> None:
    assert list(findings(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "spark.sql(f'SELECT * FROM {table}')",
        "spark.sql('SELECT * FROM ' + table)",
        "rows.where('title = %s' % title)",
        "F.expr('a = {}'.format(value))",
        "yaml.load(text)",
        "from setuptools.package_index import PackageIndex",
        "import diskcache",
        "torch.jit.load(path)",
        "torch.export.load(path)",
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "subprocess.run(command)",
        "spark.sql('SELECT 1')",
        "rows.where(F.col('a') == value)",
        "pa.table(rows).filter(mask + other)",
    ],
)
def test_what_is_safe_is_not(source: str) -> None:
    assert list(findings(source)) == []


def test_only_a_benchmark_imports_pandas() -> None:
    found = [path for path in SOURCES if re.search(r"^\s*(?:import|from) pandas\b", path.read_text("utf-8"), re.M)]
    assert [path.relative_to(ROOT).parts[0] for path in found] == ["benchmarks"]


# ---------------------------------------------------------------- dependencies


def held_back() -> list[str]:
    """Dependencies with an upper bound, or pinned to one version; development tools aside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    bounds = [line.partition(";")[0] for line in (*project["dependencies"], *extras)]
    return [re.split(r"[=<>\[]", bound)[0] for bound in bounds if "<" in bound or "==" in bound]


def pinned() -> dict[str, set[str]]:
    """Package -> its versions in all requirements files."""
    found: dict[str, set[str]] = {}
    for path in ROOT.glob("requirements*.txt"):
        for name, version in re.findall(r"^([\w.-]+)==([^ ;\\]+)", path.read_text(), re.M):
            found.setdefault(name, set()).add(version)
    return found


def test_security_md_has_every_dependency_that_is_held_back_as_it_is_pinned() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    rows = dict(re.findall(r"([\w-]+) (\d[\w.]*)(?=,| \|)", "\n".join(re.findall(r"^\| ([^|]+\|)", text, re.M))))
    assert len(held_back()) > 8
    assert set(held_back()) <= set(rows)
    assert {name: {version} for name, version in rows.items()} == {name: pinned()[name] for name in rows}
    assert len(re.findall(r"\b20\d\d-\d\d-\d\d\b", text)) == 2  # of the bounds, and of the look-up


def test_the_tests_that_security_md_names_exist() -> None:
    named = set(re.findall(r"`((?:tests|itemsage_model|jobs|schemas)/[\w/]+\.py)`", (ROOT / "SECURITY.md").read_text()))
    assert len(named) > 6
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
