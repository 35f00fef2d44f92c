"""The command `rmt`: its help, flags, exit codes and streams, and what a shell completes."""

import argparse
import gc
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import get_args

import pytest

import rmt_jax
from rmt_jax import __version__
from rmt_jax.cli import compile, convert, data, main
from rmt_jax.cli.main import COMMANDS, SUMMARIES, build_parser
from rmt_jax.data.imagenet_writer import SPLITS
from rmt_jax.models import Remat
from rmt_jax.models.variants import AuxTap

HEAVY = ("jax", "flax", "matplotlib", "numpy", "cv2", "torch", "grain", "orbax")


def parsers(parser: argparse.ArgumentParser, words: str = "rmt") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(words, parser) of every command and what is below it."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield from parsers(subparser, f"{words} {name}")


ALL = dict(parsers(build_parser()))


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, **options)


def test_models_prints_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--image-size", "384"]) == 0
    out = capsys.readouterr().out
    assert "26,967,240" in out
    assert "14.642 G" in out
    assert "rmt_l_star" in out


def test_models_prints_every_segmentor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--task", "segmentation"]) == 0
    out = capsys.readouterr().out
    assert "FLOPs @512" in out
    for row in ("rmt_t semantic_fpn 17,034,038 33.632 G", "rmt_l upernet 125,558,276"):
        assert row in " ".join(out.split())
    assert "_star" not in out
    assert main(["models", "--image-size", "0"]) == 2


