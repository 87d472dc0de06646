"""The public door, the levels the rooms stand on, and what importing costs."""

import ast
import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mnist_jax
from mnist_jax.cli.main import COMMANDS

PACKAGE = Path(mnist_jax.__file__).parent
ROOT = PACKAGE.parent
LEVELS = [
    {"atomic", "home", "jsonfile", "config", "errors", "presets"},
    {"data", "models"},
    {"core"},
    {"export", "pictures", "report"},
    {"training"},
    {"demo", "sweep"},
    {"cli"},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Rooms of which less is allowed than the levels below them, or something beside them.
ONLY = {
    "atomic": set(),
    "errors": set(),
    "home": set(),
    "jsonfile": set(),
    "config": {"mnist_jax.errors", "mnist_jax.jsonfile"},
    "presets": {"mnist_jax.config", "mnist_jax.errors"},
    "models": {"mnist_jax.errors", "mnist_jax.data.dataset"},
    "core": {"mnist_jax.errors", "mnist_jax.data.dataset", "mnist_jax.models.adapters", "mnist_jax.models.conv"},
}


def test_all_is_what_the_stub_imports():
    imports = [
        node for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body if isinstance(node, ast.ImportFrom)
    ]
    names = [alias.name for node in imports for alias in node.names]
    assert sorted(mnist_jax.__all__) == sorted(names)


def test_the_table_of_the_package_has_each_public_name_once_and_narrow_lines():
    rows = re.findall(r"^    (\w+)( {2,}\S.*)$", mnist_jax.__doc__, flags=re.MULTILINE)
    names, public = [name for name, _ in rows], set(mnist_jax.__all__)
    missing, unknown = sorted(public - set(names)), sorted(set(names) - public)
    repeated = sorted({name for name in names if names.count(name) > 1})
    assert not (missing or unknown or repeated), f"docstring of mnist_jax: {missing=}, {unknown=}, {repeated=}"
    assert [name for name, text in rows if len(f"        {name}{text}") > 100] == []  # as ``help`` indents it


@pytest.mark.parametrize("name", mnist_jax.__all__)
def test_each_public_name_has_a_docstring_with_an_example(name):
    documentation = inspect.getdoc(getattr(mnist_jax, name))
    assert ">>> " in documentation or "Example:\n    See :" in documentation


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No mnist_jax attribute nonsense"):
        mnist_jax.nonsense  # noqa: B018


def test_version_is_that_of_the_metadata():
    assert mnist_jax.__version__ == importlib.metadata.version("mnist_jax")


def imported_modules(path):
    """The modules that a file imports, those inside functions included; ``mnist_jax.X`` for a name of the door."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "mnist_jax":
                yield from (f"mnist_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name != "mnist_jax")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mnist_jax":
            yield f"mnist_jax.{node.attr}"


def room_of(module):
    """``data`` for ``mnist_jax.data.files``."""
    return module.split(".")[1]


def is_command(path):
    """Whether a file is what ``python -m`` runs; commands stand above all rooms."""
    is_top_level = path.parent == PACKAGE and path.stem in COMMANDS
    return is_top_level or path.name == "__main__.py" or path == PACKAGE / "data" / "write.py"


def files_in(*names):
    return sorted(path for name in names for path in (ROOT / name).rglob("*.py"))


LIBRARY = [path for path in files_in("mnist_jax") if path != PACKAGE / "__init__.py"]


def test_each_module_is_in_a_room_or_a_command():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in LIBRARY if not is_command(path)}
    assert rooms == set(LEVEL_OF)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_the_levels_below(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported_modules(path):
        if module.split(".")[0] != "mnist_jax" or module == "mnist_jax.__version__":
            continue
        assert room_of(module) in LEVEL_OF, f"{module} is a command or behind the door: nothing here imports it"
        assert not module.endswith("__main__"), f"{module} is a command: nothing here imports it"
        if is_command(path) or room_of(module) == room:
            continue
        if room in ONLY:
            assert module in ONLY[room]
        else:
            assert LEVEL_OF[room_of(module)] < LEVEL_OF[room], f"{room} imports {module}"


@pytest.mark.parametrize("path", files_in("mnist_jax/core"), ids=lambda path: path.name)
def test_core_stands_on_jax_flax_optax_and_numpy(path):
    found = {module.split(".")[0] for module in imported_modules(path)}
    assert found <= {"mnist_jax", "jax", "flax", "optax", "numpy"} | sys.stdlib_module_names


def test_one_module_imports_orbax():
    importing = [path for path in LIBRARY if any(name.split(".")[0] == "orbax" for name in imported_modules(path))]
    assert importing == [PACKAGE / "training" / "checkpoint.py"]


def test_nothing_imports_experiments_or_benchmarks():
    for path in LIBRARY:
        assert not {"experiments", "benchmarks"} & {name.split(".")[0] for name in imported_modules(path)}, path
    for path in files_in("experiments"):
        assert "benchmarks" not in {name.split(".")[0] for name in imported_modules(path)}, path
    for path in files_in("benchmarks"):
        assert "experiments" not in {name.split(".")[0] for name in imported_modules(path)}, path


@pytest.mark.parametrize("path", files_in("experiments", "benchmarks"), ids=lambda path: str(path.relative_to(ROOT)))
def test_experiments_and_benchmarks_come_through_the_front_door(path):
    others = {"mnist_jax.atomic", "mnist_jax.cli.flags", "mnist_jax.report.figures"}
    public = {f"mnist_jax.{name}" for name in (*mnist_jax.__all__, "__version__")}
    assert {name for name in imported_modules(path) if name.split(".")[0] == "mnist_jax"} <= public | others


def test_importing_the_package_loads_nothing_heavy(run_python):
    heavy = ["jax", "orbax", "tensorflow_datasets", "matplotlib", "sklearn"]
    done = run_python("-c", f"import mnist_jax, sys; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_using_a_step_does_not_load_what_only_fit_needs(run_python):
    heavy = ["orbax", "tensorflow_datasets", "matplotlib", "sklearn"]
    code = f"import sys\nfrom mnist_jax import *\nprint([name for name in {heavy} if name in sys.modules])"
    code = code.replace("import *", "import MLP, create_train_state, evaluate_dataset, load_dataset, train_step")
    assert run_python("-c", code).stdout == "[]\n"


@pytest.mark.slow
def test_tensorflow_and_pytorch_are_never_imported(run_python, tmp_path, idx_dir):
    """Everything that touches tensorflow-datasets or TensorBoard, with libraries that confess their import."""
    for name in ("tensorflow", "torch"):
        trap = tmp_path / "trap" / name
        trap.mkdir(parents=True)
        (trap / "__init__.py").write_text("print('TRAP IMPORTED')\n")
    code = f"""
import sys
from pathlib import Path
import mnist_jax
from mnist_jax.data.files import find_idx_files, read_idx_files
from mnist_jax.data.tfds import _decode, _prepare
arrays = read_idx_files(find_idx_files(Path({str(idx_dir)!r})))
_decode(_prepare("mnist", Path({str(tmp_path / "tfds")!r}), arrays))
run = mnist_jax.fit(mnist_jax.TrainConfig(data="digits", hidden_sizes=(4,), epochs=1, workdir="run", quiet=True))
mnist_jax.restore_checkpoint(run.workdir, run.state)
mnist_jax.per_example_losses(run.state, mnist_jax.load_dataset("digits").test)
assert "tensorflow_datasets" in sys.modules and "mnist_jax.report.tensorboardx" in sys.modules
print("tensorflow" in sys.modules or "torch" in sys.modules)
"""
    done = run_python("-c", code, PYTHONPATH=str(trap.parent))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "TRAP IMPORTED" not in done.stdout


def test_each_dependency_has_an_oldest_version_and_a_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [
        *project["dependencies"],
        *extras["demo"],
        *extras["export"],
        *extras["privacy"],
        *extras["stream"],
        *extras["tensorboard"],
    ]
    requirements = [Requirement(text) for text in texts]
    bounds = [[each for each in requirement.specifier if each.operator == ">="] for requirement in requirements]
    assert [len(bound) for bound in bounds] == [1] * len(requirements)
    section = (PACKAGE / "README.md").read_text().partition("## Dependencies")[2].partition("\n`pyproject")[0]
    listed = set(re.findall(r"[\w-]+", section))
    assert {requirement.name for requirement in requirements} <= listed
