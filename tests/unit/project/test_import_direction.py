"""Who may import whom. The map is in docs/architecture.md; here it is enforced."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]

# What each package may import of the others, at any place in a file.
MAY_IMPORT = {
    "cli": {
        *("bench", "front", "tls", "server", "keys", "engine", "loading", "models", "text", "config", "protocol"),
        *("aws", "doctor", "lifecycle", "log_format", "version"),
    },
    "doctor": {"aws", "keys", "tls", "config"},
    "aws": {"lifecycle", "config"},
    "bench": {"engine", "text", "config", "protocol", "version"},
    "server": {"engine", "keys", "lifecycle", "text", "config", "protocol", "log_format", "version"},
    "front": {"tls", "config"},
    "tls": set[str](),
    "keys": set[str](),
    "engine": {"runner", "loading", "models", "lifecycle", "text", "config", "protocol", "log_format"},
    "runner": {"models", "kernels", "protocol"},
    "loading": {"models", "config"},
    "models": {"kernels"},
    "kernels": set[str](),
    "lifecycle": set[str](),
    "text": {"config", "protocol"},
    "config": set[str](),
    "protocol": set[str](),
    "log_format": set[str](),
    "version": set[str](),
}
OF_THE_TOP = {"LLM": "engine", "SamplingParams": "protocol", "__version__": "version"}  # what `appliance` hands on
# The one module of a higher layer that a lower one reads: what scheduler and runner hand each other, plain data.
SHARED_DATA = {("runner", "appliance.engine.step")}
# The server talks to the engine through its client, and starts its process; the engine itself runs elsewhere.
ENGINE_FOR_SERVER = {"appliance.engine.client", "appliance.engine.supervisor"}
WITH_TORCH = ("runner", "models", "loading", "kernels")
HEAVY = ("torch", "transformers", "triton", "safetensors", "gguf")


def sources() -> list[Path]:
    return sorted([*(ROOT / "appliance").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def package_of(module: str) -> str | None:
    """`appliance.engine.core` → engine; None for `appliance` itself and for other people's modules."""
    first, _, rest = module.partition(".")
    if first == "appliance_kernels":
        return "kernels"
    package = rest.partition(".")[0]
    return OF_THE_TOP.get(package, package) or None if first == "appliance" else None


def package_of_file(file: Path) -> str | None:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return "kernels" if parts[0] == "kernels" else package_of(".".join(parts))


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere; relative imports are not used in this project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            # `from appliance.models import llama` imports a module as well as `import appliance.models.llama` does.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported_at_load(tree: ast.Module) -> set[str]:
    """First names of the modules that importing the file itself imports, `if TYPE_CHECKING:` and functions excepted."""
    names: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        else:
            pending += ast.iter_child_nodes(node)
    return names


def wrong_imports(file: Path, tree: ast.Module) -> list[str]:
    here = package_of_file(file)
    if here is None or here == "__init__":
        return []
    wrong = []
    for name in imported(tree):
        there = package_of(name)
        if there is None or there == here:
            continue
        if any(here == reader and name.startswith(f"{module}.") for reader, module in SHARED_DATA):
            continue
        if there not in MAY_IMPORT.get(here, set()):
            wrong.append(f"{file.relative_to(ROOT)} ({here}) imports {name} ({there})")
    return wrong


def test_every_import_goes_down_the_map() -> None:
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sources()}
    assert [wrong for file, tree in trees.items() for wrong in wrong_imports(file, tree)] == []


def test_the_map_has_every_package() -> None:
    found = {package_of_file(file) for file in sources()} - {None, "__init__"}
    assert found == MAY_IMPORT.keys()


def test_the_server_knows_only_the_engines_client_and_process() -> None:
    for file in (ROOT / "appliance" / "server").rglob("*.py"):
        names = {name for name in imported(ast.parse(file.read_text())) if name.startswith("appliance.engine.")}
        assert {name.rpartition(".")[0] for name in names} <= ENGINE_FOR_SERVER, file


def test_nothing_that_faces_the_network_or_schedules_imports_torch() -> None:
    heavy = {
        str(file.relative_to(ROOT)): sorted(found)
        for file in sources()
        if package_of_file(file) not in WITH_TORCH
        and (found := imported_at_load(ast.parse(file.read_text(encoding="utf-8"))).intersection(HEAVY))
    }
    assert heavy == {}


def test_loading_the_server_and_the_engines_core_loads_no_torch() -> None:
    """The same through everything that they import in turn."""
    program = (
        "import sys, appliance.cli.serve, appliance.cli.trace, appliance.server.serve\n"
        "import appliance.engine.process, appliance.engine.llm\n"
        f"found = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "sys.exit(', '.join(found) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_check_sees_a_wrong_import() -> None:
    file = ROOT / "appliance" / "server" / "made_up.py"
    tree = ast.parse("def f():\n    from appliance.runner import rows\n")
    assert wrong_imports(file, tree) == [
        "appliance/server/made_up.py (server) imports appliance.runner.rows (runner)",
    ]
    assert imported_at_load(ast.parse("class A:\n    import torch.nn\n")) == {"torch"}
    assert imported_at_load(ast.parse("def f():\n    import torch\nif TYPE_CHECKING:\n    import torch\n")) == set()
