"""A stand-in for ImageNet in all its forms, from photographs that installed packages ship.

    python -m tests.standin DIR

writes DIR/folder (train/CLASS, val/CLASS), DIR/flat (CLASS without splits), DIR/class_tars (train/CLASS.tar, ...),
DIR/tars (ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar) and DIR/tfds (what `rmt data imagenet` makes of them):
the same pictures everywhere. Classes are real synsets, and validation pictures are named after some that ImageNet has
in the same class. Among the pictures are a CMYK one, a grey one, a PNG named .JPEG and one with an EXIF orientation.
"""

import argparse
import importlib.util
import io
import pathlib
import tarfile

import numpy as np
from PIL import Image

from rmt_jax.data import imagenet
from rmt_jax.data.imagenet_shards import Progress
from rmt_jax.data.imagenet_writer import prepare_imagenet

# One class a photograph: synset, package, path in it.
PHOTOGRAPHS = {
    "n02124075": ("skimage", "data/chelsea.png"),  # Egyptian cat
    "n03763968": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),  # military uniform
    "n03773504": ("skimage", "data/rocket.jpg"),  # missile
    "n03785016": ("skimage", "data/motorcycle_left.png"),  # moped
    "n03877845": ("sklearn", "datasets/images/china.jpg"),  # palace
    "n04266014": ("skimage", "data/astronaut.png"),  # space shuttle
    "n07920052": ("skimage", "data/coffee.png"),  # espresso
    "n11939491": ("sklearn", "datasets/images/flower.jpg"),  # daisy
}
TRAIN_PICTURES, VALIDATION_PICTURES = 40, 8
EXIF_ORIENTATION = 0x0112

# Training pictures of the first class that are unlike the others, as some of ImageNet's are.
CMYK, GREY, PNG, ROTATED, TRUNCATED = range(5)

Pictures = dict[str, dict[str, bytes]]  # by class, then by name


def crop(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of a photograph, about as large as ImageNet's pictures."""
    width, height = (500, 375) if rng.random() < 0.7 else (375, 500)
    width, height = int(width * rng.uniform(0.8, 1.1)), int(height * rng.uniform(0.8, 1.1))
    share = rng.uniform(0.4, 1.0) * min(photograph.width / width, photograph.height / height)
    part_width, part_height = width * share, height * share
    left, top = rng.uniform(0, photograph.width - part_width), rng.uniform(0, photograph.height - part_height)
    return photograph.resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, left + part_width, top + part_height)
    )


def encode(image: Image.Image, oddity: int | None = None) -> bytes:
    """A JPEG, or one of the oddities."""
    data, exif = io.BytesIO(), Image.Exif()
    if oddity == PNG:
        image.save(data, "PNG")
        return data.getvalue()
    if oddity == ROTATED:
        exif[EXIF_ORIENTATION] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    image = image.convert({CMYK: "CMYK", GREY: "L"}.get(oddity, "RGB"))
    image.save(data, "JPEG", quality=90, exif=exif)
    return data.getvalue()[: len(data.getvalue()) // 2] if oddity == TRUNCATED else data.getvalue()


def photograph(package: str, path: str) -> Image.Image:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the photograph {path} ships with {package}: pip install 'rmt-jax[test]'")
    with Image.open(pathlib.Path(spec.origin).parent / path) as image:
        return image.convert("RGB")


def make_pictures(train: int, validation: int, *, truncated: bool = False) -> dict[str, Pictures]:
    """The pictures of "train" and "val"; the same every time."""
    pictures: dict[str, Pictures] = {"train": {}, "val": {}}
    for label, (synset, (package, path)) in enumerate(PHOTOGRAPHS.items()):
        rng = np.random.default_rng((2012, label))
        source = photograph(package, path)
        pictures["train"][synset] = {
            f"{synset}_{10 * i + label}.JPEG": encode(
                crop(source, rng), i if label == 0 and i <= (TRUNCATED if truncated else ROTATED) else None
            )
            for i in range(train)
        }
        names = (f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001))
        own = [name for name in names if imagenet.validation_class(name) == synset][:validation]
        pictures["val"][synset] = {name: encode(crop(source, rng)) for name in own}
    return pictures


def tar_bytes(files: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of files, in the order given."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tar_format) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def write_folder(folder: pathlib.Path, pictures: Pictures) -> None:
    for synset, files in pictures.items():
        (folder / synset).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / synset / name).write_bytes(data)


def write_class_tars(folder: pathlib.Path, pictures: Pictures) -> None:
    folder.mkdir(parents=True)
    for synset, files in pictures.items():
        (folder / f"{synset}.tar").write_bytes(tar_bytes(files))


def write_imagenet_tars(folder: pathlib.Path, pictures: dict[str, Pictures]) -> None:
    """The two tars; not sorted, as those that are handed out need not be."""
    folder.mkdir(parents=True)
    classes = {f"{synset}.tar": tar_bytes(files) for synset, files in reversed(pictures["train"].items())}
    (folder / imagenet.TRAIN_TAR).write_bytes(tar_bytes(classes))
    validation = {name: data for files in pictures["val"].values() for name, data in files.items()}
    (folder / imagenet.VALIDATION_TAR).write_bytes(tar_bytes(validation))


def write_all(
    directory: pathlib.Path,
    *,
    train: int = TRAIN_PICTURES,
    validation: int = VALIDATION_PICTURES,
    truncated: bool = False,
    progress: Progress,
) -> dict[str, Pictures]:
    """Write every form of the stand-in; returns the pictures."""
    pictures = make_pictures(train, validation, truncated=truncated)
    for split, classes in pictures.items():
        write_folder(directory / "folder" / split, classes)
        write_folder(directory / "flat", classes)
        write_class_tars(directory / "class_tars" / split, classes)
    write_imagenet_tars(directory / "tars", pictures)
    prepare_imagenet(str(directory / "tars"), str(directory / "tfds"), progress=progress)
    return pictures


class _Printing(Progress):
    def say(self, line: str) -> None:
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, help="where to write; must not exist")
    parser.add_argument("--train", type=int, default=TRAIN_PICTURES, help="training pictures of each class")
    parser.add_argument("--validation", type=int, default=VALIDATION_PICTURES, help="validation pictures of each class")
    parser.add_argument("--truncated", action="store_true", help="cut one training picture in half")
    options = parser.parse_args()
    if options.directory.exists():
        parser.error(f"{options.directory} exists: give a directory that does not")
    write_all(
        options.directory,
        train=options.train,
        validation=options.validation,
        truncated=options.truncated,
        progress=_Printing(),
    )
