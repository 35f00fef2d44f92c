"""What to read and how to augment it: the `data` part of a configuration. Values only, checked when they are made."""

import dataclasses

from rmt_jax.data.detection_config import DetectionDataConfig

INTERPOLATIONS = ("bilinear", "bicubic")

# What `data.name` may be beside a name of TFDS: one class a picture, a label for every pixel, boxes and masks.
IMAGE_NAMES = ("digits", "folder", "tar")
SEGMENTATION_NAMES = ("ade20k", "label_folder", "digits_segmentation")
DETECTION_NAMES = ("coco_json", "digits_detection")
OWN_NAMES = IMAGE_NAMES + SEGMENTATION_NAMES + DETECTION_NAMES


@dataclasses.dataclass(frozen=True)
class RandAugmentConfig:
    """RandAugment as timm has it; `rand-m9-mstd0.5-inc1` is num_ops=2 and otherwise these defaults.

    Attributes:
        num_ops: operations drawn for each picture, with replacement; 0 is no RandAugment.
        magnitude: mean strength of an operation, 0..10.
        magnitude_std: standard deviation of the strength, which is clamped to 0..10.
        probability: of each drawn operation to be applied.

    Raises:
        ValueError: a value is out of its range.
    """

    num_ops: int = 0
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        if self.num_ops < 0:
            raise ValueError(f"augment.rand_augment.num_ops={self.num_ops}: expected 0 (off) or more")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"augment.rand_augment.magnitude={self.magnitude}: expected a strength between 0 and 10")
        if self.magnitude_std < 0:
            raise ValueError(f"augment.rand_augment.magnitude_std={self.magnitude_std}: expected 0 or more")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"augment.rand_augment.probability={self.probability}: expected one between 0 and 1")


@dataclasses.dataclass(frozen=True)
class TokenLabelsConfig:
    """Label maps for token labelling, which turn training into that recipe's own pipeline.

    Attributes:
        file: the maps that `rmt labels pack` or `rmt labels make` wrote; None is no token labelling.
        upstream_crops: cut the maps as upstream's code does, which mistakes (top, left) for (x, y).
    """

    file: str | None = None
    upstream_crops: bool = False


