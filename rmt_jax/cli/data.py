"""`rmt data`: data sets that need preparation, and those that need a look."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rmt_jax.cli.output import add_json, add_quiet, counting, say, write_json

if TYPE_CHECKING:  # what is heavy is imported where it is used
    from rmt_jax.data import DataConfig
    from rmt_jax.data.imagenet_shards import Progress

DESCRIPTION = """\
Prepares data sets, and looks at those that would be trained on.

  rmt data imagenet --tars ~/downloads
  rmt data check --data-name label_folder --data-dir DIR --split train
"""

IMAGENET_DESCRIPTION = """\
Writes the TFDS data set imagenet2012 in array_record from ImageNet's two tars, without TensorFlow:
  ILSVRC2012_img_train.tar (138 GB) and ILSVRC2012_img_val.tar (6.3 GB) from https://image-net.org/download-images,
  which needs an account there.

  rmt data imagenet --tars ~/downloads                      into TFDS's default directory
  rmt data imagenet --tars ~/downloads --only validation    6.3 GB, enough to evaluate
  python main.py --config configs/rmt_s.py                  reads it

Interrupted, the same command goes on. Tars with fewer classes or pictures are taken as they are.
"""

CHECK_DESCRIPTION = """\
Reads every picture of a split for segmentation or detection and its label map, boxes and masks, says what is wrong, and
counts the classes.

  rmt data check --data-name label_folder --data-dir DIR --split train
  rmt data check --data-name ade20k --data-dir ADEChallengeData2016 --split validation --reduce-zero-label
  rmt data check --data-name coco_json --data-dir DIR --split train2017 --masks

