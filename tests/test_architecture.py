"""The house rules of the source tree, held against its syntax trees: who may import whom, and what nobody may write.

Truth checked: identity (the rules stated in the tables below).
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = ("train_video", "sample_video")
BASE_ROOMS = frozenset({"config", "platform", "parallel", "checkpoint", "data", "errors", "progress"})
MIDDLE_ROOMS = frozenset({"diffusion", "transformer", "vae", "conditioning", "telemetry"})
MODULES = frozenset({"data_video", "arguments"})

# Unit → the other units that it may import. Entries and tools may import everything but each other.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "latent_cache": MODULES | MIDDLE_ROOMS | BASE_ROOMS,
    "diffusion_video": MODULES | MIDDLE_ROOMS | BASE_ROOMS | {"sat_bridge"},
    "sat_bridge": BASE_ROOMS | {"telemetry"},
    **dict.fromkeys(MODULES | MIDDLE_ROOMS, BASE_ROOMS),
    # Its second call, initialize_distributed, hands over to the bridge.
    "arguments": BASE_ROOMS | {"sat_bridge"},
    # The base rooms may use each other, but not in a circle.
    **dict.fromkeys(BASE_ROOMS - {"errors", "progress"}, BASE_ROOMS),
    "errors": frozenset(),
    "progress": frozenset(),
}

# Single modules that may be imported across the rule above, with the reason.
EXCEPTIONS = {
    ("transformer", "cogvideox.sat_bridge.importing"): "it makes `import sat` work, and imports nothing itself"
}

# Outside package → the units that may import it.
OUTSIDE: dict[str, frozenset[str]] = {
    "sat": frozenset({"transformer", "sat_bridge", "entries", "tools"}),
    "deepspeed": frozenset({"sat_bridge", "checkpoint"}),
    "transformers": frozenset({"conditioning", "tools"}),
    "diffusers": frozenset({"tools"}),
}

FILE_LINES = 300
FUNCTION_LINES = 40
LONGEST_FUNCTION_LINES = 60
# Functions of 41 to 60 lines, with the reason why splitting one would make it harder to read.
LONG_FUNCTIONS = {
    "cogvideox/sat_bridge/training.py:train_step": "one iteration from top to bottom, on shared state",
    "cogvideox/transformer/model.py:DiffusionTransformer.__init__": "a parameter a line: the model's config keys",
}


def source_files() -> list[Path]:
    """The product's Python files: entries, rooms and tools."""
    return sorted([*ROOT.glob("*.py"), *ROOT.glob("cogvideox/**/*.py"), *ROOT.glob("tools/**/*.py")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def unit_of_module(module: str) -> str | None:
    """The unit that a module belongs to: a room, a root module, `entries` or `tools`; None for outside packages."""
    top, *rest = module.split(".")
    if top == "cogvideox":
        return rest[0] if rest else "cogvideox"
    if top in ENTRIES:
        return "entries"
    return top if top in MODULES or top in ("diffusion_video", "latent_cache", "tools") else None


def unit_of(path: Path) -> str | None:
    return unit_of_module(module_of(path))


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every dotted name that `path` imports, with its line; `from a import b` gives `a.b`."""
    package = module_of(path).split(".")
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            keep = len(package) - node.level + (path.name == "__init__.py") if node.level else 0
            base = ".".join([*package[:keep], *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def functions_of(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of `path` with its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            name = f"{prefix}{child.name}" if isinstance(child, ast.ClassDef | ast.FunctionDef) else prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{child.name}", child
            yield from walk(child, f"{name}." if name != prefix else prefix)

    yield from walk(tree_of(path), "")


def assert_none(violations: list[str], rule: str) -> None:
    assert not violations, f"{rule}:\n  " + "\n  ".join(violations)


def test_every_file_belongs_to_a_known_unit() -> None:
    known = {*MAY_IMPORT, "entries", "tools", "cogvideox"}
    assert_none([name_of(path) for path in source_files() if unit_of(path) not in known], "files outside the house")


def test_imports_look_down_only() -> None:
    violations = []
    for path in source_files():
        unit = unit_of(path)
        for module, line in imports_of(path):
            other = unit_of_module(module)
            if other is None or other == unit or (unit in ("entries", "tools") and other not in ("entries", "tools")):
                continue
            excepted = any(unit == room and module.startswith(allowed) for room, allowed in EXCEPTIONS)
            if not excepted and other not in MAY_IMPORT.get(unit or "", frozenset()):
                violations.append(f"{name_of(path)}:{line}: {unit} imports {module}")
    assert_none(violations, "imports that do not look down")


def test_base_rooms_do_not_import_in_a_circle() -> None:
    uses: dict[str, set[str]] = {room: set() for room in BASE_ROOMS}
    for path in source_files():
        if (unit := unit_of(path)) in BASE_ROOMS:
            others = {unit_of_module(module) for module, _ in imports_of(path)}
            uses[unit] |= {other for other in others if other in BASE_ROOMS and other != unit}
    while free := [room for room, used in uses.items() if not used]:
        uses = {room: used - set(free) for room, used in uses.items() if room not in free}
    assert not uses, f"rooms that import each other in a circle: {uses}"


@pytest.mark.parametrize("package", OUTSIDE)
def test_outside_package_is_imported_where_it_belongs(package: str) -> None:
    violations = [
        f"{name_of(path)}:{line}: imports {module}"
        for path in source_files()
        for module, line in imports_of(path)
        if module.split(".")[0] == package and unit_of(path) not in OUTSIDE[package]
    ]
    assert_none(violations, f"{package} may be imported only in {', '.join(sorted(OUTSIDE[package]))}")


def docstrings_of(tree: ast.Module) -> set[ast.Constant]:
    holders = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    first = [holder.body[0] for holder in holders if holder.body]
    return {e.value for e in first if isinstance(e, ast.Expr) and isinstance(e.value, ast.Constant)}


def word_of(node: ast.AST) -> str:
    """The name or text that a node spells, empty for nodes that spell none."""
    field = {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg", ast.keyword: "arg", ast.Constant: "value"}
    word = getattr(node, field[type(node)]) if type(node) in field else ""
    return word if isinstance(word, str) else ""


def test_the_accelerator_is_named_behind_one_door() -> None:
    violations = []
    for path in source_files():
        docstrings = docstrings_of(tree_of(path))
        for node in ast.walk(tree_of(path)):
            named = re.search(r"(?<![A-Za-z])cuda(?![A-Za-z])", word_of(node))
            if named and node not in docstrings and unit_of(path) != "platform":
                violations.append(f"{name_of(path)}:{node.lineno}: {word_of(node)[:60]!r}")
    assert_none(violations, "`cuda` outside cogvideox/platform")


def keyword_of(call: ast.Call, name: str) -> str:
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), "")


def unsafe(call: ast.Call) -> bool:
    """True for a call that may run code hidden in data."""
    name = ast.unparse(call.func)
    if name == "torch.load":
        return keyword_of(call, "weights_only") != "True"
    if name in ("yaml.load", "yaml.load_all"):
        return not keyword_of(call, "Loader").endswith("SafeLoader")
    if name in ("np.load", "numpy.load"):
        return keyword_of(call, "allow_pickle") not in ("", "False")
    return name in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "os.system")


def calls_where(bad: Callable[[ast.Call], bool]) -> list[str]:
    nodes = [(path, node) for path in source_files() for node in ast.walk(tree_of(path))]
    calls = [(path, node) for path, node in nodes if isinstance(node, ast.Call) and bad(node)]
    return [f"{name_of(path)}:{call.lineno}: {ast.unparse(call)[:80]}" for path, call in calls]


def test_no_call_runs_code_hidden_in_data() -> None:
    assert_none(calls_where(unsafe), "calls that may run code hidden in data")


def test_no_hasattr_probing() -> None:
    assert_none(calls_where(lambda call: ast.unparse(call.func) == "hasattr"), "hasattr: ask the type instead")


def test_files_are_short() -> None:
    files = [*source_files(), *ROOT.glob("tests/**/*.py"), *ROOT.glob("*.sh"), *ROOT.glob("tools/*.sh")]
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = [f"{name}: {n} lines" for name, n in lengths.items() if n > FILE_LINES]
    assert_none(long, f"files over {FILE_LINES} lines")


def test_functions_are_short() -> None:
    lengths = {
        f"{name_of(path)}:{name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in source_files()
        for name, node in functions_of(path)
    }
    long = {name for name, n in lengths.items() if FUNCTION_LINES < n <= LONGEST_FUNCTION_LINES}
    too_long = [f"{name}: {n} lines" for name, n in lengths.items() if n > LONGEST_FUNCTION_LINES]
    assert_none(too_long, f"functions over {LONGEST_FUNCTION_LINES} lines")
    unexplained = [f"{name}: {lengths[name]} lines" for name in sorted(long - set(LONG_FUNCTIONS))]
    assert_none(unexplained, f"functions over {FUNCTION_LINES} lines without a reason in LONG_FUNCTIONS")
    assert_none(sorted(set(LONG_FUNCTIONS) - long), "LONG_FUNCTIONS names what is not long")


def test_public_names_have_docstrings() -> None:
    violations = []
    for path in source_files():
        tree = tree_of(path)
        if tree.body and not ast.get_docstring(tree):
            violations.append(f"{name_of(path)}: module")
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                violations.append(f"{name_of(path)}:{node.lineno}: {node.name}")
    assert_none(violations, "without a docstring")


def test_no_unfinished_business() -> None:
    pattern = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
    files = [
        *source_files(),
        *(path for suffix in ("py", "sh", "yaml", "md") for path in ROOT.glob(f"[a-z]*/**/*.{suffix}")),
    ]
    violations = [
        f"{name_of(path)}:{number}: {line.strip()[:80]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert_none(violations, "marks of unfinished work")


def test_no_file_is_named_utils() -> None:
    vague = ("utils.py", "util.py", "helpers.py", "misc.py", "common.py")
    assert_none([name_of(path) for path in source_files() if path.name in vague], "names that say nothing")


IMPORT_ALL = """
import importlib, json, os, sys, threading
import torch
environment, threads, seed = dict(os.environ), threading.active_count(), torch.initial_seed()
failed = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
print(json.dumps({
    "failed": failed,
    "initialized": torch.distributed.is_initialized(),
    "seeded": torch.initial_seed() != seed,
    "threads": threading.active_count() - threads,
    "removed": sorted(set(environment) - set(os.environ)),
}), file=sys.stderr)
"""


def test_importing_has_no_effects(tmp_path: Path) -> None:
    modules = [module_of(path) for path in source_files() if unit_of(path) != "tools"]
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(modules)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stderr.splitlines()[-1])
    assert report == {"failed": {}, "initialized": False, "seeded": False, "threads": 0, "removed": []}
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
