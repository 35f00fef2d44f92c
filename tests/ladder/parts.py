"""Rungs of parts of the model, and of whole models."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from torch import nn

from rmt_jax.models import layers, rmt
from rmt_jax.models.block import FFN, Block, Retention
from rmt_jax.training.state import split_model
from tests import torch_rmt
from tests.ladder.case import (
    Case,
    Row,
)
from tests.ladder.comparing import (
    call,
    channels_first,
    compiled,
    error,
    models,
    pair,
)


def part_rows(case: Case, build: Callable[[nnx.Rngs], nnx.Module], theirs: nn.Module, *arguments: Any) -> Iterator[Row]:
    """A part's output; PyTorch's takes some arguments more."""
    ours, theirs = pair(case, build, theirs)
    x = case.input()
    yield Row("output", error(call(ours, case.ours(x)), theirs(case.theirs(x), *arguments)), "part")


def batch_norm(case: Case) -> Iterator[Row]:
    """BatchNorm in training mode: the outputs of two maps, and the running statistics after each."""
    build = functools.partial(layers.BatchNorm, case.dim, dtype=case.dtype)
    ours, theirs = pair(case, lambda rngs: build(rngs=rngs), nn.BatchNorm2d(case.dim))
    ours.train()
    theirs.train()
    graph, params, batch_stats = split_model(ours)

    @compiled
    def run(batch_stats: Any, x: Array) -> tuple[Array, Any]:
        module = nnx.merge(graph, params, batch_stats)
        return module(x), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    count, height, width = case.shape
    for salt in range(2):
        x = case.normal(count, height + 1, width + 1, case.dim, scale=case.scale, salt=salt)  # a variance needs several
        output, batch_stats = run(batch_stats, case.ours(x))
        expected = theirs(channels_first(case.theirs(x)))
        yield Row(f"output {salt}", error(output, expected.permute(0, 2, 3, 1)), "part")
        for name, value in batch_stats.items():
            yield Row(f"{name} {salt}", error(value, theirs.state_dict()[f"running_{name}"]), "statistic")


def retention(case: Case) -> Iterator[Row]:
    """The retention layer."""
    options: dict[str, Any] = {"decay_start": case.decay[0], "decay_span": case.decay[1], "dtype": case.dtype}
    is_decomposed = case.config.decomposed[case.stage]
    yield from part_rows(
        # An input as large as a LayerNorm makes it: logits are quadratic in it, and so are their roundings.
        dataclasses.replace(case, scale=1.0),
        lambda rngs: Retention(case.dim, case.heads, decomposed=is_decomposed, rngs=rngs, **options),
        torch_rmt.Retention(case.dim, case.heads, is_decomposed),
        case.relpos()(*case.shape[1:]),
    )


def ffn(case: Case) -> Iterator[Row]:
    """The feed-forward network."""
    hidden = int(case.dim * case.config.mlp_ratios[case.stage])
    theirs = torch_rmt.FeedForward(case.dim, hidden)
    yield from part_rows(case, lambda rngs: FFN(case.dim, hidden, dtype=case.dtype, rngs=rngs), theirs)


def their_block(case: Case) -> torch_rmt.Block:
    """The reference's block of the stage."""
    of_stage = (getattr(case.config, name)[case.stage] for name in ("mlp_ratios", "decomposed", "layer_scale"))
    return torch_rmt.Block(case.dim, case.heads, *of_stage)


def block(case: Case) -> Iterator[Row]:
    """A block."""
    yield from part_rows(
        case,
        lambda rngs: Block(case.config, case.stage, 0.0, dtype=case.dtype, rngs=rngs),
        their_block(case),
        case.relpos()(*case.shape[1:]),
    )


def stage(case: Case) -> Iterator[Row]:
    """A stage, and what its downsampling hands to the next."""
    depth, last = case.config.depths[case.stage], case.stage == 3
    following = None if last else case.config.embed_dims[case.stage + 1]
    ours, theirs = pair(
        case,
        lambda rngs: rmt.Stage(case.config, case.stage, [0.0] * depth, dtype=case.dtype, rngs=rngs),
        torch_rmt.Stage(case.relpos(), [their_block(case) for _ in range(depth)], case.dim, following),
    )
    x = case.input()

    def run(ours: rmt.Stage, x: Array) -> tuple[Array, Array]:
        y = ours(x)
        return y, y if ours.downsample is None else ours.downsample(y)

    outputs = zip(("map", "downsampled"), compiled(run)(ours, case.ours(x)), theirs(case.theirs(x)), strict=True)
    for name, our_output, their_output in outputs:
        yield Row(name, error(our_output, their_output), "part")


def stem(case: Case) -> Iterator[Row]:
    """The stem on images."""
    build = functools.partial(rmt.Stem, case.dim, dtype=case.dtype)
    ours, theirs = pair(case, lambda rngs: build(rngs=rngs), torch_rmt.PatchEmbed(case.dim))
    x = case.images()
    yield Row("output", error(call(ours, case.ours(x)), theirs(channels_first(case.theirs(x)))), "part")


def classifier(case: Case) -> Iterator[Row]:
    """Logits in evaluation mode; of starred models those with the auxiliary head's part."""
    ours, theirs = models(case)
    x = case.images()
    yield Row("logits", error(call(ours, jnp.asarray(x)), theirs(channels_first(case.theirs(x)))), "model")


def backbone(case: Case) -> Iterator[Row]:
    """The four maps."""
    ours, theirs = models(case)
    x = case.images()
    maps = zip(call(ours, jnp.asarray(x)), theirs(channels_first(case.theirs(x))), strict=True)
    for i, (our_map, their_map) in enumerate(maps, 1):
        yield Row(f"map {i}", error(our_map, their_map.permute(0, 2, 3, 1)), "model")
