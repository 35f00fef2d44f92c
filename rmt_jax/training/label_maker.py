"""Label maps of a data set with one of our models as the teacher, in parts that an interrupted run goes on from."""

import concurrent.futures
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, UInt8
from PIL import Image

from rmt_jax.convert import Preprocessing, Weights
from rmt_jax.data import CorruptImageError, ImageSource, decode
from rmt_jax.data.label_maps import GRID, MAX_CLASSES, TOP, LabelMaps, map_name
from rmt_jax.data.label_writer import LabelMapWriter
from rmt_jax.models import Classifier
from rmt_jax.models.rmt import MIN_SIZE
from rmt_jax.tasks.classification import normalize
from rmt_jax.training.metrics import replace_file
from rmt_jax.training.program import keep_to_devices
from rmt_jax.training.sharding import MeshConfig, PerDevice, batch_sharding, formulations_for, make_mesh, replicated

IMAGE_SIZE = GRID * MIN_SIZE
PART = 10_000  # pictures between two points that an interrupted run goes on from


class Teacher(NamedTuple):
    """A model that labels.

    Attributes:
        model: in evaluation mode.
        preprocessing: of its pictures; of the sizes only the interpolation and the colours count.
        provenance: of its weights, ready for JSON.
    """

    model: Classifier
    preprocessing: Preprocessing
    provenance: dict[str, Any]


class Made(NamedTuple):
    """Maps written, and the ids of the pictures that could not be decoded and have none."""

    maps: int
    unreadable: list[str]


def make_teacher(weights: Weights, source: ImageSource, dtype: str) -> Teacher:
    """The teacher from its weights, if it can label the data set.

    Raises:
        ValueError: not a classifier, other classes, too many, or weights that do not say how to prepare pictures.
    """
    model = weights.to_model(jnp.dtype(dtype))
    if not isinstance(model, Classifier):
        raise ValueError("The teacher is a backbone without a head: give a classifier with --teacher.")
    classes = weights.config.num_classes
    if classes != source.num_classes:
        raise ValueError(f"The teacher has {classes} classes, {source.name} has {source.num_classes}: they must agree.")
    if classes > MAX_CLASSES:
        raise ValueError(f"Label maps keep class ids in float16, for {MAX_CLASSES} classes at most, not {classes}.")
    if classes < TOP:
        raise ValueError(f"Label maps hold the best {TOP} classes of each cell; the teacher has only {classes}.")
    if not isinstance(weights.preprocessing, Preprocessing):
        raise ValueError(
            "The teacher's weights do not say how its pictures were prepared: convert them with rmt convert."
        )
    return Teacher(model, weights.preprocessing, dict(weights.provenance))


def token_logits(model: Classifier, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch _ _ classes"]:
    """Logits of every position of the last stage, in float32.

    Of a starred model its auxiliary head's; of another the whole head's, from the projection on, without the mean over
    positions. The model is in evaluation mode.
    """
    features = model.forward_features(images)
    if model.aux_head is not None:
        return model.aux_head(model.taps(features)[model.config.aux_tap]).astype(jnp.float32)
    # To forward_head every position is a map of its own, over which the mean is itself.
    batch, height, width, channels = features.shape
    logits = model.forward_head(features.reshape(-1, 1, 1, channels))
    return logits.reshape(batch, height, width, -1)


def label_maps(
    model: Classifier, preprocessing: Preprocessing, images: UInt8[Array, "batch height width 3"]
) -> Float[Array, "batch 2 top rows columns"]:
    """The label maps of whole pictures, float16: the best logits of every position, then their classes."""
    logits = token_logits(model, normalize(images, preprocessing.mean, preprocessing.std))
    scores, ids = jax.lax.top_k(logits, TOP)
    return jnp.moveaxis(jnp.stack([scores, ids.astype(jnp.float32)], axis=1), -1, 2).astype(jnp.float16)


def make_maps(
    teacher: Teacher,
    source: ImageSource,
    file: pathlib.Path,
    *,
    batch_size: int,
    image_size: int = IMAGE_SIZE,
    threads: int = 4,
    part: int = PART,
    advance: Callable[[int], object] = lambda n: None,
) -> Made:
    """Write the label maps of every picture of a data set; a run that was interrupted is gone on with.

    Finished parts lie in FILE.parts until the file is whole. A picture that cannot be decoded gets no map.

    Args:
        teacher: makes the maps.
        source: of the pictures.
        file: the destination.
        batch_size: pictures at once, over all devices.
        image_size: side that whole pictures are resized to, in pixels.
        threads: that decode pictures.
        part: pictures between two points to go on from.
        advance: called with the number of pictures just done, those of finished parts included.

    Raises:
        ValueError: sizes that do not work here, or parts of another run.
    """
    if -(-image_size // MIN_SIZE) != GRID:
        raise ValueError(
            f"image_size={image_size} makes a grid of {-(-image_size // MIN_SIZE)}x{-(-image_size // MIN_SIZE)}; label "
            f"maps have {GRID}x{GRID} cells of {MIN_SIZE} pixels: use {IMAGE_SIZE}."
        )
    if batch_size < 1 or batch_size % jax.device_count():
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {jax.device_count()} device(s).")
    job = {
        "made": "rmt labels make",
        "data": source.name,
        "pictures": len(source),
        "image_size": image_size,
        "dtype": str(teacher.model.backbone.dtype),
        "preprocessing": str(teacher.preprocessing),
        "teacher": teacher.provenance,
    }
    folder = file.with_name(f"{file.name}.parts")
    _open_parts(folder, job | {"part": part})
    step = _compile(teacher)
    paths = []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), part):
            indices = range(start, min(start + part, len(source)))
            paths.append(folder / f"{start:09d}.array_record")
            if paths[-1].exists():
                advance(len(indices))
                continue
            batches = _batches(source, indices, batch_size, image_size, teacher.preprocessing.interpolation, pool)
            _write_part(paths[-1], step, batches, batch_size, advance)
    made = _merge(paths, file, job)
    shutil.rmtree(folder)
    return made


