"""`rmt data`: data sets that need preparation, and those that need a look."""

import argparse
import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rmt_jax.data import DataConfig, DetectionDataConfig, SegmentationDataConfig
from rmt_jax.data.imagenet import HOW_TO_DOWNLOAD
from rmt_jax.data.imagenet_shards import Progress
from rmt_jax.data.imagenet_writer import SPLITS, prepare_imagenet

DESCRIPTION = f"""\
Writes the TFDS data set imagenet2012 in array_record from ImageNet's two tars, without TensorFlow:
  {HOW_TO_DOWNLOAD}.

  rmt data imagenet --tars ~/downloads                      into TFDS's default directory
  rmt data imagenet --tars ~/downloads --only validation    6.3 GB, enough to evaluate
  python main.py --config configs/rmt_s.py                  reads it

Interrupted, the same command goes on. Tars with fewer classes or pictures are taken as they are.
"""

CHECK_DESCRIPTION = """\
Reads every picture of a split for segmentation or detection and its label map, boxes and masks, says what is wrong, and
counts the classes.

  rmt data check --name label_folder --dir DIR --split train
  rmt data check --name ade20k --dir ADEChallengeData2016 --split validation --reduce-zero-label
  rmt data check --name coco_json --dir DIR --split train2017 --masks

Exit code 1: there are label maps or annotations that would stop a run, or pictures that cannot be read.
"""

_SECONDS_BETWEEN_LINES = 30
_PROBLEMS_SHOWN = 20


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("data", help="prepare data sets")
    sets = parser.add_subparsers(title="data sets", required=True)
    imagenet = sets.add_parser(
        "imagenet",
        help="ImageNet-1k from its two tars",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    imagenet.add_argument("--tars", required=True, metavar="DIR", help="the folder with the tars")
    imagenet.add_argument("--data-dir", metavar="DIR", help="TFDS data directory (default: TFDS's own)")
    imagenet.add_argument("--only", choices=tuple(SPLITS), help="prepare only this split (default: both)")
    imagenet.set_defaults(run=_run_imagenet)
    check = sets.add_parser(
        "check",
        help="a data set with a label for every pixel, or with boxes",
        description=CHECK_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("--name", required=True, help="as data.name: ade20k, label_folder, coco_json or a TFDS name")
    check.add_argument("--dir", help="as data.dir")
    check.add_argument("--split", required=True, help="as data.train_split or data.eval_split")
    check.add_argument("--reduce-zero-label", action="store_true", help="as data.segmentation.reduce_zero_label")
    check.add_argument("--num-classes", type=int, default=0, metavar="N", help="as data.segmentation.num_classes")
    check.add_argument("--masks", action="store_true", help="as data.detection.masks")
    check.add_argument("--annotations", metavar="PATH", help="as data.detection.annotations")
    check.add_argument("--images", metavar="PATH", help="as data.detection.images")
    check.add_argument("--threads", type=int, default=4, metavar="N", help="that decode (default: 4)")
    check.set_defaults(run=_run_check)


def _run_imagenet(options: argparse.Namespace) -> int:
    splits = tuple(SPLITS) if options.only is None else (options.only,)
    with _terminal_progress(Console()) as progress:
        prepare_imagenet(options.tars, options.data_dir, splits=splits, progress=progress)
    return 0


def _run_check(options: argparse.Namespace) -> int:
    # Imported here: nothing else of this command needs OpenCV.
    from rmt_jax.data.detection.sources import is_detection

    if options.threads < 1:
        raise ValueError(f"--threads={options.threads}: expected 1 or more")
    places = {name: getattr(options, name) for name in ("annotations", "images") if getattr(options, name)}
    config = DataConfig(
        name=options.name,
        dir=options.dir,
        segmentation=SegmentationDataConfig(
            reduce_zero_label=options.reduce_zero_label, num_classes=options.num_classes
        ),
        detection=DetectionDataConfig(masks=options.masks, **places),
    )
    problems = (_check_boxes if is_detection(config) else _check_label_maps)(config, options)
    for problem in problems[:_PROBLEMS_SHOWN]:
        print(problem)
    if len(problems) > _PROBLEMS_SHOWN:
        print(f"and {len(problems) - _PROBLEMS_SHOWN:,} more")
    return 1 if problems else 0


def _check_label_maps(config: DataConfig, options: argparse.Namespace) -> list[str]:
    """Print what a split for segmentation holds; returns what is wrong with it."""
    from rmt_jax.data.segmentation import open_segmentation_source
    from rmt_jax.data.segmentation.survey import survey

    source = open_segmentation_source(config, options.split)
    with _terminal_progress(Console(stderr=True), "reading", "read") as progress:
        found = survey(source, config.segmentation, threads=options.threads, advance=progress.advance)
    total = max(1, int(found.pixels.sum()) + found.ignored)
    print(f"{source.name}: {len(source):,} pictures, {source.num_classes} classes")
    print(f"{len(found.shapes)} shapes when resized to {config.segmentation.scale} for evaluation")
    for label, name in enumerate(source.class_names):
        share = found.pixels[label] / total
        print(f"{label:4}  {name:24} {share:8.3%} of the pixels, in {found.pictures[label]:,} pictures")
    print(f" 255  {'(ignored)':24} {found.ignored / total:8.3%} of the pixels")
    return found.problems


def _check_boxes(config: DataConfig, options: argparse.Namespace) -> list[str]:
    """Print what a split for detection holds; returns what is wrong with it."""
    from rmt_jax.data.detection import open_detection_source
    from rmt_jax.data.detection.survey import survey

    source = open_detection_source(config, options.split)
    with _terminal_progress(Console(stderr=True), "reading", "read") as progress:
        found = survey(source, config.detection, threads=options.threads, advance=progress.advance)
    small, medium, large = found.sizes
    print(f"{source.name}: {len(source):,} pictures, {source.num_classes} classes")
    print(
        f"{found.objects.sum():,} objects: {small:,} small, {medium:,} medium, {large:,} large; {found.crowds:,} crowds"
    )
    print(f"at most {found.most} objects in a picture")
    for label, name in enumerate(source.class_names):
        print(f"{label:4}  {name:24} {found.objects[label]:10,} objects, in {found.pictures[label]:,} pictures")
    for reason, count in found.left_out.items():
        print(f"left out: {count:,} annotations {reason}")
    for reason, count in found.not_trained.items():
        print(f"left out of training: {count:,} pictures {reason}")
    print(f"{len(found.shapes)} padded shapes when resized to {config.detection.eval_scale} for evaluation")
    return found.problems


@contextlib.contextmanager
def _terminal_progress(console: Console, doing: str = "writing", done: str = "written") -> Iterator[Progress]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        yield _Lines(console, done)
        return
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        yield _Bar(console, done, bar)


class _Lines(Progress):
    """Lines on a console."""

    def __init__(self, console: Console, done: str) -> None:
        self._console, self._done = console, done
        self._last = float("-inf")

    def say(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def advance(self, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.say(f"{done:,} of {total:,} pictures {self._done}")


class _Bar(_Lines):
    """A progress bar below the lines."""

    def __init__(self, console: Console, done: str, bar: Bar) -> None:
        super().__init__(console, done)
        self._bar = bar
        self._task: TaskID | None = None

    def advance(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=done)
