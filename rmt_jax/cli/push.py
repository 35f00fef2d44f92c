"""`rmt push`: weights to the Hugging Face hub."""

import argparse
import json
import pathlib
import tempfile

from rmt_jax.cli.output import say
from rmt_jax.cli.pictures import add_weights, read_given_weights

DESCRIPTION = """\
Uploads weights to the Hugging Face hub, from where rmt_jax.load_pretrained("USER/NAME") and every command read them.
One commit of three files:

  model.safetensors   the weights, with the authors' names, and what model it is
  config.json         what model it is: architecture, classes, preprocessing, where the weights come from
  README.md           the model card: the same for people, the recipe and the figures of a run, how to load it

WEIGHTS is whatever rmt_jax.load_pretrained takes; of the workdir of a run the card says most. A card that the
repository has already stays. Log in first: hf auth login.

  rmt push workdir/flowers somebody/rmt-t-flowers --license cc-by-4.0
  rmt push workdir/flowers somebody/rmt-t-flowers --dry-run look/    only writes the files
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "push",
        help=summary,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_weights(parser)
    parser.add_argument("name", metavar="USER/NAME", help="the repository, which is made where there is none")
    parser.add_argument("--license", metavar="ID", help="of the weights, as the hub names it, such as apache-2.0")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--replace-card", action="store_true", help="also a card that the repository has")
    parser.add_argument(
        "--dry-run", type=pathlib.Path, metavar="FOLDER", help="write the files to this new folder, and upload nothing"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from rmt_jax.convert.hub import check_can_push, check_name

    check_name(options.name)
    if options.dry_run is None:
        check_can_push()
        with tempfile.TemporaryDirectory() as folder:
            return _push(options, pathlib.Path(folder))
    if options.dry_run.exists():
        raise FileExistsError(f"--dry-run {options.dry_run} exists: give the name of a new folder.")
    options.dry_run.mkdir(parents=True)
    _write(options, options.dry_run)
    say(f"{options.name} would be these files of {options.dry_run}:")
    _list(options.dry_run)
    return 0


def _push(options: argparse.Namespace, folder: pathlib.Path) -> int:
    from rmt_jax.convert.hub import CARD_FILE, push_folder
    from rmt_jax.version import __version__

    described = _write(options, folder)
    message = options.message or f"{described}, uploaded by rmt_jax {__version__}"
    address, kept = push_folder(
        folder, options.name, message=message, private=options.private, replace_card=options.replace_card
    )
    say(f"{options.name}: {address}")
    if kept:
        say(f"  but for {CARD_FILE}: the repository's own was kept (--replace-card replaces it)")
    _list(folder)
    return 0


def _write(options: argparse.Namespace, folder: pathlib.Path) -> str:
    """Write all files; returns what the weights are."""
    from rmt_jax.convert import write_weights
    from rmt_jax.convert.hub import CARD_FILE, HUB_FILE
    from rmt_jax.convert.model_card import make_card, read_run

    weights = read_given_weights(options)
    run = read_run(pathlib.Path(options.source), weights)
    card = make_card(weights, options.name, run, options.license)
    write_weights(weights, folder / HUB_FILE)
    (folder / "config.json").write_text(json.dumps(weights.card(), indent=2) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return weights.describe()


def _list(folder: pathlib.Path) -> None:
    for path in sorted(folder.iterdir()):
        say(f"  {path.name}, {path.stat().st_size:,} bytes")
