"""The public door, the floors the modules stand on, and what importing costs."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import mnist_jax

PACKAGE = Path(mnist_jax.__file__).parent
FLOORS = [
    {"errors"},
    {
        "augment",
        "calibration",
        "command",
        "config",
        "conv",
        "data",
        "interrupt",
        "picture",
        "preprocess",
        "progress",
        "state",
    },
    {"adversarial", "checkpoint", "models", "optim", "html_report", "report", "search", "workdir"},
    {"build", "runs", "step"},
    {"evaluation", "onnx_graph", "per_example", "pieces", "predict", "weights"},
    {"evaluate", "export", "population"},
    {"sweep", "train"},
    {"demo"},
    {"cli"},
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}


def test_all_is_what_the_stub_imports():
    imports = [
        node for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body if isinstance(node, ast.ImportFrom)
    ]
    names = [alias.name for node in imports for alias in node.names]
    assert sorted(mnist_jax.__all__) == sorted(names)


@pytest.mark.parametrize("name", mnist_jax.__all__)
def test_each_public_name_has_a_docstring_with_an_example(name):
    documentation = inspect.getdoc(getattr(mnist_jax, name))
    assert ">>> " in documentation or "Example:\n    See :func:`fit`." in documentation


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No mnist_jax attribute nonsense"):
        mnist_jax.nonsense  # noqa: B018


def test_version_is_that_of_the_metadata():
    assert mnist_jax.__version__ == importlib.metadata.version("mnist_jax")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mnist_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mnist_jax."))


def test_each_module_imports_only_from_the_floors_below():
    modules = {path: path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert {name for name in modules.values() if name != "__init__"} == set(FLOOR_OF)
    for path, module in modules.items():
        for imported in imported_modules(path):
            inside = imported == module  # data/ and demo/
            assert inside or FLOOR_OF[imported] < FLOOR_OF.get(module, len(FLOORS)), f"{path.name} imports {imported}"


def test_importing_the_package_loads_nothing_heavy(run_python):
    heavy = ["jax", "orbax", "tensorflow_datasets", "matplotlib", "sklearn"]
    done = run_python("-c", f"import mnist_jax, sys; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


def test_using_a_step_does_not_load_what_only_fit_needs(run_python):
    heavy = ["orbax", "tensorflow_datasets", "matplotlib", "sklearn", "tyro"]
    code = f"import sys\nfrom mnist_jax import *\nprint([name for name in {heavy} if name in sys.modules])"
    code = code.replace("import *", "import MLP, create_train_state, evaluate_dataset, load_dataset, train_step")
    assert run_python("-c", code).stdout == "[]\n"


def test_tensorflow_is_never_imported(run_python, tmp_path, idx_dir):
    """Everything that touches tensorflow-datasets or TensorBoard, with a tensorflow that confesses its import."""
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("print('TENSORFLOW IMPORTED')\n")
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
assert "tensorflow_datasets" in sys.modules and "tensorboardX" in sys.modules
print("tensorflow" in sys.modules)
"""
    done = run_python("-c", code, PYTHONPATH=str(trap.parent))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "TENSORFLOW IMPORTED" not in done.stdout
