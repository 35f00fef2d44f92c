"""Who may import whom: ops < models < tasks and data < convert < training < export < cli."""

import ast
import functools
import pathlib
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rmt_jax"

LAYERS = {
    "version": -1,
    "ops": 0,
    "models": 1,
    "tasks": 2,
    "data": 2,
    "convert": 3,
    "": 4,
    "training": 4,
    "export": 5,
    "demo": 5,
    "cli": 6,
}

# Packages that only one part may import, at any level of nesting.
RESERVED = {
    "optax": {"training"},
    "orbax": {"training", "convert"},
    "tensorstore": {"convert"},
    "cv2": {"data"},
    "pycocotools": {"data", "tasks"},
    "torch": {"convert"},
    "safetensors": {"convert"},
    "huggingface_hub": {"convert"},
    "gradio": {"demo"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "argparse": {"cli", "convert"},  # in convert it is a class in upstream's files
}


class Import(NamedTuple):
    """One imported module, and whether the import runs when the file is imported."""

    module: str
    at_module_level: bool


def files(part: str = "") -> list[pathlib.Path]:
    """Python files of one part of the package (a folder or a file), or of all."""
    if (PACKAGE / f"{part}.py").exists():
        return [PACKAGE / f"{part}.py"]
    return sorted((PACKAGE / part).rglob("*.py"))


def part_of(module: str) -> str:
    """rmt_jax.models.rmt -> models; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def module_of(file: pathlib.Path) -> str:
    names = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports(source: str) -> list[Import]:
    """Every import of a source, also those inside functions. `from a import b` counts as a.b."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what they import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [Import(name, id(node) not in inside) for name in names]
    return found


@functools.cache
def imports_of(file: pathlib.Path) -> list[Import]:
    return imports(file.read_text())


def ours(file: pathlib.Path) -> list[str]:
    return [i.module for i in imports_of(file) if i.module.split(".")[0] == "rmt_jax"]


def allowed(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if LAYERS[importer] == LAYERS[imported] == 2:
        return False  # data and tasks do not know each other
    return LAYERS[imported] <= LAYERS[importer]


def name(file: pathlib.Path) -> str:
    return str(file.relative_to(ROOT))


def attributes(source: str) -> set[str]:
    """Dotted names that a source uses, such as jax.jit, and those it imports."""
    used = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return used | {i.module for i in imports(source)}


def test_every_part_of_the_package_has_its_layer() -> None:
    parts = {file.stem if file.parent == PACKAGE else file.relative_to(PACKAGE).parts[0] for file in files()}
    assert parts - {"__init__"} <= LAYERS.keys()
    assert {"ops", "models", "tasks", "data", "training", "convert"} <= parts  # the walk finds the files


@pytest.mark.parametrize("file", files(), ids=name)
def test_a_file_imports_its_own_and_lower_layers_only(file: pathlib.Path) -> None:
    importer = part_of(module_of(file))
    assert [module for module in ours(file) if not allowed(importer, part_of(module))] == []


@pytest.mark.parametrize("file", files("ops"), ids=name)
def test_ops_import_jax_only(file: pathlib.Path) -> None:
    outside = {i.module.split(".")[0] for i in imports_of(file)} - set(sys.stdlib_module_names)
    assert outside <= {"jax", "jaxtyping", "numpy", "rmt_jax"}


@pytest.mark.parametrize("file", files("data"), ids=name)
def test_data_knows_neither_jax_nor_models(file: pathlib.Path) -> None:
    roots = {i.module.split(".")[0] for i in imports_of(file)}
    assert not roots & {"jax", "flax", "jaxtyping", "optax", "orbax", "tensorstore"}
    assert {part_of(module) for module in ours(file)} <= {"data", "version"}


@pytest.mark.parametrize("file", files(), ids=name)
def test_torch_is_imported_inside_functions_only(file: pathlib.Path) -> None:
    assert [i for i in imports_of(file) if i.module.split(".")[0] == "torch" and i.at_module_level] == []


@pytest.mark.parametrize("package", RESERVED)
def test_package_is_imported_by_its_parts_only(package: str) -> None:
    importers = {
        part_of(module_of(file)) for file in files() if any(i.module.split(".")[0] == package for i in imports_of(file))
    }
    assert importers <= RESERVED[package]


def test_compilation_and_meshes_are_in_training_only() -> None:
    """But for forward passes that are written or verified, and what all blocks trace once."""
    reserved = {
        "jax.jit",
        "jax.pmap",
        "jax.shard_map",
        "jax.make_mesh",
        "jax.sharding.Mesh",
        "jax.sharding.NamedSharding",
    }
    reserved |= {"nnx.jit", "nnx.pmap"}
    users = {module_of(file) for file in files() if attributes(file.read_text()) & reserved}
    others = {"rmt_jax.convert.verify", "rmt_jax.ops.manhattan", "rmt_jax.ops.feed_forward"}
    others |= {"rmt_jax.models.block_loop"}
    others |= {"rmt_jax.demo.looking", "rmt_jax.export.check", "rmt_jax.export.files"}
    assert {part_of(module) for module in users - others} == {"training"}


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=name)
def test_configs_are_pure_data(file: pathlib.Path) -> None:
    outside = {i.module.split(".")[0] for i in imports_of(file)} - set(sys.stdlib_module_names)
    assert outside <= {"ml_collections", "configs"}


@pytest.mark.parametrize(
    ("importer", "imported", "verdict"),
    [
        ("models", "ops", True),
        ("ops", "models", False),
        ("models", "models", True),
        ("tasks", "data", False),
        ("data", "tasks", False),
        ("tasks", "training", False),
        ("training", "data", True),
        ("training", "convert", True),
        ("convert", "training", False),
        ("models", "convert", False),
        ("models", "", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, verdict: bool) -> None:
    assert allowed(importer, imported) is verdict


def test_imports_inside_functions_are_seen() -> None:
    source = "import jax\ndef f():\n    from rmt_jax.data import x\n    import torch.nn\n"
    assert imports(source) == [
        Import("jax", True),
        Import("rmt_jax.data.x", False),
        Import("torch.nn", False),
    ]


def test_uses_of_jit_are_seen() -> None:
    assert "jax.jit" in attributes("@jax.jit\ndef f(x): ...")
    assert "jax.jit" in attributes("from jax import jit")
    assert "jax.sharding.Mesh" in attributes("from jax.sharding import Mesh")
