"""`rmt plot curves | confusion | throughput`: what runs and measurements left behind."""

import argparse
import pathlib

from rmt_jax.cli.plot_output import add_output, check_figure

CURVES_DESCRIPTION = """\
Draws loss, validation metric (raw weights and their moving average), learning rate and speed of training runs: of one
the picture that the run writes itself, of several all of them together, with their names.

  rmt plot curves workdir/digits
  rmt plot curves workdir/lr_1e-3 workdir/lr_3e-3 --output rates.svg
"""
CONFUSION_DESCRIPTION = """\
Draws which classes are taken for which, from the confusion.npz that an evaluation of a classifier or segmentor leaves
in its workdir. Up to 50 classes the whole matrix; with more the pairs that are confused most, the classes that fare
worst, and accuracy, precision and size of all.

  rmt plot confusion workdir/digits
  rmt plot confusion workdir/ade20k --output confusion.pdf
"""
THROUGHPUT_DESCRIPTION = """\
Draws pictures a second and milliseconds a batch from what rmt benchmark model, or train, wrote with --json: medians of
the rounds as bars, the fastest and the slowest round as whiskers.

  rmt benchmark model rmt_t --vs torch --json rmt_t.json
  rmt benchmark model rmt_s --vs torch --json rmt_s.json
  rmt plot throughput rmt_t.json rmt_s.json
"""


def add_parsers(plots: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three subcommands."""
    curves = plots.add_parser(
        "curves",
        help="training curves of one or several runs",
        description=CURVES_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    curves.add_argument("workdirs", metavar="WORKDIR", nargs="+", type=pathlib.Path)
    add_output(curves, "curves.png")
    curves.set_defaults(run=_run_curves)

    confusion = plots.add_parser(
        "confusion",
        help="which classes are taken for which",
        description=CONFUSION_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    confusion.add_argument("workdir", metavar="WORKDIR", type=pathlib.Path)
    add_output(confusion, "confusion.png")
    confusion.set_defaults(run=_run_confusion)

    throughput = plots.add_parser(
        "throughput",
        help="speed, from the JSON of rmt benchmark",
        description=THROUGHPUT_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    throughput.add_argument("files", metavar="FILE", nargs="+", type=pathlib.Path)
    add_output(throughput, "throughput.png")
    throughput.set_defaults(run=_run_throughput)


def _run_curves(options: argparse.Namespace) -> int:
    from rmt_jax.training.curves import draw_curves
    from rmt_jax.training.figures import save_figure
    from rmt_jax.training.metrics import read_metrics

    check_figure(options.output)
    runs = {}
    for name, workdir in _named(options.workdirs).items():
        path = workdir / "metrics.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}: expected the --workdir of a training run.")
        runs[name] = read_metrics(path)
    save_figure(draw_curves(runs), options.output)
    print(options.output)
    return 0


def _named(workdirs: list[pathlib.Path]) -> dict[str, pathlib.Path]:
    """By the last part of their paths, or by the paths as given where two of those are the same."""
    for names in ([workdir.resolve().name for workdir in workdirs], list(map(str, workdirs))):
        if len(set(names)) == len(workdirs):
            return dict(zip(names, workdirs, strict=True))
    raise ValueError("The same workdir is given twice.")


def _run_confusion(options: argparse.Namespace) -> int:
    from rmt_jax.training.confusion import draw_confusion, read_confusion
    from rmt_jax.training.figures import save_figure

    check_figure(options.output)
    save_figure(draw_confusion(read_confusion(options.workdir)), options.output)
    print(options.output)
    return 0


def _run_throughput(options: argparse.Namespace) -> int:
    from rmt_jax.training.figures import save_figure
    from rmt_jax.training.throughput_chart import draw_throughput, read_measurement

    check_figure(options.output)
    save_figure(draw_throughput([read_measurement(file) for file in options.files]), options.output)
    print(options.output)
    return 0
