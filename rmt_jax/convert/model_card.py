"""The card of a model on the Hugging Face hub: what is known of the weights, and where each figure comes from."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rmt_jax.convert.hub import require_hub
from rmt_jax.convert.weights import Weights
from rmt_jax.version import __version__

PAPER = "https://arxiv.org/abs/2309.11523"
CODE = "https://github.com/qhfan/RMT"  # the authors'

# Top-1 of ImageNet-1k at 224x224 in percent, as the paper gives it.
PAPER_TOP1 = {
    "rmt_t": 82.4,
    "rmt_s": 84.1,
    "rmt_b": 85.0,
    "rmt_l": 85.5,
    "rmt_s_star": 84.8,
    "rmt_b_star": 85.6,
    "rmt_l_star": 86.1,
}
_PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "backbone": "image-feature-extraction",
}
_NOT_FIGURES = frozenset({"step", "pictures", "unreadable"})  # numbers of evaluation.json that rate nothing
_CITATION = """\
@inproceedings{fan2024rmt,
  title={{RMT}: Retentive Networks Meet Vision Transformers},
  author={Fan, Qihang and Huang, Huaibo and Chen, Mingrui and Liu, Hongmin and He, Ran},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2024}
}"""


class Run(NamedTuple):
    """What a workdir says of the training that made weights.

    Attributes:
        recipe: config.json; of paths only the last part.
        evaluation: evaluation.json where it is of the same weights, else None.
    """

    recipe: dict[str, Any]
    evaluation: dict[str, Any] | None


def read_run(workdir: pathlib.Path, weights: Weights) -> Run | None:
    """What a workdir says of weights that were read from it; None of other sources.

    Raises:
        ValueError: a file of it is damaged.
    """
    if weights.provenance.get("layout") != "workdir":
        return None
    recipe = _read_json(workdir / "config.json")
    path = workdir / "evaluation.json"
    evaluation = _read_json(path) if path.is_file() else None
    if evaluation is not None:
        kind = weights.provenance["weights"]
        if evaluation.get("weights") != kind:  # a run evaluates both, one of them in detail
            evaluation = None if kind not in evaluation else evaluation | evaluation[kind]
        if evaluation is not None and evaluation.get("step") != weights.provenance["step"]:
            evaluation = None
    return Run(recipe, evaluation)


def make_card(weights: Weights, name: str, run: Run | None, license_id: str | None) -> str:
    """README.md of a repository on the hub: front matter that the hub reads, and what people read.

    Args:
        weights: of the model.
        name: "user/name" of the repository.
        run: what is known of the training.
        license_id: the hub's name of the weights' licence, such as "apache-2.0"; None says that none is stated.

    Raises:
        ImportError: no huggingface_hub.
        ValueError: no front matter can be made of it.
    """
    hub, results = require_hub("A model card"), _front_matter_results(weights, run)
    data = hub.ModelCardData(
        library_name="rmt_jax",
        license=license_id,
        pipeline_tag=_PIPELINES[weights.task],
        tags=["rmt", "jax", "flax", "arxiv:2309.11523"],
        model_name=name.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {name}", *_sections(weights, name, run, license_id)]
    return str(hub.ModelCard("\n\n".join(parts) + "\n"))


def figures(run: Run | None) -> dict[str, float]:
    """What the run's evaluation measured, by name."""
    if run is None or run.evaluation is None:
        return {}
    return {
        key: value
        for key, value in run.evaluation.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in _NOT_FIGURES
    }


def _front_matter_results(weights: Weights, run: Run | None) -> list[Any]:
    """Accuracy as the hub shows it beside a model: measured, never the paper's."""
    found = figures(run)
    if weights.task != "classification" or run is None or run.evaluation is None or "top1" not in found:
        return []
    data, split = str(run.evaluation["data"]), str(run.evaluation["split"])
    result = require_hub("A model card").EvalResult(
        task_type=_PIPELINES["classification"],
        dataset_type=data,
        dataset_name=data,
        dataset_split=split,
        metric_type="accuracy",
        metric_name="top-1 accuracy, percent",
        metric_value=found["top1"],
    )
    return [result]


def _sections(weights: Weights, name: str, run: Run | None, license_id: str | None) -> Iterator[str]:
    yield (
        f"RMT ([Retentive Networks Meet Vision Transformers]({PAPER}), CVPR 2024) in JAX and Flax NNX: "
        f"{weights.describe()}. Written by rmt_jax {__version__}."
    )
    yield _loading(weights, name)
    yield "## Model\n" + _table(_model_rows(weights))
    yield "## Where the weights come from\n" + _table(_origin_rows(weights))
    if run is not None:
        yield "## Training\n" + _training(run.recipe)
    yield "## Figures\n" + _figures_section(weights, run)
    yield "## Licence\n" + _licence(weights, license_id)
    yield f"## Citation\n```bibtex\n{_CITATION}\n```"