Exit code 1: there are label maps or annotations that would stop a run, or pictures that cannot be read.
"""

SPLITS = ("train", "validation")  # of ImageNet, rmt_jax.data.imagenet_writer.SPLITS

_PROBLEMS_SHOWN = 20


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", summary: str) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "data", help=summary, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = parser.add_subparsers(title="what to do", required=True, metavar="WHAT")
    imagenet = sets.add_parser(
        "imagenet",
        help="ImageNet-1k from its two tars",
        description=IMAGENET_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    imagenet.add_argument("--tars", required=True, metavar="DIR", help="the folder with the tars")
    imagenet.add_argument("--data-dir", metavar="DIR", help="TFDS data directory (default: TFDS's own)")
    imagenet.add_argument("--only", choices=SPLITS, help="prepare only this split (default: both)")
    add_quiet(imagenet)
    imagenet.set_defaults(run=_run_imagenet)
    check = sets.add_parser(
        "check",
        help="a data set with a label for every pixel, or with boxes",
        description=CHECK_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "--data-name",
        required=True,
        metavar="NAME",
        help="as data.name: ade20k, label_folder, coco_json or a TFDS name",
    )
    check.add_argument("--data-dir", metavar="DIR", help="as data.dir")
    check.add_argument("--split", required=True, metavar="NAME", help="as data.train_split or data.eval_split")
    check.add_argument("--reduce-zero-label", action="store_true", help="as data.segmentation.reduce_zero_label")
    check.add_argument("--num-classes", type=int, default=0, metavar="N", help="as data.segmentation.num_classes")
    check.add_argument("--masks", action="store_true", help="as data.detection.masks")
    check.add_argument("--annotations", metavar="PATH", help="as data.detection.annotations")
    check.add_argument("--images", metavar="PATH", help="as data.detection.images")
    check.add_argument("--threads", type=int, default=4, metavar="N", help="that decode (default: 4)")
    add_json(check, "what is found")
    add_quiet(check)
    check.set_defaults(run=_run_check)


def _run_imagenet(options: argparse.Namespace) -> int:
    from rmt_jax.data.imagenet_writer import prepare_imagenet

    splits = SPLITS if options.only is None else (options.only,)
    with _writing(quiet=options.quiet) as progress:
        prepare_imagenet(options.tars, options.data_dir, splits=splits, progress=progress)
    return 0


def _run_check(options: argparse.Namespace) -> int:
    from rmt_jax.data import DataConfig, DetectionDataConfig, SegmentationDataConfig
    from rmt_jax.data.detection.sources import is_detection

    if options.threads < 1:
        raise ValueError(f"--threads={options.threads}: expected 1 or more")
    places = {name: getattr(options, name) for name in ("annotations", "images") if getattr(options, name)}
    config = DataConfig(
        name=options.data_name,
        dir=options.data_dir,
        segmentation=SegmentationDataConfig(
            reduce_zero_label=options.reduce_zero_label, num_classes=options.num_classes
        ),
        detection=DetectionDataConfig(masks=options.masks, **places),
    )
    content = (_check_boxes if is_detection(config) else _check_label_maps)(config, options)
    problems = content["problems"]
    for problem in problems[:_PROBLEMS_SHOWN]:
        print(problem)
    if len(problems) > _PROBLEMS_SHOWN:
        print(f"and {len(problems) - _PROBLEMS_SHOWN:,} more")
    write_json(options.json, content)
    return 1 if problems else 0


def _check_label_maps(config: "DataConfig", options: argparse.Namespace) -> dict[str, Any]:
    """Print and return what a split for segmentation holds, and what is wrong with it."""
    from rmt_jax.data.segmentation import open_segmentation_source
    from rmt_jax.data.segmentation.survey import survey

    source = open_segmentation_source(config, options.split)
    with _counting_all("reading", len(source), quiet=options.quiet) as advance:
        found = survey(source, config.segmentation, threads=options.threads, advance=advance)
    total = max(1, int(found.pixels.sum()) + found.ignored)
    print(f"{source.name}: {len(source):,} pictures, {source.num_classes} classes")
    print(f"{len(found.shapes)} shapes when resized to {config.segmentation.scale} for evaluation")
    for label, name in enumerate(source.class_names):
        share = found.pixels[label] / total
        print(f"{label:4}  {name:24} {share:8.3%} of the pixels, in {found.pictures[label]:,} pictures")
    print(f" 255  {'(ignored)':24} {found.ignored / total:8.3%} of the pixels")
    classes = zip(source.class_names, found.pixels.tolist(), found.pictures.tolist(), strict=True)
    return {
        "name": source.name,
        "pictures": len(source),
        "shapes": len(found.shapes),
        "classes": [{"class": name, "pixels": pixels, "pictures": pictures} for name, pixels, pictures in classes],
        "ignored_pixels": int(found.ignored),
        "problems": found.problems,
    }


def _check_boxes(config: "DataConfig", options: argparse.Namespace) -> dict[str, Any]:
    """Print and return what a split for detection holds, and what is wrong with it."""
    from rmt_jax.data.detection import open_detection_source
    from rmt_jax.data.detection.survey import survey

    source = open_detection_source(config, options.split)
    with _counting_all("reading", len(source), quiet=options.quiet) as advance:
        found = survey(source, config.detection, threads=options.threads, advance=advance)
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
    classes = zip(source.class_names, found.objects.tolist(), found.pictures.tolist(), strict=True)
    return {
        "name": source.name,
        "pictures": len(source),
        "shapes": len(found.shapes),
        "classes": [{"class": name, "objects": objects, "pictures": pictures} for name, objects, pictures in classes],
        "sizes": {"small": int(small), "medium": int(medium), "large": int(large)},
        "crowds": int(found.crowds),
        "most_objects": int(found.most),
        "left_out": dict(found.left_out),
        "not_trained": dict(found.not_trained),
        "problems": found.problems,
    }


@contextlib.contextmanager
def _writing(*, quiet: bool) -> Iterator["Progress"]:
    """What `prepare_imagenet` reports to: standard error, or nobody."""
    from rmt_jax.data.imagenet_shards import Progress

    class Reported(Progress):
        count: Callable[[int, int], None] | None = None

        def say(self, line: str) -> None:
            say(line, stderr=True)

        def advance(self, done: int, total: int) -> None:
            if self.count is None:
                self.count = stack.enter_context(_counting_all("writing", total))
            self.count(done, total)

    with contextlib.ExitStack() as stack:
        yield Progress() if quiet else Reported()


@contextlib.contextmanager
def _counting_all(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """`counting` for those who say how many are done in all."""
    with counting(what, total, quiet=quiet) as advance:
        before = 0

        def count(done: int, total: int) -> None:
            nonlocal before
            advance(done - before)
            before = done

        yield count
