"""Weights from and to upstream's names and layouts."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

from rmt_jax.convert import from_torch, relpos_constants, to_torch, torch_key
from rmt_jax.models import Classifier, list_models
from rmt_jax.models.arrays import flat_paths, model_arrays
from tests.models.small import abstract, small

StateDict = dict[str, np.ndarray]


def weights(model: Classifier) -> dict[str, np.ndarray]:
    return {path: np.array(leaf) for path, leaf in flat_paths(model_arrays(model))}


def assert_equal(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert ours.keys() == expected.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path, strict=True)


@pytest.mark.parametrize("name", ["rmt_nano", "rmt_t", "rmt_b", "rmt_s_star", "rmt_l_star"])
def test_there_and_back_is_exact(name: str) -> None:
    source, target = small(name, seed=1), small(name, seed=2)
    from_torch(to_torch(model_arrays(source)), target)
    assert_equal(weights(target), weights(source))


@pytest.mark.parametrize("name", ["rmt_nano", "rmt_b", "rmt_s_star"])
def test_back_and_there_is_exact(name: str) -> None:
    state_dict = to_torch(model_arrays(small(name, seed=1)))
    target = small(name, seed=2)
    from_torch(state_dict, target)
    assert_equal(to_torch(model_arrays(target)), state_dict)


@pytest.mark.parametrize("name", list_models())
def test_every_array_has_a_key_of_its_own(name: str) -> None:
    paths = [path for path, _ in flat_paths(model_arrays(abstract(name)))]
    assert len({torch_key(path) for path in paths}) == len(paths) > 100


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("backbone/patch_embed/proj/0/kernel", "patch_embed.proj.0.weight"),
        ("backbone/patch_embed/proj/1/scale", "patch_embed.proj.1.weight"),
        ("backbone/patch_embed/proj/1/mean", "patch_embed.proj.1.running_mean"),
        ("backbone/layers/0/blocks/1/pos/kernel", "layers.0.blocks.1.pos.conv.weight"),
        ("backbone/layers/0/blocks/1/retention/q_proj/kernel", "layers.0.blocks.1.retention.q_proj.weight"),
        ("backbone/layers/0/blocks/1/retention/lepe/bias", "layers.0.blocks.1.retention.lepe.conv.bias"),
        ("backbone/layers/2/blocks/10/ffn/dwconv/kernel", "layers.2.blocks.10.ffn.dwconv.conv.weight"),
        ("backbone/layers/2/blocks/0/gamma_1", "layers.2.blocks.0.gamma_1"),
        ("backbone/layers/1/blocks/0/final_layer_norm/scale", "layers.1.blocks.0.final_layer_norm.weight"),
        ("backbone/layers/0/downsample/reduction/bias", "layers.0.downsample.reduction.bias"),
        ("backbone/layers/0/downsample/norm/var", "layers.0.downsample.norm.running_var"),
        ("proj/kernel", "proj.weight"),
        ("norm/mean", "norm.running_mean"),
        ("head/bias", "head.bias"),
        ("aux_head/kernel", "aux_head.weight"),
    ],
)
def test_names_are_upstreams(path: str, key: str) -> None:
    assert torch_key(path) == key


def test_layouts_are_pytorchs() -> None:
    model = small("rmt_b", embed_dims=(8, 12, 16, 24))
    ours, theirs = weights(model), to_torch(model_arrays(model))
    conv = ours["backbone/layers/0/downsample/reduction/kernel"]  # height width in out
    assert theirs["layers.0.downsample.reduction.weight"].shape == (12, 8, 3, 3)
    assert theirs["layers.0.downsample.reduction.weight"][5, 3, 0, 2] == conv[0, 2, 3, 5]
    depthwise = ours["backbone/layers/1/blocks/0/retention/lepe/kernel"]
    assert theirs["layers.1.blocks.0.retention.lepe.conv.weight"].shape == (12, 1, 5, 5)
    assert theirs["layers.1.blocks.0.retention.lepe.conv.weight"][7, 0, 1, 4] == depthwise[1, 4, 0, 7]
    assert theirs["proj.weight"][2, 7] == ours["proj/kernel"][7, 2]
    assert theirs["layers.2.blocks.0.gamma_2"].shape == (1, 1, 1, 16)


def remove(state_dict: StateDict) -> None:
    del state_dict["head.bias"]


def add(state_dict: StateDict) -> None:
    state_dict["layers.0.blocks.0.extra.weight"] = np.zeros((2, 3), np.float32)


def widen(state_dict: StateDict) -> None:
    state_dict["proj.weight"] = np.zeros((12, 17), np.float32)


def transpose(state_dict: StateDict) -> None:
    state_dict["layers.0.blocks.0.ffn.fc1.weight"] = state_dict["layers.0.blocks.0.ffn.fc1.weight"].T


def other_decay(state_dict: StateDict) -> None:
    state_dict["layers.1.Relpos.decay"] *= np.float32(1.001)


def other_angles(state_dict: StateDict) -> None:
    state_dict["layers.3.Relpos.angle"] = state_dict["layers.3.Relpos.angle"][::2]


def not_a_number(state_dict: StateDict) -> None:
    state_dict["layers.2.Relpos.angle"][0] = np.nan


MISTAKES: dict[Callable[[StateDict], None], str] = {
    remove: r"missing: head\.bias \(for head/bias\)",
    add: r"unexpected: layers\.0\.blocks\.0\.extra\.weight \(2, 3\)",
    widen: r"shape: proj\.weight is \(12, 17\), this model needs \(12, 16\)",
    transpose: r"shape: layers\.0\.blocks\.0\.ffn\.fc1\.weight is \(8, 16\), this model needs \(16, 8\)",
    other_decay: r"constant: layers\.1\.Relpos\.decay differs by 1\.0e-03",
    other_angles: r"constant: layers\.3\.Relpos\.angle is \(4,\), this model's is \(8,\)",
    not_a_number: r"constant: layers\.2\.Relpos\.angle differs by nan",
}


def complete(model: Classifier) -> StateDict:
    """All that upstream's file of this model holds."""
    constants = {key: value.copy() for key, value in relpos_constants(model.config).items()}
    counters = {"patch_embed.proj.1.num_batches_tracked": np.array(100), "norm.num_batches_tracked": np.array(100)}
    return to_torch(model_arrays(model)) | constants | counters


