"""The page: a picture in, what a model says of it, and what each position of it attends to."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from rmt_jax.convert import Weights
from rmt_jax.data.segmentation import palette
from rmt_jax.demo.looking import Looking
from rmt_jax.training.object_figures import Found, draw_objects
from rmt_jax.training.prediction import Predictor, Settings
from rmt_jax.training.segmentation import overlay

TOP = 5  # classes that are shown
MEAN = "mean"  # of the heads, in their menu
_HEIGHT = 320  # pixels of the picture that is given
_HOW = """## What a position attends to
Click on the picture. The brighter a place, the more of it goes into the output of the marked position: the softmax of a
retention layer with its decay, in decomposed stages the product of both steps.
"""


def build_page(weights: Weights, settings: Settings, samples: Sequence[pathlib.Path] = ()) -> gr.Blocks:
    """The page for one model, not yet served.

    Args:
        weights: of a classifier, a segmentor, a detector, or a backbone alone, which predicts nothing.
        settings: how a segmentor or a detector predicts.
        samples: pictures to pick from.
    """
    with gr.Blocks(title=f"rmt_jax: {weights.name}", analytics_enabled=False) as page:
        gr.Markdown(f"# {weights.name}\n{weights.describe()}")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    type="pil", label="Picture", sources=["upload", "clipboard"], height=_HEIGHT, elem_id="picture"
                )
                if samples:
                    gr.Examples([str(path) for path in samples], inputs=picture, label="Or one of these")
            if weights.task != "backbone":
                with gr.Column():
                    _add_predictions(Predictor(weights, **settings._asdict()), picture)
        gr.Markdown(_HOW)
        _add_attention(Looking(weights), picture)
    return page


def serve(
    page: gr.Blocks,
    host: str,
    port: int | None,
    samples: Sequence[pathlib.Path] = (),
    *,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a page until Ctrl-C.

    Args:
        page: of `build_page`.
        host: the address to listen on.
        port: None takes the first free one from 7860 on.
        samples: the pictures that the page shows, which may be read.
        ready: called with the page's address once it is there.

    Raises:
        OSError: no such address, or the port is taken.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing from elsewhere
    folders = sorted({str(path.resolve().parent) for path in samples})
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        theme=theme,
        allowed_paths=folders,
        share=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
    )
    ready(url)
    page.block_thread()


def _add_predictions(predictor: Predictor, picture: gr.Image) -> None:
    if predictor.segments:
        _add_classes(predictor, picture)
    elif predictor.detects:
        _add_objects(predictor, picture)
    else:
        classes = gr.Label(num_top_classes=TOP, label="Classes", elem_id="classes")

        def predict(image: Image.Image | None) -> dict[str, float] | None:
            return None if image is None else _named(predictor, predictor.probabilities(image))

        picture.change(predict, picture, classes)


def _result(label: str, name: str, scale: int | None = None) -> gr.Image:
    """A picture of ours. Without the button that would send it to a place on the internet."""
    return gr.Image(label=label, elem_id=name, interactive=False, scale=scale, buttons=["download", "fullscreen"])


def _named(predictor: Predictor, shares: np.ndarray) -> dict[str, float]:
    """What `gr.Label` takes; classes of one name are told apart by their numbers."""
    names = predictor.class_names
    if len(set(names)) < len(names):
        names = tuple(f"{name} ({label})" for label, name in enumerate(names))
    return dict(zip(names, map(float, shares), strict=True))


def _add_classes(predictor: Predictor, picture: gr.Image) -> None:
    drawn = _result("Classes of the pixels", "drawn")
    classes = gr.Label(num_top_classes=TOP, label="Share of the picture", elem_id="classes")
    colours = palette(len(predictor.class_names))

    def predict(image: Image.Image | None) -> tuple[np.ndarray | None, dict[str, float] | None]:
        if image is None:
            return None, None
        found = predictor.classes(image)
        shares = np.bincount(found.ravel(), minlength=len(colours)) / found.size
        return overlay(np.asarray(image), found, colours), _named(predictor, shares)

    picture.change(predict, picture, [drawn, classes])


def _add_objects(predictor: Predictor, picture: gr.Image) -> None:
    drawn = _result("Objects", "drawn")
    score = gr.Slider(0, 1, value=0.3, label="Scores above", elem_id="score")
    table = gr.Dataframe(headers=["class", "score (%)", "x1", "y1", "x2", "y2"], label="Objects", elem_id="objects")
    found = gr.State()

    def predict(image: Image.Image | None) -> Found | None:
        return None if image is None else predictor.objects(image)

    def draw(image: Image.Image | None, found: Found | None, least: float) -> tuple[np.ndarray | None, list[list[Any]]]:
        if image is None or found is None:
            return None, []
        shown, names = found.above(least), predictor.class_names
        rows = [
            [names[label], round(100 * float(value), 1), *np.round(box.astype(float), 1).tolist()]
            for label, value, box in zip(shown.labels, shown.scores, shown.boxes, strict=True)
        ]
        return draw_objects(np.asarray(image), shown, names), rows

    inputs, outputs = [picture, found, score], [drawn, table]
    picture.change(predict, picture, found).then(draw, inputs, outputs)
    score.release(draw, inputs, outputs)


def _add_attention(looking: Looking, picture: gr.Image) -> None:
    first = looking.first_stage
    position = gr.State((0.5, 0.5))  # shares of width and height, which hold for the next picture too
    with gr.Row():
        seen = _result("As the model sees it", "seen", scale=2)
        with gr.Column():
            stages = list(range(1, len(looking.depths) + 1))
            stage = gr.Dropdown(stages, value=first, label="Stage", elem_id="stage")
            block = gr.Dropdown(**_blocks(looking, first), label="Block", elem_id="block")
            head = gr.Dropdown(**_heads(looking, first), label="Head", elem_id="head")
            words = gr.Markdown(elem_id="words")

    def show(
        image: Image.Image | None, stage: int, block: int, head: int | str, position: tuple[float, float]
    ) -> tuple[np.ndarray | None, str]:
        if image is None:
            return None, ""
        chosen = None if head == MEAN else int(head)
        return looking.look(image, stage=stage, block=block, head=chosen, position=position)

    def move(image: np.ndarray, event: gr.SelectData) -> tuple[float, float]:
        x, y = event.index
        return (x + 0.5) / image.shape[1], (y + 0.5) / image.shape[0]

    def choose(stage: int) -> tuple[gr.Dropdown, gr.Dropdown]:
        return gr.Dropdown(**_blocks(looking, stage)), gr.Dropdown(**_heads(looking, stage))

    inputs, outputs = [picture, stage, block, head, position], [seen, words]
    picture.change(show, inputs, outputs)
    stage.input(choose, stage, [block, head]).then(show, inputs, outputs)
    block.input(show, inputs, outputs)
    head.input(show, inputs, outputs)
    seen.select(move, seen, position).then(show, inputs, outputs)


def _blocks(looking: Looking, stage: int) -> dict[str, Any]:
    depth = looking.depths[stage - 1]
    return {"choices": list(range(depth)), "value": depth - 1}


def _heads(looking: Looking, stage: int) -> dict[str, Any]:
    return {"choices": [MEAN, *range(looking.heads[stage - 1])], "value": MEAN}
