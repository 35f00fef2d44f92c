"""What to read and how to augment it: the `data` part of a configuration. Values only, checked when they are made."""

import dataclasses

INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training picture; the defaults change nothing.

    Attributes:
        crop_scale: smallest and largest share of the area that a random resized crop takes, or None for the same
            resize and centre crop as in evaluation. ImageNet recipes use (0.08, 1.0).
        crop_aspect: smallest and largest width / height of that crop.
        flip: probability of a horizontal flip.
        rotate: largest turn either way, in degrees.
        translate: largest shift along each axis, as a fraction of the side.
        scale: smallest and largest change of size.

    Raises:
        ValueError: a value is out of its range.
    """

    crop_scale: tuple[float, float] | None = None
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"augment.crop_scale={self.crop_scale}: expected (smallest, largest) share of the area "
                "with 0 < smallest <= largest <= 1, for example (0.08, 1.0), or None for no random crop"
            )
        for name, pair in (("crop_aspect", self.crop_aspect), ("scale", self.scale)):
            if not 0 < pair[0] <= pair[1]:
                raise ValueError(f"augment.{name}={pair}: expected (smallest, largest) with 0 < smallest <= largest")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip={self.flip}: expected a probability between 0 and 1")
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"augment.rotate={self.rotate}: expected degrees between 0 and 180")
        if not 0 <= self.translate < 1:
            raise ValueError(f"augment.translate={self.translate}: expected a fraction of the side, 0 <= translate < 1")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A data set, the size its pictures are brought to, and how many hands prepare them.

    Attributes:
        name: "digits" (prepares itself), "folder" (`dir/SPLIT/CLASS/picture.jpg`), or a TFDS name such as
            "imagenet2012" or "oxford_iiit_pet:4.0.0", prepared as array_record.
        dir: the folder of pictures, or the TFDS data directory; None is TFDS's default (`TFDS_DATA_DIR`, or
            `~/tensorflow_datasets`).
        train_split: split to train on; for a folder, the subfolder.
        eval_split: split to evaluate on; for a folder, the subfolder.
        image_size: side of the square picture that the model sees, in pixels.
        crop_ratio: evaluation resizes the short side to `floor(image_size / crop_ratio)`, then crops the centre.
        interpolation: "bilinear" or "bicubic", antialiased.
        mean: of each channel, RGB in 0..1; the task normalises on the device, pictures leave this package as uint8.
        std: likewise.
        augment: random changes of training pictures.
        num_workers: processes that prepare batches; 0 prepares them in threads of the main process.
        num_threads: threads in the main process or in each worker; each makes whole batches, 0 makes them on demand.
        prefetch: finished batches kept ready, beside those that the threads are making.

    Raises:
        ValueError: a value is out of its range.
    """

    name: str
    dir: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    image_size: int = 224
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    augment: AugmentConfig = AugmentConfig()
    num_workers: int = 0
    num_threads: int = 4
    prefetch: int = 2

    def __post_init__(self) -> None:
        for name in ("name", "train_split", "eval_split"):
            if not getattr(self, name):
                raise ValueError(f"data.{name} is empty: expected a name")
        if self.image_size < 1:
            raise ValueError(f"data.image_size={self.image_size}: expected a number of pixels, for example 224")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(
                f"data.crop_ratio={self.crop_ratio}: expected 0 < crop_ratio <= 1; 0.875 resizes to 256 for a crop of "
                "224, 1.0 resizes to the crop itself"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"data.interpolation={self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"data.std={self.std}: expected three positive numbers, pictures are divided by them")
        for name, least in (("num_workers", 0), ("num_threads", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)}: expected {least} or more")
