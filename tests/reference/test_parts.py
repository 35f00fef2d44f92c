"""Parts, types and sizes of the PyTorch reference, and its independence."""

import ast
import importlib.util
import pathlib
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests import torch_rmt
from tests.reference.recorded import (
    OUTPUT_TOLERANCE,
    images,
    model_of,
    relative_error,
)


def test_parts_run_alone_on_their_share_of_the_weights() -> None:
    model = model_of("rmt_t")
    state = model.state_dict()

    def part(module: nn.Module, prefix: str) -> nn.Module:
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return module.eval()

    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 256)
    block = model.layers[2].blocks[1]
    positions = torch_rmt.RelPos(256, 8, start=2, span=6)(5, 7)
    prefix = "layers.2.blocks.1."
    with torch.no_grad():
        retention = part(torch_rmt.Retention(256, 8, decomposed=False), f"{prefix}retention.")
        assert torch.equal(retention(x, positions), block.retention(x, positions))
        assert torch.equal(part(torch_rmt.FeedForward(256, 768), f"{prefix}ffn.")(x), block.ffn(x))
        whole = part(torch_rmt.Block(256, 8, 3, decomposed=False), prefix)
        assert torch.equal(whole(x, positions), block(x, positions))
        image = torch.randn(2, 3, 33, 47)
        stem = part(torch_rmt.PatchEmbed(64), "patch_embed.")
        assert torch.equal(stem(image), model.patch_embed(image))


def test_attention_against_a_loop_over_positions() -> None:
    rng = np.random.default_rng(0)
    height, width = 3, 4
    q, k, v = rng.standard_normal((3, 1, 2, height, width, 6))
    decay = np.log([0.7, 0.9])

    def softmax_mean(logits: list[float], values: list[np.ndarray]) -> np.ndarray:
        shares = np.exp(logits) / np.sum(np.exp(logits))
        return np.sum([share * value for share, value in zip(shares, values, strict=True)], axis=0)

    full, rows, both = np.empty_like(v), np.empty_like(v), np.empty_like(v)
    grid = [(i, j) for i in range(height) for j in range(width)]
    for head in range(2):
        query, key, value = q[0, head], k[0, head], v[0, head]
        for i, j in grid:
            logits = [query[i, j] @ key[a, b] + decay[head] * (abs(i - a) + abs(j - b)) for a, b in grid]
            full[0, head, i, j] = softmax_mean(logits, [value[a, b] for a, b in grid])
            logits = [query[i, j] @ key[i, b] + decay[head] * abs(j - b) for b in range(width)]
            rows[0, head, i, j] = softmax_mean(logits, list(value[i]))
        for i, j in grid:
            logits = [query[i, j] @ key[a, j] + decay[head] * abs(i - a) for a in range(height)]
            both[0, head, i, j] = softmax_mean(logits, list(rows[0, head, :, j]))
    inputs = [torch.from_numpy(array) for array in (q, k, v, decay)]
    np.testing.assert_allclose(torch_rmt.full_attention(*inputs).numpy(), full, rtol=1e-12)
    np.testing.assert_allclose(torch_rmt.decomposed_attention(*inputs).numpy(), both, rtol=1e-12)


def test_double_precision() -> None:
    single, double = model_of("rmt_t"), model_of("rmt_t").double()
    x = images(102, [1, 3, 64, 96])
    with torch.no_grad():
        exact = double(x.double())
        error = relative_error(single(x).double(), exact.numpy())
    assert exact.dtype == torch.float64
    assert 1e-9 < error < OUTPUT_TOLERANCE
    assert all(p.dtype == torch.float64 for p in double.layers[0].Relpos(4, 4))


def test_bfloat16() -> None:
    single, half = model_of("rmt_t"), model_of("rmt_t").to(torch.bfloat16)
    for stage, rounded in zip(single.layers, half.layers, strict=True):
        for constant, kept in zip(stage.Relpos(20, 30), rounded.Relpos(20, 30), strict=True):
            assert kept.dtype == torch.float32
            assert torch.equal(constant, kept)
    x = images(102, [1, 3, 64, 96])
    with torch.no_grad():
        ours, reference = half(x.to(torch.bfloat16)), single(x)
    assert ours.dtype == torch.bfloat16
    # Eight bits of mantissa through fourteen blocks; measured 0.011.
    assert relative_error(ours.float(), reference.numpy()) < 0.05


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (47, 100)])
def test_sizes_are_halved_rounding_up(size: tuple[int, int]) -> None:
    model = torch_rmt.build("rmt_t", headless=True, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, *size))
    for i, output in enumerate(maps):
        expected_size = tuple(-(-side // 2 ** (i + 2)) for side in size)
        assert output.shape == (1, (64, 128, 256, 512)[i], *expected_size)


def test_impossible_options() -> None:
    for message, name, options in (
        ("no variant 'rmt_x'", "rmt_x", {}),
        ("aux_tap", "rmt_s_star", {"aux_tap": "head"}),
        ("no aux_head", "rmt_s_star", {"headless": True}),
        ("extra_norms", "rmt_s", {"extra_norms": True}),
    ):
        with pytest.raises(ValueError, match=message), torch.device("meta"):
            torch_rmt.build(name, **options)


# --- Independence ---

SOURCE = pathlib.Path(torch_rmt.__file__)


def imported_packages(source: str) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add("." if node.level else node.module.split(".")[0])
    return packages


def test_imports_are_torch_numpy_and_the_standard_library() -> None:
    allowed = {"torch", "numpy"} | set(sys.stdlib_module_names)
    assert imported_packages(SOURCE.read_text()) <= allowed
    assert not imported_packages("def f():\n    from rmt_jax.models import x") <= allowed
    assert not imported_packages("from . import parity") <= allowed
    assert "import_module" not in SOURCE.read_text()


def test_loads_by_path_without_side_effects() -> None:
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    spec = importlib.util.spec_from_file_location("reference", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    after = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert set(module.VARIANTS) == set(torch_rmt.VARIANTS)
