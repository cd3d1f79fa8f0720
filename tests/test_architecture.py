"""The rules that keep the parts apart, read from the source of every file, not from memory.

`core` knows nothing of the shell; `studio` may use `core`; `pages` may use both and nobody imports a page.
What the server imports stays free of torch. No file starts a shell, unpickles, or runs a model's own code.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("core", "studio", "pages")
HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "deepspeed", "accelerate"}
FORBIDDEN = {
    "core": {"streamlit", "studio", "pages"},
    "studio": {"pages", "subprocess", "multiprocessing"} | HEAVY,
    "pages": {"pages", "subprocess", "multiprocessing"} | HEAVY,
}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SHELLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}
BY_NAME = {"importlib.import_module", "import_module", "__import__"}

SOURCES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def name_of(path: Path) -> str:
    """core/jobs/__init__.py -> core.jobs"""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(path: Path, node: ast.AST) -> list[str]:
    """Absolute names that one import statement, or one `import_module("...")`, may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        package = name_of(path).split(".")
        if path.name != "__init__.py":
            package = package[:-1]
        base = [*package[: len(package) - node.level + 1]] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and dotted(node.func) in BY_NAME:
        constants = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        return [value for value in constants if isinstance(value, str)]
    return []


def module_level_nodes(path: Path) -> list[ast.AST]:
    """The nodes that run on import: not in a function, not under `if TYPE_CHECKING`."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        found.append(node)
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.If) and dotted(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            children = list(node.orelse)
        for child in children:
            visit(child)

    visit(tree_of(path))
    return found


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := dotted(node.value)):
        return f"{left}.{node.attr}"
    return ""


def top(name: str) -> str:
    return name.split(".")[0]


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def keyword_is(call: ast.Call, name: str, value: object) -> bool:
    return any(k.arg == name and is_constant(k.value, value) for k in call.keywords)


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def test_every_file_is_seen() -> None:
    """A rule over a list of files is worth what the list is: compare it with git's."""
    assert len(SOURCES) >= 12
    assert {part_of(path) for path in SOURCES} >= {"core", "studio"}
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")
    known = {ROOT / name for name in listed if name.endswith(".py") and (ROOT / name).exists()}
    assert set(SOURCES) == known


def test_imports_go_one_way() -> None:
    offences = [
        f"{where(path, node)} imports {name}"
        for path in SOURCES for node in ast.walk(tree_of(path)) for name in imported_names(path, node)
        if top(name) in FORBIDDEN[part_of(path)]
    ]
    assert offences == []


def test_workers_alone_import_heavy_libraries_at_module_level() -> None:
    """A module that loads torch when it is imported is a worker, and so is one that loads a worker."""
    loads = {
        name_of(path): {name for node in module_level_nodes(path) for name in imported_names(path, node)}
        for path in SOURCES
    }
    workers = {module for module, names in loads.items() if any(top(name) in HEAVY for name in names)}
    while grown := {module for module, names in loads.items() if names & workers} - workers:
        workers |= grown
    assert all(top(module) == "core" for module in workers), workers
    packages = {name_of(path) for path in SOURCES if path.name == "__init__.py"}
    assert workers & packages == set(), "a package that loads torch makes every module inside it heavy"
    assert workers & {"core.errors", "core.words", "core.workspace"} == set()


def test_what_the_server_imports_is_free_of_torch() -> None:
    """Load it all in a fresh process: every module of studio, and whatever app.py and the pages load."""
    scripts = [path for path in SOURCES if part_of(path) == "pages" or path == ROOT / "studio" / "app.py"]
    modules = {name_of(path) for path in SOURCES if part_of(path) == "studio" and path not in scripts}
    known = {name_of(path) for path in SOURCES}
    for path in scripts:  # a script draws when it is imported: load what it loads instead
        modules |= {n for node in module_level_nodes(path) for n in imported_names(path, node) if n in known}
    assert len(modules) >= 3
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "print(*sorted(set(sys.argv[1].split(',')) & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, ",".join(HEAVY), "streamlit", *sorted(modules)],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"loaded with {sorted(modules)}"


