"""Assignment against the rules read one after the other. Upstream's numbers are in tests/reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmt_jax.ops import MatchRule, assign, box_iou, prepend_ground_truths
from tests.ops.boxes import random_boxes

RULES = {
    "rpn": MatchRule(0.7, 0.3, low_quality=0.3),
    "retinanet": MatchRule(0.5, 0.4, low_quality=0.0),
    "cascade": MatchRule(0.6, 0.6),
}


def naive(iou: np.ndarray, rule: MatchRule) -> list[int]:
    """Of each box the object, -1 for background, -2 if ignored; iou is [objects boxes]."""
    result = [-2] * iou.shape[1]
    for box, column in enumerate(iou.T):
        if column.max() < rule.negative:
            result[box] = -1
        if column.max() >= rule.positive:
            result[box] = int(column.argmax())
    for row_index, row in enumerate(iou):
        if rule.low_quality is not None and row.max() >= rule.low_quality:
            for box in np.flatnonzero(row == row.max()):
                result[box] = row_index
    return result


def numbers(found: object) -> np.ndarray:
    return np.where(found.positive, found.ground_truth, np.where(found.negative, -1, -2))


@pytest.mark.parametrize("rule", RULES)
def test_padding_of_boxes_and_objects_has_no_effect(rule: str) -> None:
    """Compiled as for users, two pictures at once: one with five objects and one with none that touches a box."""
    boxes = np.concatenate([random_boxes(60, seed=1), random_boxes(4, seed=1)])  # some are there twice
    gts = np.zeros((2, 8, 4), np.float32)
    gts[0, :5], gts[1, 0] = random_boxes(5, seed=2, sides=(20, 60)), [300, 300, 320, 330]
    gts[:, 5:] = random_boxes(3, seed=3)  # in slots that do not count
    valid_gts = np.zeros((2, 8), bool)
    valid_gts[0, :5] = valid_gts[1, :1] = True
    valid = np.arange(64) % 7 != 3
    arguments = [jnp.asarray(array) for array in (boxes, valid, gts, valid_gts)]
    together = jax.jit(jax.vmap(functools.partial(assign, rule=RULES[rule]), in_axes=(None, None, 0, 0)))
    options = {"xla_backend_optimization_level": 3}
    found = together.lower(*arguments).compile(compiler_options=options)(*arguments)
    for index in range(2):
        iou = np.asarray(box_iou(jnp.asarray(gts[index][valid_gts[index]]), jnp.asarray(boxes[valid])))
        one = jax.tree.map(lambda array, index=index: np.asarray(array[index]), found)
        np.testing.assert_array_equal(numbers(one)[valid], naive(iou, RULES[rule]))
        np.testing.assert_array_equal(one.iou[valid], iou.max(axis=0))
        assert not one.positive[~valid].any()
        assert not one.negative[~valid].any()


def test_without_objects_every_box_is_background() -> None:
    boxes, valid = jnp.asarray(random_boxes(9, seed=1)), jnp.arange(9) < 7
    for rule in RULES.values():
        found = jax.jit(assign, static_argnums=4)(boxes, valid, jnp.zeros((3, 4)), jnp.zeros(3, bool), rule)
        assert not found.positive.any()
        np.testing.assert_array_equal(found.negative, valid)
        assert not found.iou.any()


def test_objects_before_the_boxes_are_their_own() -> None:
    boxes, gts = jnp.asarray(random_boxes(6, seed=1)), jnp.asarray(random_boxes(3, seed=2)).at[1].set(0)
    gts = gts.at[2].set(gts[0])  # the same box twice: each is its own all the same
    valid = jnp.asarray([True, False, True])
    found = assign(boxes, jnp.ones(6, bool), gts, valid, RULES["cascade"])
    together, assignment = prepend_ground_truths(boxes, found, gts, valid)
    np.testing.assert_array_equal(together, jnp.concatenate([gts, boxes]))
    np.testing.assert_array_equal(numbers(assignment), [0, -2, 2, *numbers(found)])


def test_rules_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match=r"positive=0.3, negative=0.5: expected 0 <= negative <= positive"):
        MatchRule(0.3, 0.5)