@dataclasses.dataclass(frozen=True)
class SegmentationDataConfig:
    """Pictures with a label for every pixel: how they are resized, cropped and changed. The defaults are ADE20K's.

    Label 255 is ignored, always.

    Attributes:
        scale: longest and shortest side that a picture is brought to, in pixels: resized, in its own proportions, to
            the largest size that exceeds neither.
        eval_ratios: factors of `scale` in evaluation, all of which make up one prediction.
        ratio_range: smallest and largest factor of `scale` in training, uniform.
        crop_size: height and width of the random crop to train on; what a picture lacks is padding.
        cat_max_ratio: a crop where one class has this share of the labelled pixels, or more, is drawn again, up to ten
            times; 1 takes every crop.
        flip: probability of a horizontal flip.
        photometric: random brightness, contrast, saturation and hue.
        reduce_zero_label: label 0 is no class: 0 becomes 255, and k becomes k - 1. ADE20K needs it.
        num_classes: number of classes, after that; 0 is what the data set says.

    Raises:
        ValueError: a value is out of its range.
    """

    scale: tuple[int, int] = (2048, 512)
    eval_ratios: tuple[float, ...] = (1.0,)
    ratio_range: tuple[float, float] = (0.5, 2.0)
    crop_size: tuple[int, int] = (512, 512)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    photometric: bool = True
    reduce_zero_label: bool = False
    num_classes: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.scale[1] <= self.scale[0]:
            raise ValueError(
                f"data.segmentation.scale={self.scale}: expected (longest, shortest) side in pixels, for example "
                "(2048, 512)"
            )
        if not self.eval_ratios or min(self.eval_ratios) * self.scale[1] < 1:
            raise ValueError(
                f"data.segmentation.eval_ratios={self.eval_ratios}: expected one or more positive factors, such as "
                "(0.75, 1.0, 1.25)"
            )
        if not 0 < self.ratio_range[0] <= self.ratio_range[1]:
            raise ValueError(
                f"data.segmentation.ratio_range={self.ratio_range}: expected (smallest, largest) factor with "
                "0 < smallest <= largest, such as (0.5, 2.0)"
            )
        if self.scale[1] * self.ratio_range[0] < 1:
            raise ValueError(
                f"data.segmentation.ratio_range={self.ratio_range} brings the shortest side of scale={self.scale} "
                "below one pixel"
            )
        if min(self.crop_size) < 1:
            raise ValueError(
                f"data.segmentation.crop_size={self.crop_size}: expected (height, width) in pixels, such as (512, 512)"
            )
        if not 0 < self.cat_max_ratio <= 1:
            raise ValueError(
                f"data.segmentation.cat_max_ratio={self.cat_max_ratio}: expected a share such as 0.75, or 1 (off)"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"data.segmentation.flip={self.flip}: expected a probability between 0 and 1")
        if not 0 <= self.num_classes <= 254:
            raise ValueError(
                f"data.segmentation.num_classes={self.num_classes}: expected 0 (what the data set says) to 254, labels "
                "are 8 bits"
            )


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
        rand_augment: RandAugment.
        three_augment: one of grey, solarised or blurred (DeiT III).
        color_jitter: brightness, contrast and saturation change by a factor of 1 - color_jitter .. 1 + color_jitter.

    Raises:
        ValueError: a value is out of its range.
    """

    crop_scale: tuple[float, float] | None = None
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    rand_augment: RandAugmentConfig = RandAugmentConfig()
    three_augment: bool = False
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.rand_augment.num_ops and (self.three_augment or self.color_jitter):
            raise ValueError(
                "augment.rand_augment excludes three_augment and color_jitter, which timm ignores beside it: set "
                "rand_augment.num_ops=0, or leave out the others"
            )
        if self.color_jitter < 0:
            raise ValueError(f"augment.color_jitter={self.color_jitter}: expected 0 (off) or more, for example 0.4")
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
        name: "digits" (prepares itself), "folder" (`dir/SPLIT/CLASS/picture.jpg`, or `dir/CLASS/picture.jpg` with
            `eval_fraction`), "tar" (`dir/SPLIT/CLASS.tar`, or ImageNet's two tars as they are handed out), or a TFDS
            name such as "imagenet2012" or "oxford_iiit_pet:4.0.0", prepared as array_record. With label maps: "ade20k"
            (`dir` is ADEChallengeData2016), "label_folder" (`dir/images/SPLIT/NAME.jpg`, `dir/labels/SPLIT/NAME.png`),
            "digits_segmentation" (prepares itself), or a TFDS name.
        dir: the folder of pictures or tars, or the TFDS data directory; None is TFDS's default (`TFDS_DATA_DIR`, or
            `~/tensorflow_datasets`).
        train_split: split to train on; for folders and tars, the subfolder.
        eval_split: split to evaluate on; for folders and tars, the subfolder.
        eval_fraction: share of every class to hold out for evaluation, where a folder has no splits; 0 where it has.
            The choice goes by the pictures' names, and the two splits are then names of the sides.
        image_size: side of the square picture that the model sees, in pixels.
        crop_ratio: evaluation resizes the short side to `floor(image_size / crop_ratio)`, then crops the centre.
        interpolation: "bilinear" or "bicubic", antialiased.
        mean: of each channel, RGB in 0..1; the task normalises on the device, pictures leave this package as uint8.
        std: likewise.
        augment: random changes of training pictures.
        repeats: how often a picture is drawn before the next of the permutation (repeated augmentation); an epoch has
            as many pictures as without.
        repeat_replicas: parts of a batch that the drawn pictures are dealt out to in turn, so that the repeats of one
            land in different parts; does not depend on the hardware. Not read where repeats is 1.
        token_labels: label maps of the training pictures.
        segmentation: of pictures with a label for every pixel, in place of `image_size`, `crop_ratio`, `interpolation`,
            `augment`, `repeats` and `token_labels`.
        detection: of pictures with boxes, likewise.
        max_unreadable: largest share of a split whose pictures may be unreadable. Fewer are replaced, more stop the
            run.
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
    eval_fraction: float = 0.0
    image_size: int = 224
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    augment: AugmentConfig = AugmentConfig()
    repeats: int = 1
    repeat_replicas: int = 16
    token_labels: TokenLabelsConfig = TokenLabelsConfig()
    segmentation: SegmentationDataConfig = SegmentationDataConfig()
    detection: DetectionDataConfig = dataclasses.field(default_factory=DetectionDataConfig)
    max_unreadable: float = 0.01
    num_workers: int = 0
    num_threads: int = 4
    prefetch: int = 2

    def __post_init__(self) -> None:
        for name in ("name", "train_split", "eval_split"):
            if not getattr(self, name):
                raise ValueError(f"data.{name} is empty: expected a name")
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"data.eval_fraction={self.eval_fraction}: expected a share such as 0.1, or 0")
        if self.eval_fraction and self.name != "folder":
            raise ValueError(
                f'data.eval_fraction={self.eval_fraction} is for data.name="folder", not {self.name!r}: set it to 0 '
                '(of a TFDS data set, data.train_split="train[:90%]" takes a part)'
            )
        if self.eval_fraction and self.train_split == self.eval_split:
            raise ValueError(
                f"data.train_split and data.eval_split are both {self.train_split!r}: with data.eval_fraction they "
                "name its two sides, and must differ"
            )
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
        self._check_token_labels()
        if not 0 <= self.max_unreadable < 1:
            raise ValueError(f"data.max_unreadable={self.max_unreadable}: expected a share of the pictures, 0 to 1")
        for name, least in (
            ("repeats", 1),
            ("repeat_replicas", 1),
            ("num_workers", 0),
            ("num_threads", 0),
            ("prefetch", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"data.{name}={getattr(self, name)}: expected {least} or more")

    def _check_token_labels(self) -> None:
        if self.token_labels.file is None:
            return
        plain = AugmentConfig(
            self.augment.crop_scale, self.augment.crop_aspect, self.augment.flip, rand_augment=self.augment.rand_augment
        )
        if self.augment != plain or self.augment.crop_scale is None or self.repeats > 1:
            raise ValueError(
                "data.token_labels.file makes a pipeline of its own: it takes augment.crop_scale, crop_aspect, flip "
                "and rand_augment, and neither other augmentation nor data.repeats"
            )