def _loading(weights: Weights, name: str) -> str:
    outputs = {
        "classification": "logits = model(images)  # [batch classes]",
        "segmentation": "logits = model(images)  # [batch height/4 width/4 classes]",
        "detection": "outputs = model(images)  # of all anchors, as encoded",
        "backbone": "maps = model(images)  # four, at strides 4, 8, 16 and 32",
    }
    return (
        f"```bash\npip install 'rmt-jax[hub]'\nrmt predict {name} picture.jpg\n```\n\n"
        if weights.task != "backbone"
        else "```bash\npip install 'rmt-jax[hub]'\n```\n\n"
    ) + (
        "```python\nimport rmt_jax\n\n"
        f'model = rmt_jax.load_pretrained("{name}")  # in evaluation mode\n'
        f"{outputs[weights.task]}; images: [batch height width 3] normalised floats\n```"
    )


def _model_rows(weights: Weights) -> Iterator[tuple[str, str]]:
    config = weights.config
    yield "architecture", weights.describe()
    yield "channels, depths", f"{_words(config.embed_dims)}; {_words(config.depths)}"
    known = weights.preprocessing
    yield "pictures", "preprocessing unknown" if known is None else f"{known}"
    if weights.task != "backbone":
        names = weights.class_names
        listed = "names unknown" if names is None else ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        yield "classes", f"{config.num_classes}: {listed} (all in config.json)"


def _origin_rows(weights: Weights) -> Iterator[tuple[str, str]]:
    yield "which", weights.kind
    origin: Mapping[str, Any] | None = weights.provenance
    while origin is not None:
        words = [f"{key} {origin[key]}" for key in ("layout", "entry", "step", "sha256") if key in origin]
        yield str(origin.get("source", "source")), ", ".join(words)
        origin = origin.get("before")


def _training(recipe: Mapping[str, Any]) -> str:
    return (
        f"{_table(_recipe_rows(recipe))}\n\n"
        "<details><summary>The whole recipe: config.json of the run, folders left out</summary>\n\n"
        f"```json\n{json.dumps(recipe, indent=1)}\n```\n</details>"
    )


def _recipe_rows(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, optimizer = recipe.get("data") or {}, recipe.get("optimizer") or {}
    yield "data", f"{data.get('name')}, split {data.get('train_split')}"
    for key in ("epochs", "steps", "batch_size", "ema_decay", "loss"):
        if recipe.get(key) is not None:
            yield key, str(recipe[key])
    for key in ("learning_rate", "weight_decay"):
        if key in optimizer:
            yield key, str(optimizer[key])


def _figures_section(weights: Weights, run: Run | None) -> str:
    found = figures(run)
    if run is not None and run.evaluation is not None and found:
        about = run.evaluation
        pictures = f", {about['pictures']:,} pictures" if "pictures" in about else ""
        return (
            f"Measured by rmt_jax on {about['data']}, split {about['split']}{pictures}, with these weights at step "
            f"{about['step']} (evaluation.json of the run; `python main.py --mode=eval` measures them again):\n\n"
            + _table((key, f"{value:.4g}") for key, value in found.items())
        )
    paper = PAPER_TOP1.get(weights.name)
    if run is None and _is_upstream(weights) and weights.config.num_classes == 1000 and paper is not None:
        return (
            f"Nothing was measured with these files. The paper gives {paper} % top-1 for this architecture "
            f"(ImageNet-1k, 224x224); that these are the weights of that figure is not known."
        )
    return "Nothing was measured with these weights."


def _is_upstream(weights: Weights) -> bool:
    """Whether they come from a classifier of the authors' layout."""
    origin: Mapping[str, Any] = weights.provenance
    while "before" in origin:
        origin = origin["before"]
    return str(origin.get("layout", "")).startswith("upstream")


def _licence(weights: Weights, license_id: str | None) -> str:
    stated = f"The weights: {license_id}." if license_id else "No licence of the weights is stated."
    if _is_upstream(weights):
        stated += f" They have the layout of the authors' code ({CODE}), whose repository has no licence at its root."
    return f"{stated} The code of rmt_jax is under Apache-2.0."


def _table(rows: Any) -> str:
    lines = [f"| {name} | {value} |".replace("\n", " ") for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _words(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} of the run cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} of the run must be a group of keys.")
    return {key: _without_folders(value) for key, value in content.items()}


def _without_folders(value: Any) -> Any:
    """Values of JSON; of paths the last part, since folders are nobody's business."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    return pathlib.PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~", ".")) else value
