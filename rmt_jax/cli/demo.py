"""`rmt demo`: a web page for trying a model."""

import argparse
import pathlib

from rmt_jax.cli.output import say
from rmt_jax.cli.pictures import add_weights, read_given_weights

DESCRIPTION = """\
Serves a web page for trying a model: pick or upload a picture, see its classes, its objects with boxes and masks, or
the class of every pixel; click on a position to see what it attends to. Ctrl-C ends it. Only this machine can reach the
page, unless --host says otherwise: 0.0.0.0 lets in whoever reaches this machine.

  rmt demo rmt_s/
  rmt demo workdir/coco --samples street.jpg garden.jpg --port 8000
  ssh -L 7860:127.0.0.1:7860 host      from another machine, then open http://127.0.0.1:7860 there

Needs gradio: pip install 'rmt-jax[demo]'
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "demo", help=summary, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_weights(parser)
    parser.add_argument(
        "--samples",
        type=pathlib.Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="pictures to pick from (default: scikit-learn's two photographs)",
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to serve on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.port is not None and not 0 < options.port < 2**16:
        raise ValueError(f"--port={options.port}: expected 1 to 65535.")
    if missing := [str(path) for path in options.samples if not path.is_file()]:
        raise FileNotFoundError(f"--samples: there is no file {', '.join(missing)}.")
    try:
        from rmt_jax.demo import build_page, serve
    except ModuleNotFoundError as error:
        raise ImportError(f"rmt demo needs {error.name}: pip install 'rmt-jax[demo]'") from error
    from rmt_jax.training.prediction import run_settings

    weights = read_given_weights(options)
    samples = options.samples or _photographs()
    page = build_page(weights, run_settings(options.source, weights), samples)
    serve(page, options.host, options.port, samples, ready=lambda url: say(f"{weights.name} on {url}, until Ctrl-C"))
    return 0


def _photographs() -> list[pathlib.Path]:
    """Those that scikit-learn ships."""
    import sklearn.datasets

    return sorted((pathlib.Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
