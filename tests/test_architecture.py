"""The house's rules, read from the source: who may import whom, and what no file does."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    {"__main__"},
    {"cli"},
    {"plan_verb"},
    {"verbs"},
    {"options"},
    {"console", "tables"},
    {"__init__"},
    {"care", "planning"},
    {"api"},
    {"circle", "tuning"},
    {"rounds"},
    {"pipeline"},
    {"stages"},
    {"unfinished", "auto", "watching"},
    {"compression", "updating"},
    {"training", "evaluation", "serving", "monitoring", "tracking"},
    {"inference"},
    {"weights"},
    {"model", "tokens", "corpus"},
    {"store"},
    {"config"},
    {"recipe"},
    {"upkeep"},
    {"learning"},
    {"sections"},
    {"progress", "records", "errors"},
)
"""From the top down: a folder or file imports what stands in a lower row, never beside or above."""

NEVER_TOGETHER = {("updating", "serving")}
"""Below, and yet apart: an update changes the registry, never a server."""

UNSAFE_MODULES = {
    *("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("multiprocessing", "torch.multiprocessing", "concurrent.futures.ProcessPoolExecutor"),
}
"""They turn bytes into code, or send objects to other processes by what does."""
UNSAFE_CALLS = {"eval", "exec", "compile", "torch.load", "os.system", "os.popen"}
SOCKET_MODULES = {"socket", "socketserver", "uvicorn", "http.server", "websockets", "aiohttp"}
MANY_DEVICES = {
    f"training/{name}.py" for name in ("parallel", "shard_files", "sharding", "tensor_parallel")
}
"""Files that know of torch.distributed."""
LONGEST_FILE = 400


@dataclass(frozen=True)
class Module:
    """One source file: where it lies below the package, and its text."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def layer(self) -> str:
        return self.path.parts[0].removesuffix(".py")

    def says(self, node: ast.AST, complaint: str) -> str:
        return f"{self.path.as_posix()}:{getattr(node, 'lineno', 1)} {complaint}"

    def imports(self) -> Iterator[tuple[ast.AST, str]]:
        """Every imported name in full, wherever in the file; relative ones resolved."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node, each.name) for each in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = ("lmloop", *self.path.parts[: -node.level])
                    base = ".".join([*package, base]).rstrip(".")
                yield from ((node, f"{base}.{each.name}") for each in node.names)
            elif isinstance(node, ast.Call) and node.args:
                named = dotted(node.func) in ("importlib.import_module", "__import__")
                if named and isinstance(node.args[0], ast.Constant):
                    yield node, str(node.args[0].value)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression that is one, else an empty text."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def read_modules(root: Path) -> Iterator[Module]:
    source = root / "src" / "lmloop"
    for path in sorted(source.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield Module(path.relative_to(source), text, ast.parse(text))


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def wrong_directions(root: Path) -> list[str]:
    ranks = {name: rank for rank, row in enumerate(LAYERS) for name in row}
    found = []
    for module in read_modules(root):
        if module.layer not in ranks:
            found.append(f"{module.path} has no layer: enter {module.layer} in LAYERS")
            continue
        for node, name in module.imports():
            if not is_in(name, "lmloop"):
                continue
            part = name.split(".")[1] if "." in name else "__init__"
            target = part if part in ranks else "__init__"
            below = ranks[target] > ranks[module.layer]
            same = target == module.layer
            if (not below and not same) or (module.layer, target) in NEVER_TOGETHER:
                found.append(module.says(node, f"{module.layer} imports {name}"))
    return found


def wrong_libraries(root: Path) -> list[str]:
    found = []
    for module in read_modules(root):
        place = module.path.as_posix()
        for node, name in module.imports():
            forbidden = (
                (is_in(name, "torch") or ".torch" in name) and module.layer in ("corpus", "tokens"),
                is_in(name, "daft") and place not in ("corpus/engine.py", "corpus/pictures.py"),
                is_in(name, "torch.distributed") and place not in MANY_DEVICES,
                any(is_in(name, each) for each in SOCKET_MODULES) and module.layer != "serving",
                any(is_in(name, each) for each in UNSAFE_MODULES),
                name == "torch.load",
            )
            if any(forbidden):
                found.append(module.says(node, f"imports {name}"))
    return found


def forbidden_calls(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield module.says(node, "catches everything")
        if dotted(node) == "torch.distributed" and module.path.as_posix() not in MANY_DEVICES:
            yield module.says(node, "uses torch.distributed")
        if dotted(node) in ("os.environ", "os.getenv") and module.path.as_posix() != "config.py":
            yield module.says(node, "reads the environment")
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name == "print" and module.layer not in ("cli", "console"):
            yield module.says(node, "prints")
        if name in UNSAFE_CALLS:
            yield module.says(node, f"calls {name}")
        for keyword in node.keywords:
            truly = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and truly:
                yield module.says(node, f"says {keyword.arg}=True")


def unsafe_code(root: Path) -> list[str]:
    return [each for module in read_modules(root) for each in forbidden_calls(module)]


def public_definitions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or any("overload" in dotted(d) for d in node.decorator_list):
            continue
        yield node  # type: ignore[misc]
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body)


def missing_docstrings(root: Path) -> list[str]:
    found = []
    for module in read_modules(root):
        if not ast.get_docstring(module.tree):
            found.append(module.says(module.tree, "has no docstring"))
        for node in public_definitions(module.tree.body):
            if not ast.get_docstring(node):
                found.append(module.says(node, f"{node.name} has no docstring"))
    return found


def shipped_files(root: Path) -> list[Path]:
    source = root / "src" / "lmloop"
    paths = (path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file())
    return [path for path in paths if "__pycache__" not in path.parts]


def long_files(root: Path) -> list[str]:
    source = root / "src" / "lmloop"
    lengths = {path: len((source / path).read_bytes().splitlines()) for path in shipped_files(root)}
    return [f"{path}: {length} lines" for path, length in lengths.items() if length > LONGEST_FILE]


def unfinished_notes(root: Path) -> list[str]:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    return [
        f"{module.path}:{number} {line.strip()}"
        for module in read_modules(root)
        for number, line in enumerate(module.text.splitlines(), start=1)
        if pattern.search(line)
    ]


def missing_tests(root: Path) -> list[str]:
    sources = (module.path for module in read_modules(root))
    wanted = [
        path.with_name(f"test_{path.name}")
        for path in sources
        if path.name not in ("__init__.py", "__main__.py")
    ]
    return [path.as_posix() for path in wanted if not (root / "tests" / path).is_file()]


def personal_paths(root: Path) -> list[str]:
    # A letter before the slash makes it a part of a longer path or of a web address.
    pattern = re.compile(r"(?<![\w.~\-])/(?:home|Users|root|work)/\w")
    folders = ("src", "tests", "docs", "recipes", "examples", "benchmarks", ".ci")
    files = [path for name in folders for path in (root / name).rglob("*")]
    return [
        f"{path.relative_to(root)}:{number} {line.strip()}"
        for path in sorted([*files, *root.glob("*")])
        if path.is_file() and path.suffix in ("", ".py", ".md", ".toml", ".json", ".js", ".html")
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1)
        if pattern.search(line)
    ]


def parse_tree(text: str) -> dict[str, str]:
    """What the fenced block that begins with `src/lmloop/` says of each file below it.

    Two spaces a level; a folder ends with a slash; a file's name and what it is stand two or more
    spaces apart.
    """
    block = re.search(r"^```\w*\nsrc/lmloop/[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None, "there is no fenced block that begins with src/lmloop/"
    folders: list[str] = []
    files = {}
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        name, _, what = line.strip().partition("  ")
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        elif name:
            files["".join(folders) + name] = what.strip()
    return files


def tree_differences(root: Path, page: str) -> list[str]:
    told = parse_tree((root / page).read_text(encoding="utf-8"))
    real = {
        path.as_posix()
        for path in shipped_files(root)
        if path.name != "__init__.py" or path.parent == Path()
    }
    return [
        *(f"{page} lacks {name}" for name in sorted(real - told.keys())),
        *(f"{page} names {name}, which is not there" for name in sorted(told.keys() - real)),
        *(f"{page} does not say what {name} is" for name, what in told.items() if not what),
    ]


RULES: dict[str, Callable[[Path], list[str]]] = {
    "an_arrow_goes_down_only": wrong_directions,
    "a_library_is_imported_only_where_it_belongs": wrong_libraries,
    "no_file_does_what_is_unsafe_or_another_ones_part": unsafe_code,
    "no_file_is_longer_than_400_lines": long_files,
    "what_is_public_is_documented": missing_docstrings,
    "no_note_says_that_something_is_unfinished": unfinished_notes,
    "every_source_file_has_a_test_file": missing_tests,
    "no_text_names_a_place_on_someones_machine": personal_paths,
    "the_readme_draws_the_tree_as_it_is": lambda root: tree_differences(root, "README.md"),
    "the_chinese_readme_draws_it_too": lambda root: tree_differences(root, "README.zh-CN.md"),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps_the_rule(rule: str) -> None:
    breaches = RULES[rule](ROOT)
    assert not breaches, "\n".join(breaches)


GOOD = '"""A sentence."""\n'


@pytest.mark.parametrize(
    ("rule", "path", "code", "complaint"),
    [
        (wrong_directions, "store/a.py", "import lmloop.cli", "store imports lmloop.cli"),
        (wrong_directions, "model/a.py", "from lmloop.tokens.chat import x", "model imports"),
        (wrong_directions, "model/a.py", "from lmloop import tokens", "model imports"),
        (wrong_directions, "model/a.py", "from ..tokens import x", "lmloop.tokens.x"),
        (wrong_directions, "training/a.py", "def f():\n import lmloop.evaluation.b", "a.py:3"),
        (wrong_directions, "serving/a.py", "if TYPE_CHECKING:\n import lmloop.monitoring", "a.py"),
        (wrong_directions, "api.py", "from lmloop import run", "api imports lmloop.run"),
        (wrong_directions, "updating/a.py", "import lmloop.serving.app", "updating imports"),
        (wrong_directions, "errors.py", "import lmloop.records", "errors imports"),
        (wrong_directions, "model/a.py", "importlib.import_module('lmloop.api')", "lmloop.api"),
        (wrong_directions, "stranger.py", "", "stranger.py has no layer"),
        (wrong_libraries, "corpus/a.py", "def f():\n from torch import nn", "torch.nn"),
        (wrong_libraries, "tokens/a.py", "import safetensors.torch", "safetensors.torch"),
        (wrong_libraries, "corpus/read.py", "import daft", "imports daft"),
        (wrong_libraries, "training/loop.py", "from torch import distributed", "distributed"),
        (wrong_libraries, "cli.py", "import uvicorn", "imports uvicorn"),
        (wrong_libraries, "store/a.py", "from http.server import HTTPServer", "http.server"),
        (wrong_libraries, "store/a.py", "import pickle", "imports pickle"),
        (wrong_libraries, "model/a.py", "from torch import load", "torch.load"),
        (wrong_libraries, "serving/a.py", "import multiprocessing.pool", "multiprocessing.pool"),
        (unsafe_code, "model/a.py", "torch.load(path)", "calls torch.load"),
        (unsafe_code, "model/a.py", "eval('1')", "calls eval"),
        (unsafe_code, "model/a.py", "exec('1')", "calls exec"),
        (unsafe_code, "store/a.py", "subprocess.run('ls', shell=True)", "says shell=True"),
        (unsafe_code, "tokens/a.py", "np.load(path, allow_pickle=True)", "allow_pickle=True"),
        (unsafe_code, "store/a.py", "try:\n f()\nexcept:\n g()", "catches everything"),
        (unsafe_code, "training/loop.py", "torch.distributed.barrier()", "torch.distributed"),
        (unsafe_code, "store/a.py", "def f():\n print(1)", "a.py:3 prints"),
        (unsafe_code, "store/a.py", "os.environ['A']", "reads the environment"),
        (long_files, "store/a.py", "\n" * 400, "401 lines"),
        (missing_docstrings, "store/a.py", "def verb(): ...", "verb has no docstring"),
        (missing_docstrings, "store/a.py", "async def verb(): ...", "verb has no docstring"),
        (missing_docstrings, "a.py", "class A:\n '''A.'''\n def b(self): ...", "b has no"),
        (unfinished_notes, "store/a.py", "# TO" + "DO: more", "store/a.py:2"),
        (missing_tests, "store/a.py", "", "store/test_a.py"),
        (personal_paths, "store/a.py", "PATH = '/" + "home/me/data'", "store/a.py:2"),
    ],
)
def test_a_planted_breach_is_found(
    tmp_path: Path, rule: Callable[[Path], list[str]], path: str, code: str, complaint: str
) -> None:
    planted = tmp_path / "src" / "lmloop" / path
    planted.parent.mkdir(parents=True)
    planted.write_text(GOOD + code)
    found = rule(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


def test_what_is_allowed_is_not_complained_about(tmp_path: Path) -> None:
    source = tmp_path / "src" / "lmloop"
    files = {
        "cli.py": "from lmloop import api\nimport lmloop\nprint(1)",
        "compression/a.py": "from lmloop.training.loop import train",
        "training/parallel.py": "import torch.distributed",
        "training/a.py": "from .loop import b\nfrom lmloop.inference import load\nmodel.eval()",
        "corpus/engine.py": "import daft",
        "corpus/pictures.py": "import daft",
        "serving/a.py": "import socket\nre.compile('a')",
        "config.py": "os.environ['A']",
    }
    for name, code in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(GOOD + code)
    for rule in (wrong_directions, wrong_libraries, unsafe_code, long_files, missing_docstrings):
        assert rule(tmp_path) == []


def test_a_readme_that_differs_from_the_disk_is_found(tmp_path: Path) -> None:
    for name in ("errors.py", "store/__init__.py", "store/artifact.py", "serving/web/chat.js"):
        path = tmp_path / "src" / "lmloop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    tree = (
        "# Title\n\n```\nother\n```\n\n```\nsrc/lmloop/\n  errors.py  what can go wrong\n"
        "  store/\n    artifact.py  folders\n  serving/\n    web/\n      chat.js  the page\n```\n"
    )
    page = tmp_path / "README.md"
    page.write_text(tree)
    assert tree_differences(tmp_path, "README.md") == []
    page.write_text(tree.replace("artifact.py  folders", "registry.py"))
    assert tree_differences(tmp_path, "README.md") == [
        "README.md lacks store/artifact.py",
        "README.md names store/registry.py, which is not there",
        "README.md does not say what store/registry.py is",
    ]


def test_the_public_names_are_sorted_and_can_be_imported() -> None:
    package = importlib.import_module("lmloop")
    assert package.__all__ == sorted(set(package.__all__))
    missing = [name for name in package.__all__ if not callable(getattr(package, name))]
    assert missing == []


@pytest.mark.parametrize("name", ["lmloop", "lmloop.cli", "lmloop.serving.app"])
def test_an_import_does_not_import_torch(name: str) -> None:
    code = (
        f"import {name}, sys; print(sorted({{'torch', 'daft', 'transformers'}} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