class _Batch(NamedTuple):
    ids: list[str]
    images: list[np.ndarray]
    unreadable: list[str]


def _compile(teacher: Teacher) -> Callable[[np.ndarray], Array]:
    """Pictures of a batch to their maps, split over all devices."""
    mesh = make_mesh(MeshConfig())
    keep_to_devices(teacher.model, PerDevice(mesh))
    graph, state = nnx.split(teacher.model)
    state = jax.device_put(state, replicated(mesh))

    @jax.jit
    def step(state: Any, images: Array) -> Array:
        return label_maps(nnx.merge(graph, state), teacher.preprocessing, images)

    def run(images: np.ndarray) -> Array:
        with formulations_for(mesh):
            return step(state, jax.device_put(images, batch_sharding(mesh)))

    return run


def _batches(
    source: ImageSource,
    indices: range,
    batch_size: int,
    image_size: int,
    interpolation: str,
    pool: concurrent.futures.ThreadPoolExecutor,
) -> Iterator[_Batch]:
    """Whole pictures resized to squares, the next batch in preparation while one is used."""
    resample = Image.Resampling[interpolation.upper()]

    def load(index: int) -> tuple[str, np.ndarray | None]:
        example = source[index]
        try:
            image = decode(example.image, example.id)
        except CorruptImageError:
            return example.id, None
        return example.id, np.asarray(image.resize((image_size, image_size), resample))

    def submit(start: int) -> list[concurrent.futures.Future]:
        return [pool.submit(load, index) for index in indices[start : start + batch_size]]

    coming = submit(0)
    for start in range(0, len(indices), batch_size):
        now, coming = coming, submit(start + batch_size)
        examples = [future.result() for future in now]
        yield _Batch(
            [name for name, image in examples if image is not None],
            [image for _, image in examples if image is not None],
            [name for name, image in examples if image is None],
        )


def _write_part(
    path: pathlib.Path,
    step: Callable[[np.ndarray], Array],
    batches: Iterator[_Batch],
    batch_size: int,
    advance: Callable[[int], object],
) -> None:
    provenance: dict[str, Any] = {"unreadable": []}
    with LabelMapWriter(path, provenance) as writer:
        for batch in batches:
            if batch.images:
                # Filled up with its first picture to the one size that is compiled.
                images = np.stack(batch.images + batch.images[:1] * (batch_size - len(batch.images)))
                for name, label_map in zip(batch.ids, np.asarray(step(images)), strict=False):
                    writer.add(map_name(name), label_map)
            writer.provenance["unreadable"] += batch.unreadable
            advance(len(batch.ids) + len(batch.unreadable))


def _open_parts(folder: pathlib.Path, job: dict[str, Any]) -> None:
    """Make the folder of the parts, or check that what is there is of the same run."""
    path, job = folder / "job.json", json.loads(json.dumps(job))
    if path.exists():
        there = json.loads(path.read_text())
        differing = [name for name in job if job[name] != there.get(name)]
        if differing:
            raise ValueError(
                f"{folder} holds parts of label maps made otherwise ({', '.join(differing)} differ): go on with the "
                f"same options, or remove {folder} to start over."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(job, indent=2) + "\n").encode())


def _merge(parts: list[pathlib.Path], file: pathlib.Path, job: dict[str, Any]) -> Made:
    """One file from the parts."""
    unreadable: list[str] = []
    with LabelMapWriter(file, job) as writer:
        for path in parts:
            maps = LabelMaps(path)
            unreadable += maps.provenance["unreadable"]
            for rank, name in enumerate(maps.names()):
                writer.add(name, maps.stored(rank))
        writer.provenance["unreadable"] = unreadable
        return Made(len(writer), unreadable)
