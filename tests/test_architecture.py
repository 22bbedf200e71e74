"""The rules of docs/architecture.md that the source alone can show: who imports whom, how long things are."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "shared", "services")
PACKAGE = "octavo"
MAX_LINES = 400  # of a file
MAX_FUNCTION_LINES = 60

# What of ours each part may import, besides itself; the nearest entry counts, and what it lacks is forbidden.
OURS: dict[str, set[str]] = {
    "kernels": set(),
    "shared": set(),
    "services.gateway": {"shared"},
    "services.tokenizer": {"shared"},
    "services.scheduler": {"shared"},
    "services.executor": {"shared", "kernels"},
    "services.launch": {"shared"},
    "services.llm": {"shared", "services.launch"},
    "services.remote": {"shared"},
    "services.chat": {"shared", "services.remote"},
    "services.complete": {"shared", "services.remote"},
    "services.batch_files": {"shared"},
    "services.batch": {"shared", "services.remote", "services.batch_files", "services.llm"},
    "services.completion": {"shared", "services.chat", "services.complete", "services.batch"},
    "services.doctor": {"shared"},
    "services.bench": {"shared", "services.launch", "services.doctor"},
    "services.cli": {
        "shared",
        "services.launch",
        "services.chat",
        "services.complete",
        "services.batch",
        "services.completion",
        "services.doctor",
        "services.bench",
    },
}

# Third parties, imported at the top or within a function.
THIRD_PARTIES = {
    "kernels": {"torch"},
    "kernels.gpu": {"torch", "triton"},
    "kernels.loops": {"numba", "llvmlite", "numpy"},
    "kernels.draw_loop": {"numba", "numpy"},
    "kernels.tile_loops": {"numba", "llvmlite"},
    "kernels.intrinsics": {"numba", "llvmlite", "numpy"},
    "shared": {"msgspec"},
    "shared.transport": {"msgspec", "zmq"},
    "shared.config_file": {"yaml"},
    "shared.gguf_file": {"msgspec", "gguf", "numpy"},
    "shared.model_files": {"msgspec", "huggingface_hub"},
    "shared.grammar": {"msgspec", "xgrammar"},
    "services.gateway": {"aiohttp", "msgspec", "prometheus_client"},
    "services.gateway.traces": {"aiohttp", "msgspec", "opentelemetry"},
    "services.tokenizer": {"tokenizers", "jinja2", "msgspec"},
    "services.tokenizer.grammar_compile": {"msgspec", "torch"},  # in a process of its own
    "services.scheduler": {"msgspec"},
    "services.executor": {"torch", "safetensors", "msgspec"},
    "services.launch": {"msgspec"},
    "services.llm": {"aiohttp", "msgspec"},
    "services.llm.progress": {"tqdm"},
    "services.remote": set(),
    "services.chat": set(),
    "services.complete": set(),
    "services.batch_files": {"msgspec"},
    "services.batch": set(),
    "services.completion": {"shtab"},
    "services.doctor": {"msgspec"},
    "services.bench": {"msgspec"},
    "services.cli": {"msgspec"},
}

# These run whatever a file says that they read.
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {"torch.load", "torch.save", "torch.package", "numpy.load", "np.load"}

SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
ALL_SOURCES = [
    *SOURCES,
    *sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")),
]
STANDARD = sys.stdlib_module_names


def name_of(path: Path) -> str:
    """`services/executor/models/linear.py` -> `services.executor.models.linear`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def look_up(table: dict[str, set[str]], module: str) -> set[str]:
    """The entry of the module, or else of the nearest part around it."""
    while module not in table:
        assert "." in module, f"{module} is in no table"
        module = module.rpartition(".")[0]
    return table[module]


def part_of(module: str) -> str:
    """`services.executor.models.linear` -> `services.executor`; `kernels.rope` -> `kernels`."""
    head, *rest = module.split(".")
    return f"{head}.{rest[0]}" if head == "services" and rest else head


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in (PACKAGE, f"{PACKAGE}.services"):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module
        elif isinstance(node, ast.Call) and _dotted(node.func) in ("importlib.import_module", "__import__"):
            argument = node.args[0]
            is_plain = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            yield (
                node.lineno,
                str(argument.value) if is_plain and isinstance(argument, ast.Constant) else "<computed>",
            )


def _dotted(node: ast.expr) -> str:
    """`torch.load` of the expression that calls it; nothing for what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_of_ours_follow_the_direction(path: Path) -> None:
    here = part_of(name_of(path))
    for line, module in imports(path):
        assert not module.startswith("."), f"{path}:{line}: a relative import"
        if module.startswith(PACKAGE + ".") and module != f"{PACKAGE}.__version__":
            there = part_of(module.removeprefix(PACKAGE + "."))
            assert there == here or there in look_up(OURS, here), f"{path}:{line}: {here} may not import {there}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_third_parties_are_imported_only_where_they_may_be(path: Path) -> None:
    allowed = look_up(THIRD_PARTIES, name_of(path))
    for line, module in imports(path):
        top = module.partition(".")[0]
        assert top in allowed or top in STANDARD or top == PACKAGE, f"{path}:{line}: {top} may not be imported here"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_read_in_a_way_that_could_run_code(path: Path) -> None:
    for line, module in imports(path):
        assert module.partition(".")[0] not in UNSAFE_MODULES, f"{path}:{line}: {module}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert _dotted(node) not in UNSAFE_CALLS, f"{path}:{node.lineno}: {_dotted(node)}"
        if isinstance(node, ast.Call):
            assert _dotted(node.func) not in ("eval", "exec"), f"{path}:{node.lineno}: {_dotted(node.func)}"


@pytest.mark.parametrize("path", ALL_SOURCES, ids=name_of)
def test_no_file_and_no_function_is_too_long(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES, f"{path} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("folder", FOLDERS)
def test_top_folders_are_not_packages(folder: str) -> None:
    """With the root on sys.path an __init__.py here would hide the PyPI package `kernels`."""
    assert not (ROOT / folder / "__init__.py").exists()
