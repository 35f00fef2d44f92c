"""What README.md, CONTRIBUTING.md and docs/ show is so: blocks of Python run, commands have the flags, names exist.

Python blocks of a page run one after the other, with `rmt_nano` and small pictures in the place of larger ones. What
cannot run here is marked in Markdown by a comment before the block that says what it needs, and then has its imports
tried only:

    <!-- needs: the authors' checkpoint -->

Lines of bash blocks are parsed by the program's own parsers, recipes and their keys included; a block after

    <!-- runs -->

is executed as well. A block of text right after one that runs is what it prints. Links and anchors are checked by
`mkdocs build --strict`.
"""

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import pathlib
import re
import shlex
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver

import main as program
from rmt_jax import cli
from rmt_jax.cli.main import build_parser, split_words
from rmt_jax.models import variant
from rmt_jax.training import parse
from rmt_jax.training.command_line import load_config
from rmt_jax.training.config import to_dict
from tests.pages import PAGES, ROOT, blocks, commands, inline_code, name, pages_with

WEIGHTS = ROOT / "notebooks" / "rmt_nano_digits.safetensors"

# Programs of others, whose words are not checked.
OTHERS = {"bash", "export", "hf", "mkdocs", "mypy", "onnx2tf", "pre-commit", "pytest", "ruff", "source"}
PATH = re.compile(r"^(configs|docs|launch|notebooks|rmt_jax|tests)/[\w./-]+\.\w+$")
NAME = re.compile(r"^rmt_jax(\.\w+)+$")
KEY = re.compile(r"(--config\.)?([a-z_]+(?:\.[a-z_]+)*)(?:=.*)?")  # with or without a value
FILES = (".py", ".md", ".json", ".safetensors")


def check_recipe(path: str, words: Sequence[str]) -> None:
    with contextlib.chdir(ROOT):
        parse(load_config(path, words))


def check_training(words: Sequence[str]) -> None:
    """Words after `python main.py`, by its own flags and the recipe's own keys."""
    with flagsaver.flagsaver():
        _, *rest = flags.FLAGS(["main.py", *words], known_only=True)
        check_recipe(program.CONFIG.value, rest)


def check_rmt(words: Sequence[str]) -> None:
    """Words after `rmt`, by its own parser; of recipes the keys too."""
    others, config_words = split_words(words)
    if words[-1] in ("--help", "--version"):
        return
    try:
        options, rest = build_parser().parse_known_args(others)
    except SystemExit:
        raise ValueError("the parser's message is on standard error") from None
    assert not rest
    if config := getattr(options, "config", None):
        check_recipe(str(config), config_words)


def check_install(words: Sequence[str]) -> None:
    """The extras of this package that are installed."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        match = re.fullmatch(r"(?:\.|rmt-jax)\[(.+)\]", word)
        assert match is None or set(match[1].split(",")) <= set(known), word


def check_command(words: list[str]) -> None:
    while words and re.match(r"^[A-Z_]+=", words[0]):
        words = words[1:]
    match words:
        case []:
            pass
        case ["python" | "python3", "main.py", *rest]:
            check_training(rest)
        case ["python", "-m", module, *_]:
            assert module in ("venv", "pytest") or importlib.util.find_spec(module) is not None, module
        case ["python", "-c", source]:
            compile(source, "python -c", "exec")
        case ["rmt", *rest]:
            check_rmt(rest)
        case ["pip", "install", *rest]:
            check_install(rest)
        case ["launch/restart.sh", _, *rest]:
            check_command(rest)
        case ["sbatch", _, script, *rest] | [script, *rest] if script.startswith("launch/"):
            assert (ROOT / script).is_file()
            check_training(rest)
        case [other, *_]:
            assert other in OTHERS, f"{other}: neither ours nor one of {sorted(OTHERS)}"


def smaller(source: str) -> str:
    """The same with a model and pictures that take seconds."""
    return re.sub(r'"rmt_[tsbl](_star)?"', '"rmt_nano"', source).replace("224, 224", "32, 32")


@pytest.fixture
def workplace(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder to run in with what pages speak of: the repository's folders, weights under the names of examples."""
    for folder in ("configs", "notebooks", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for weights in ("rmt_nano", "RMT-S.pth"):  # told by content
        shutil.copy(WEIGHTS, tmp_path / weights)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")  # tables are as wide
    return tmp_path


def lines(output: str) -> list[str]:
    """Without empty lines and spaces at ends of lines, which tables have."""
    return [line.rstrip() for line in output.splitlines() if line.strip()]


@pytest.mark.parametrize("page", pages_with(language="python"), ids=name)
def test_python_runs_and_prints_what_is_shown(
    page: pathlib.Path, workplace: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page):
        if block.language != "python":
            continue
        tree = ast.parse("\n" * (block.line - 1) + smaller(block.text))
        if block.mark:
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, name(page), "exec"), namespace)
        printed = capsys.readouterr().out
        assert not block.output or lines(printed) == lines(block.output)