def test_no_command_waits_for_streamlit() -> None:
    """What `sweetspot` loads before it knows which command was asked for; only the server's process draws."""
    paths = {name_of(path): path for path in SOURCES}
    loaded, following = set(), ["studio.cli"]
    while following:
        name = following.pop()
        if name not in loaded:
            loaded.add(name)
            following += [n for node in module_level_nodes(paths[name]) for n in imported_names(paths[name], node)] if name in paths else []
    assert {"studio.commands.share", "studio.launch", "typer"} <= loaded
    assert "streamlit" not in {top(name) for name in loaded}


# XTuner's checkpoints are pickles: this one file reads them, with an allow-list; tests/core/test_convert_xtuner.py attacks it.
READS_PICKLES = ROOT / "core" / "convert" / "pickles.py"


def test_the_one_reader_of_pickles_has_an_allow_list() -> None:
    tree = tree_of(READS_PICKLES)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(b) for b in node.bases)]
    assert [[f.name for f in node.body if isinstance(f, ast.FunctionDef)] for node in classes] == [["find_class"]]
    given = {ast.unparse(node.value) for node in ast.walk(classes[0]) if isinstance(node, ast.Return) and node.value}
    assert given == {"_ALLOWED[module, name]", "Placeholder"}, "a name of the file becomes an object of the list, or nothing"
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pickle.load", "pickle.loads")]


def test_no_shell_no_pickle_no_foreign_code() -> None:
    offences = []
    for path in SOURCES:
        if path == READS_PICKLES:
            continue
        names = {name for node in ast.walk(tree_of(path)) for name in imported_names(path, node)}
        offences += [f"{path.relative_to(ROOT)} imports {name}" for name in names if top(name) in UNPICKLERS]
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and (fault := fault_of(node, reads_yaml="yaml" in names)):
                offences.append(f"{where(path, node)} {fault}")
            if isinstance(node, ast.Dict) and any(
                is_constant(key, "trust_remote_code") and not is_constant(value, False)
                for key, value in zip(node.keys, node.values, strict=True)
            ):
                offences.append(f"{where(path, node)} trust_remote_code in a dict")
    assert offences == []


def fault_of(call: ast.Call, reads_yaml: bool) -> str:
    """What is wrong with a call, or nothing."""
    name = dotted(call.func)
    words = {k.arg for k in call.keywords}
    if "shell" in words and not keyword_is(call, "shell", False):
        return "starts a shell"
    if name in SHELLS:
        return f"starts a shell by {name}"
    if "trust_remote_code" in words and not keyword_is(call, "trust_remote_code", False):
        return "may run code that came with a model"
    if re.search(r"(^|\.)Auto\w*\.from_(pretrained|config)$", name) and "trust_remote_code" not in words:
        return "asks whoever sits at a terminal whether to run code that came with a model"
    if "allow_pickle" in words and not keyword_is(call, "allow_pickle", False):
        return "may unpickle"
    if name == "torch.load" and not keyword_is(call, "weights_only", True):
        return "torch.load without weights_only=True"
    if name in {"eval", "exec"}:
        return f"runs text as code by {name}"
    if reads_yaml and name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
        return f"{name} where yaml.safe_load would do"
    return ""


@pytest.mark.parametrize("source", [
    "subprocess.run('ls', shell=True)", "os.system('ls')", "f(trust_remote_code=flag)", "torch.load(path)",
    "AutoModel.from_pretrained(folder)",
    "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "eval('1')",
    "yaml.load(text)",
])
def test_the_rules_see_each_fault(source: str) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert fault_of(call, reads_yaml=True)


@pytest.mark.parametrize("source", [
    "subprocess.run(['ls'], shell=False)", "model.eval()", "torch.load(path, weights_only=True)",
    "yaml.safe_load(text)",
])
def test_the_rules_let_the_right_form_pass(source: str) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert not fault_of(call, reads_yaml=True)
