"""Bars of measured speed, from what `rmt benchmark model` and `train` write with --json."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rmt_jax.training.figures import PALETTE

_WHAT = {"model": "forward pass", "train": "training step"}


class Measurement(NamedTuple):
    """One file.

    Attributes:
        title: what was measured, and on what.
        batch_size: pictures of a call.
        seconds: of the calls of each round, by the form that was called.
    """

    title: str
    batch_size: int
    seconds: dict[str, list[float]]


def read_measurement(path: pathlib.Path) -> Measurement:
    """What a benchmark wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        content: Any = json.loads(path.read_text())
        config, what = content["config"], _WHAT[content["measure"]]
        size, batch = config["data"]["image_size"], config["batch_size"]
        seconds = {str(name): [float(value) for value in rounds] for name, rounds in content["seconds"].items()}
        model, pictures = config["model"], f"{batch} of {size}x{size}"
        title = f"{model['name']}, {what}, {model['dtype']}, {pictures}\n{_devices(content)}"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no timings: expected a file that rmt benchmark model MODEL --json FILE, or train, wrote."
        ) from error
    if not seconds or not all(rounds and min(rounds) > 0 for rounds in seconds.values()):
        raise ValueError(f"{path} holds no timings: its rounds are empty or not positive.")
    return Measurement(title, int(batch), seconds)


def _devices(content: dict[str, Any]) -> str:
    """By name; of processors jax says no more than that they are some."""
    if "cpu" not in content["devices"]:
        return str(content["devices"])
    cores = content["environment"]["cores"]
    return f"{content['environment']['cpu']}, {cores} core{'s' * (cores > 1)}"


def draw_throughput(measurements: Sequence[Measurement]) -> Figure:
    """Pictures a second, and milliseconds a batch: the median of the rounds, and whiskers from the least to the most.

    A group of bars for each measurement, a colour for each form.
    """
    forms = list(dict.fromkeys(form for one in measurements for form in one.seconds))
    colours = {form: PALETTE[index % len(PALETTE)] for index, form in enumerate(forms)}
    bars = sum(len(one.seconds) for one in measurements)
    figure = Figure(figsize=(13, 1.3 + 0.34 * bars + 0.25 * len(measurements)), dpi=120, layout="constrained")
    speed, latency = figure.subplots(1, 2, sharey=True)
    place, centres = 0.0, []
    for one in measurements:
        first = place
        for form, rounds in one.seconds.items():
            times = np.asarray(rounds)
            _draw_bar(speed, place, one.batch_size / np.median(times), one.batch_size / times, colours[form])
            _draw_bar(latency, place, 1e3 * np.median(times), 1e3 * times, colours[form])
            place += 1
        centres.append((first + place - 1) / 2)
        place += 0.7
    speed.set_yticks(centres, [one.title for one in measurements], fontsize=8, parse_math=False)
    speed.set_ylim(place - 0.9, -0.8)
    speed.set_xlabel("images/s, more is better")
    latency.set_xlabel("ms a batch, less is better")
    for panel in (speed, latency):
        panel.set_xlim(left=0)
        panel.margins(x=0.16)
        panel.xaxis.set_major_formatter("{x:,.7g}")
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color="#E5E5E5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colour, label=form) for form, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_bar(panel: Axes, place: float, value: float, rounds: np.ndarray, colour: str) -> None:
    panel.barh(place, value, color=colour, height=0.82)
    low, high = rounds.min(), rounds.max()
    panel.plot([low, high], [place, place], color="black", linewidth=1.2, marker="|", markersize=6)
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    panel.annotate(text, (max(value, high), place), (6, 0), textcoords="offset points", va="center", fontsize=8)