@pytest.mark.parametrize("page", pages_with(mark="runs"), ids=name)
def test_marked_commands_run_and_print_what_is_shown(
    page: pathlib.Path, workplace: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(page):
        if block.mark != "runs":
            continue
        for words in commands(block.text):
            assert words[0] == "rmt", "only commands of ours can be marked"
            assert cli.main(words[1:]) == 0
        assert lines(capsys.readouterr().out) == lines(block.output)


@pytest.mark.parametrize("page", pages_with(language="bash"), ids=name)
def test_commands_have_the_flags_they_are_shown_with(page: pathlib.Path) -> None:
    for block in blocks(page):
        for words in commands(block.text) if block.language == "bash" else ():
            try:
                check_command(words)
            except (AssertionError, ValueError, flags.Error) as error:
                raise AssertionError(f"{name(page)}:{block.line}: {shlex.join(words)}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_in_the_text_exist(page: pathlib.Path) -> None:
    missing = []
    for code in inline_code(page):
        try:
            check_code(code)
        except (AssertionError, ValueError, LookupError, AttributeError, ImportError) as error:
            missing.append(f"{code}: {error}")
    assert missing == []


def check_code(code: str) -> None:
    """Code within a line: a path, a name of the package, a command with some of its flags, or a key."""
    words = code.split()
    if PATH.match(code):
        assert (ROOT / code).exists()
    elif NAME.match(code):
        resolve(code)
    elif words[0] == "rmt" and len(words) > 1:
        check_flags(words[1:])
    elif code.startswith("python -m tests."):
        assert importlib.util.find_spec(words[2]) is not None
    else:
        for word in words:
            check_key(word)


def check_key(word: str) -> None:
    """A word that looks like a key of the configuration: --config.seed, data.name=tar."""
    values: Mapping[str, Any] = to_dict(parse({}))
    match = KEY.fullmatch(word)
    if match is None or word.endswith(FILES):
        return
    option, path = match.groups()
    steps = path.split(".")
    attribute = steps[0] == "model" and "=" not in word  # of a model in Python
    if option is None and (len(steps) == 1 or steps[0] not in values or attribute):
        return
    for step in steps:
        assert step in values, f"there is no key {path}"
        values = dataclasses.asdict(variant("rmt_nano")) if step == "architecture" else values[step]


def resolve(dotted: str) -> object:
    """The module, or what it holds, of a dotted name."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(dotted)
    parent, _, attribute = dotted.rpartition(".")
    return getattr(resolve(parent), attribute)


def check_flags(words: Sequence[str]) -> None:
    """A command that is shown with some of its words: its subcommands and flags exist."""
    parser = build_parser()
    for word in words:
        # argparse has no public way to them.
        subcommands = parser._subparsers._group_actions[0].choices if parser._subparsers else {}
        if word.startswith("--config."):
            continue
        if word.startswith("--"):
            assert word.partition("=")[0] in parser._option_string_actions, word
        elif subcommands and not word.startswith("-"):
            parser = subcommands[word]


def test_functions_named_like_their_module_are_in_the_reference() -> None:
    """Griffe takes the name for the module; the page has to name the function."""
    for page in (ROOT / "docs" / "api").glob("*.md"):
        if page.stem == "index":
            continue
        package = importlib.import_module(f"rmt_jax.{page.stem}")
        modules = {path.stem for path in pathlib.Path(str(package.__file__)).parent.iterdir()}
        for public in modules.intersection(package.__all__):
            assert f"::: rmt_jax.{page.stem}.{public}.{public}\n" in page.read_text()


@pytest.mark.parametrize(
    "line",
    [
        "rmt convert --lists RMT-S.pth",
        "rmt converts RMT-S.pth",
        "rmt compile --config configs/rmt_s.py --topology v5e:2x2 --config.batchsize=3",
        "python main.py --config configs/rmt_x.py",
        "python main.py --configs configs/rmt_s.py",
        "python main.py --config configs/rmt_s.py --config.data.nam=folder",
        "python main.py --config configs/coco.py:rmt_s,head=mask_rcnn,schedule=2x",
        "python -m tests.nothing",
        "pip install -e '.[tpus]'",
        "launch/restart.sh workdir python main.py --mode=test",
        "rmtt models",
    ],
)
def test_mistakes_in_commands_are_seen(line: str) -> None:
    (words,) = commands(line)
    with pytest.raises((AssertionError, ValueError, flags.Error)):
        check_command(words)


@pytest.mark.parametrize(
    "code",
    [
        "rmt_jax/cli/mian.py",
        "rmt_jax.ops.nothing",
        "rmt compile --topolgy",
        "--config.sed=1",
        "data.nam=tar",
        "model.remats=full",
    ],
)
def test_mistakes_in_the_text_are_seen(code: str) -> None:
    with pytest.raises((AssertionError, ValueError, AttributeError)):
        check_code(code)


def test_every_fence_is_read() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.language for block in found} >= {"python", "bash", "text"}
    assert {block.language for block in found if block.mark == "runs"} == {"bash"}
    assert any(block.output.startswith("stride 4") for block in found)
