"""What weights say of themselves: the card that `Weights.card` makes, read again."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from rmt_jax.convert.preprocessing import DensePreprocessing, Preprocessing, read_preprocessing
from rmt_jax.models import RUN_TIME_FIELDS, RMTConfig

CARD_FORMAT = 1


class Card(NamedTuple):
    """What `Weights.card` made, read again; files of before the last three existed leave them None."""

    name: str
    task: str
    config: RMTConfig
    provenance: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    preprocessing: Preprocessing | DensePreprocessing | None = None
    head: str | None = None


def read_card(card: Any, where: str) -> Card:
    """What `Weights.card` made.

    Raises:
        ValueError: it is not one, or of a later version.
    """
    hint = "it was not written by `rmt convert`, or is damaged: convert the original again."
    if not isinstance(card, Mapping) or not isinstance(card.get("config"), Mapping):
        raise ValueError(f"{where} does not describe a model: {hint}")
    if card.get("rmt_jax") != CARD_FORMAT:
        raise ValueError(
            f"{where} is of format {card.get('rmt_jax')!r}, this version reads {CARD_FORMAT}: update rmt_jax."
        )
    try:
        config = RMTConfig(**fields_from_json(card["config"]))
        preprocessing = card.get("preprocessing")
        return Card(
            name=str(card["model"]),
            task=str(card["task"]),
            config=config,
            provenance=dict(card["provenance"]),
            class_names=read_class_names(card.get("class_names")),
            preprocessing=None if preprocessing is None else read_preprocessing(preprocessing),
            head=card.get("head"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} does not describe a model ({error}): {hint}") from error


def parse_card(text: str | bytes, where: str) -> Card:
    """`read_card` of JSON text."""
    try:
        card = json.loads(text)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{where} is damaged ({error}): convert the original again.") from error
    return read_card(card, where)


def read_class_names(values: Any) -> tuple[str, ...] | None:
    """Class names of JSON's, None where there are none.

    Raises:
        ValueError: something else is there.
    """
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"class names must be a list of texts, got {str(values)[:80]}")
    return tuple(values)


def fields_from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `RMTConfig`, whose tuples JSON made lists of; how the model was run does not count."""
    fields = {key: value for key, value in values.items() if key not in RUN_TIME_FIELDS}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