@pytest.mark.slow
def test_models_prints_every_detector(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--task", "detection"]) == 0
    out = capsys.readouterr().out
    assert "FLOPs @1280x800" in out
    for row in ("rmt_t retinanet 23,017,364 199.123 G", "rmt_b cascade_mask_rcnn 110,619,578 850.793 G"):
        assert row in " ".join(out.split())
    assert "_star" not in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rmt_jax {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """The help itself, and the parsers of all commands, whose help and completion are as quick."""
    shown = python(
        "import sys, rmt_jax\n"
        "from rmt_jax.cli.main import build_parser, main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print('IMPORTED', [name for name in {(*HEAVY, 'rich')} if name in sys.modules])\n"
        "build_parser()\n"
        f"print('IMPORTED', [name for name in {HEAVY} if name in sys.modules])\n"
    ).stdout
    assert "predict" in shown
    assert re.findall("IMPORTED .*", shown) == ["IMPORTED []", "IMPORTED []"]


def test_names_of_the_package_come_when_they_are_asked_for() -> None:
    said = python(
        "import sys, rmt_jax\n"
        "assert set(rmt_jax.__all__) < set(dir(rmt_jax))\n"
        "assert 'jax' not in sys.modules\n"
        "print(rmt_jax.create_model.__module__, rmt_jax.models.variant('rmt_t').depths, rmt_jax.convert.__name__)\n"
        "from rmt_jax import *\n"
        "print(list_models()[0], load_pretrained.__name__)\n"
    ).stdout
    assert said.splitlines() == [
        "rmt_jax.models.factory (2, 2, 8, 2) rmt_jax.convert",
        "rmt_t load_pretrained",
    ]
    with pytest.raises(AttributeError, match="module 'rmt_jax' has no attribute 'load_pretraned'"):
        rmt_jax.load_pretraned  # noqa: B018


def test_the_help_lists_every_command_once_under_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr().out
    for title, commands in COMMANDS.items():
        assert f"\n{title}:\n" in shown
        for name, summary in commands.items():
            assert shown.count(f"  {name:9}  {summary}\n") == 1
    assert max(map(len, shown.splitlines())) <= 120
    assert "positional" not in shown
    assert list(SUMMARIES) == [words.split()[1] for words in ALL if words.count(" ") == 1]


@pytest.mark.parametrize("words", [words for words in ALL if words != "rmt"])
def test_every_command_has_an_example(words: str) -> None:
    assert re.search(rf"^  (\w+=\S+ )?{words} .*\S", ALL[words].description or "", re.MULTILINE)


def test_a_flag_is_the_same_wherever_it_is() -> None:
    """Its metavar, type and choices."""
    # --output is a folder where a command writes several files, --image-size two numbers where not only squares do.
    different = {"--output", "--model", "--remat", "--image-size"}
    kinds: dict[str, set[object]] = {}
    for parser in ALL.values():
        for action in parser._actions:
            for flag in action.option_strings:
                choices = None if action.choices is None else tuple(action.choices)
                kinds.setdefault(flag, set()).add((action.metavar, action.type, choices, action.nargs))
    assert {flag for flag, found in kinds.items() if len(found) > 1} <= different
    assert {"--json", "--quiet", "--batch-size", "--dtype", "--output", "--config"} <= kinds.keys()


def test_choices_are_those_of_the_modules_that_are_imported_later() -> None:
    assert get_args(AuxTap) == convert.AUX_TAPS
    assert get_args(Remat) == compile.POLICIES
    assert tuple(SPLITS) == data.SPLITS


@pytest.mark.parametrize("words", [[], ["train"], ["convert", "x.pth", "y", "--weights=best"], ["models", "x"]])
def test_words_that_are_not_understood(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    out, error = capsys.readouterr()
    assert "error:" in error
    assert out == ""


def test_the_nearest_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predicts", "x"])
    assert "there is no command 'predicts'. Did you mean 'predict'? Commands: models, " in capsys.readouterr().err


def test_values_that_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--image-size", "16"]) == 2
    assert capsys.readouterr().err == "error: --image-size 16: the models take 32 pixels or more.\n"
    assert main(["models", "--json", "nowhere/models.json"]) == 2
    assert "error: --json=nowhere/models.json: give the name of a file in a dir" in capsys.readouterr().err
    assert main(["predict", "x", "y", "--json", "-", "--csv", "-"]) == 2
    assert "--json - and --csv -: only one of them can go to standard output" in capsys.readouterr().err


def test_json_to_a_file_and_to_standard_output(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmt_jax.models.list_models", lambda: ["rmt_nano"])
    assert main(["models", "--json", "-"]) == 0
    alone, table = capsys.readouterr()
    assert "791,228" in table
    assert main(["models", "--json", str(tmp_path / "models.json")]) == 0
    assert capsys.readouterr() == (table, "")
    models = json.loads(alone)
    assert models == json.loads((tmp_path / "models.json").read_text())
    assert [(model["model"], model["parameters"]) for model in models] == [("rmt_nano", 791_228)]


def test_a_reader_that_has_seen_enough() -> None:
    """As `rmt models | head -1`, but sure to close its end before anything is written."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for words in (["--help"], ["models"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "rmt_jax.cli", *words]
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def on_a_terminal(code: str, environment: dict[str, str], **streams: int) -> tuple[bytes, bytes | None]:
    """(what a program shows on a real terminal, what it writes to a pipe where standard output is one)."""
    ours, theirs = pty.openpty()
    environment |= {"TERM": "xterm-256color"}
    streams = {"stdout": theirs, "stderr": theirs} | streams
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **streams) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # how a terminal whose other end is closed ends
            pass
        written = None if process.stdout is None else process.stdout.read()
        assert process.wait() == 0
    os.close(ours)
    return shown, written


PLAIN = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}


@pytest.mark.parametrize(("variable", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color(variable: dict[str, str], coloured: bool) -> None:
    """Tables and the bar of progress, on a real terminal."""
    code = (
        "from rich.table import Table\n"
        "from rmt_jax.cli.output import Console, counting\n"
        "table = Table('model'); table.add_row('[cyan]rmt_t[/cyan]'); Console().print(table)\n"
        "with counting('reading', 3) as advance: [advance(1) for _ in range(3)]\n"
    )
    shown, _ = on_a_terminal(code, PLAIN | variable)
    assert b"rmt_t" in shown
    assert "━".encode() in shown
    colours = re.findall(rb"\x1b\[(?:[\d;]*;)?(?:3|4|9|10)[0-8](?:;[\d;]*)?m", shown)
    assert bool(colours) is coloured


def test_results_go_to_the_pipe_and_progress_to_the_terminal() -> None:
    code = (
        "from rmt_jax.cli.output import counting, say\n"
        "with counting('reading', 2) as advance: [(say('found'), say('skipped', stderr=True)) for _ in range(2)]\n"
    )
    shown, written = on_a_terminal(code, PLAIN, stdout=subprocess.PIPE)
    assert written == b"found\nfound\n"
    assert shown.count(b"skipped") == 2
    assert b"found" not in shown


COMPLETED = {
    "rmt pre": "predict",
    "rmt benchmark ": "model train compile input",
    "rmt predict --b": "--batch-size",
    "rmt predict w --dtype b": "bfloat16",
    "rmt benchmark model rmt_s": "rmt_s rmt_s_star",
    "rmt convert --model rmt_n": "rmt_nano",
    "rmt predict weights ca": "cat.jpg cats",
    "rmt features weights cat.jpg --output ca": "cat.jpg cats",
    "rmt data check --data-dir c": "cats",
}


def test_bash_completes_commands_flags_models_and_files(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", "bash"])
    (tmp_path / "cat.jpg").touch()
    (tmp_path / "cats").mkdir()
    lines = [
        # What bash does when TAB is pressed at the end of a line.
        'complete_line() { COMP_WORDS=($1); [[ $1 == *" " ]] && COMP_WORDS+=("")',
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _shtab_rmt",
        "sorted=$(printf '%s\\n' \"${COMPREPLY[@]}\"); echo $sorted; }",
        *(f"complete_line '{line}'" for line in COMPLETED),
    ]
    script = capsys.readouterr().out + "\n".join(lines)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = dict(zip(COMPLETED, map(str.split, done.stdout.splitlines()), strict=True))
    assert {line: sorted(words) for line, words in found.items()} == {
        line: sorted(words.split()) for line, words in COMPLETED.items()
    }


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script_as_well(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert "predict" in script
    assert "rmt_nano" in script


def test_sigterm_in_a_callback_that_loses_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped_while_collecting_garbage(phase: str, _: object) -> None:
        if phase == "start":
            signal.raise_signal(signal.SIGTERM)

    def work(*_: object) -> None:
        gc.callbacks.append(stopped_while_collecting_garbage)
        gc.collect()
        gc.callbacks.remove(stopped_while_collecting_garbage)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr("rmt_jax.cli.models.print_models", work)
    with pytest.raises(SystemExit, match="143"):
        main(["models"])


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rmt_jax.cli.models.print_models", interrupted)
    assert main(["models"]) == 130
    assert "interrupted" in capsys.readouterr().err
