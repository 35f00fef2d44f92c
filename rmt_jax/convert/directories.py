"""Folders of ours: model directories, made by conversion, and the workdirs of training.

A model directory holds model.json (what the model is, its classes, where its weights come from, upstream's entries
without weights) and weights/, an Orbax checkpoint of {"params": ..., "batch_stats": ...}.
"""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from rmt_jax.convert.card import fields_from_json, parse_card, read_class_names
from rmt_jax.convert.integrity import find_damage, read_through
from rmt_jax.convert.names import dense_task
from rmt_jax.convert.preprocessing import DensePreprocessing, Preprocessing, run_preprocessing
from rmt_jax.convert.recognize import CLASS_LAYERS
from rmt_jax.convert.weights import Weights, is_counter, upstream_buffers
from rmt_jax.models import RMTConfig, variant
from rmt_jax.models.arrays import flat_paths, nest

CARD_FILE = "model.json"
WEIGHTS_FOLDER = "weights"
CLASSES_FILE = "classes.json"  # of a workdir: the class names by label, a list

# Orbax keeps a data file in memory until it is full: small ones bound the memory that a conversion takes.
DATA_FILE_SIZE = 16 * 2**20


def is_model_directory(folder: pathlib.Path) -> bool:
    """Whether a folder is one that `write_directory` made."""
    return (folder / CARD_FILE).is_file() and (folder / WEIGHTS_FOLDER).is_dir()


def write_directory(folder: pathlib.Path, weights: Weights) -> None:
    """Write a model directory, which must not exist. Not atomic by itself."""
    folder.mkdir()
    statistics = {path for path in weights.arrays if path.endswith(("/mean", "/var"))}
    tree = {
        "params": nest({path: array for path, array in weights.arrays.items() if path not in statistics}),
        "batch_stats": nest({path: weights.arrays[path] for path in statistics}),
    }
    arguments = ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=DATA_FILE_SIZE)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save((folder / WEIGHTS_FOLDER).resolve(), args=arguments)
    # float32 survives: its float64 is exact, and JSON's digits read back as the same float64.
    card = weights.card() | {"buffers": {key: value.tolist() for key, value in weights.buffers.items()}}
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def read_directory(folder: pathlib.Path) -> Weights:
    """The weights of a model directory.

    Raises:
        ValueError: it is damaged, or of a later version.
    """
    text = (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    card = parse_card(text, CARD_FILE)
    buffers = {
        str(key): np.array(value, np.int64 if is_counter(str(key)) else np.float32)
        for key, value in dict(json.loads(text).get("buffers", {})).items()
    }
    return Weights(arrays=_restore(folder / WEIGHTS_FOLDER), buffers=buffers, **card._asdict())


def checkpoint_folder(workdir: pathlib.Path) -> pathlib.Path:
    """Where a workdir keeps its checkpoints, absolute as Orbax wants it."""
    return workdir.resolve() / "checkpoints"


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints of a workdir, in no order; creates nothing."""
    folder = checkpoint_folder(workdir)
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a workdir holds a complete checkpoint; creates nothing."""
    return bool(checkpoint_steps(workdir))


def item_folder(workdir: pathlib.Path, step: int, *, raw: bool) -> pathlib.Path:
    """Where the raw weights of a step lie, or their moving average."""
    return checkpoint_folder(workdir) / str(step) / ("model" if raw else "ema")


def read_workdir(workdir: pathlib.Path, *, raw: bool = False) -> Weights:
    """The latest weights of a training run: their moving average, or the raw ones.

    Raises:
        ValueError: it holds no checkpoint, the latest one is damaged, or config.json or classes.json is.
    """
    if not has_checkpoint(workdir):
        raise ValueError("This workdir holds no checkpoint yet.")
    step = max(checkpoint_steps(workdir))
    folder = item_folder(workdir, step, raw=raw)
    if problem := find_damage(folder.parent, [folder.name]):
        raise ValueError(
            f"Checkpoint {step} is damaged ({problem}). Going on with the training falls back to the one before; move "
            f"{folder.parent} away to read that one now."
        )
    arrays = _restore(folder)
    task, head = dense_task(arrays) or ("classification", None)
    layer, outputs = ("head", 1) if head is None else CLASS_LAYERS[head]
    num_classes = len(arrays[f"{layer.replace('.', '/')}/bias"]) // outputs
    name, config, preprocessing, steps_per_update = _configuration(workdir / "config.json", num_classes, task)
    return Weights(
        name=name,
        task=task,
        head=head,
        config=config,
        arrays=arrays,
        buffers=upstream_buffers(config, arrays, task, steps=step * steps_per_update),
        provenance={"layout": "workdir", "weights": "raw" if raw else "ema", "step": step},
        class_names=workdir_classes(workdir),
        preprocessing=preprocessing,
    )


def workdir_classes(workdir: pathlib.Path) -> tuple[str, ...] | None:
    """Names of the classes that a run is trained on, None where it does not say.

    Raises:
        ValueError: classes.json is damaged.
    """
    path = workdir / CLASSES_FILE
    if not path.exists():  # a run of before there was such a file
        return None
    try:
        return read_class_names(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{CLASSES_FILE} does not hold the class names of a run ({error}).") from error


def _configuration(
    path: pathlib.Path, num_classes: int, task: str
) -> tuple[str, RMTConfig, Preprocessing | DensePreprocessing, int]:
    """(model, architecture, preprocessing, batches that BatchNorm sees in a step) of a run."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        model = run["model"]
        fields = fields_from_json(model["architecture"])
        if model["drop_path"] is not None:
            fields["drop_path"] = model["drop_path"]
        if task != "classification":
            fields["extra_norms"] = True
        config = variant(model["name"], **fields, num_classes=num_classes)
        return model["name"], config, run_preprocessing(run["data"], task), run["grad_accum_steps"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config.json does not describe a run ({error}).") from error


def _restore(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{path: array} of an Orbax checkpoint of {"params", "batch_stats"}, whatever devices it was saved from."""
    try:
        read_through(folder)
        handler = ocp.PyTreeCheckpointHandler()
        # From the handler: the checkpointer would warn that an item of a training checkpoint has no file about itself.
        metadata = handler.metadata(folder.resolve())
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        with ocp.Checkpointer(handler) as checkpointer:
            tree = checkpointer.restore(folder.resolve(), args=ocp.args.PyTreeRestore(restore_args=arguments))
        return {path: array for part in tree.values() for path, array in flat_paths(part)}
    # Damaged files raise whatever the layers below it raise.
    except Exception as error:
        raise ValueError(
            f"{folder.name} is no Orbax checkpoint, or a damaged one: {str(error).splitlines()[0]}"
        ) from error