def test_constants_and_counters_are_accepted() -> None:
    target = small(seed=2)
    from_torch(complete(small(seed=1)), target)
    assert_equal(weights(target), weights(small(seed=1)))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_each_mistake_is_an_error_and_leaves_the_model_alone(mistake: Callable[[StateDict], None]) -> None:
    state_dict, target = complete(small(seed=1)), small(seed=2)
    mistake(state_dict)
    with pytest.raises(ValueError, match=rf"1 problem\(s\):\n  {MISTAKES[mistake]}"):
        from_torch(state_dict, target)
    assert_equal(weights(target), weights(small(seed=2)))


def test_all_mistakes_are_reported_together() -> None:
    state_dict = complete(small())
    for mistake in MISTAKES:
        mistake(state_dict)
    with pytest.raises(ValueError, match=rf"{len(MISTAKES)} problem\(s\)") as error:
        from_torch(state_dict, small())
    for message in MISTAKES.values():
        assert error.match(message)


def test_weights_of_a_starred_model_do_not_fit_a_plain_one_nor_the_reverse() -> None:
    plain, star = small("rmt_s"), small("rmt_s_star")
    with pytest.raises(ValueError, match=r"unexpected: aux_head\.bias"):
        from_torch(complete(star), plain)
    with pytest.raises(ValueError, match=r"missing: aux_head\.bias"):
        from_torch(complete(plain), star)


def test_constants_tell_architectures_of_the_same_shapes_apart() -> None:
    """Only the decay spans differ."""
    with pytest.raises(ValueError, match=r"constant: layers\.0\.Relpos\.decay differs"):
        from_torch(complete(small(decay_spans=(5, 4, 6, 6))), small())


def test_half_precision_files_become_float32() -> None:
    target = small(seed=2)
    halves = {key: value.astype(np.float16) for key, value in to_torch(model_arrays(small(seed=1))).items()}
    from_torch(halves, target)
    assert {leaf.dtype for leaf in jax.tree.leaves(model_arrays(target))} == {np.dtype("float32")}
    np.testing.assert_array_equal(weights(target)["proj/kernel"], halves["proj.weight"].T.astype(np.float32))


def test_the_model_keeps_a_copy() -> None:
    state_dict = {key: np.array(value) for key, value in complete(small(seed=1)).items()}
    target = small(seed=2)
    from_torch(state_dict, target)
    for array in state_dict.values():
        array[...] = 0
    assert_equal(weights(target), weights(small(seed=1)))


def test_gradients_convert_as_weights_do() -> None:
    model = small()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    doubled = to_torch(jax.tree.map(lambda leaf: 2 * leaf, params))
    plain = to_torch(params)
    assert_equal(doubled, {key: 2 * value for key, value in plain.items()})
