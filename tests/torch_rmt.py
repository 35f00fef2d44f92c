"""RMT in plain PyTorch: a second, independent implementation to compare numbers with.

Sources: the paper (Fan et al., "RMT: Retentive Networks Meet Vision Transformers", CVPR 2024, arXiv 2309.11523v6) and
written facts about how the authors' release (github qhfan/RMT, commit 32ea214; *upstream* below) behaves. It is written
from the facts, not from upstream's code, and shares nothing with the JAX package. Parameter names, shapes and their
order are upstream's, so upstream's checkpoints load as they are.

Inside, maps are [batch height width channels] as upstream's; images and the maps that a headless model returns are
[batch channels height width]. Stages are numbered 1 to 4 in prose, `layers.0` to `layers.3` in parameter names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FourInts = tuple[int, int, int, int]  # one for each stage, or the sides of a box
FourFloats = tuple[float, float, float, float]

AUX_TAPS = ("features", "proj", "norm", "activation")
AUX_LOGITS_WEIGHT = 0.5  # of the strongest token logits in a starred model's prediction
STEM_POSITIONS_PER_TOKEN = 8  # along each axis, from the stem (stride 4) to stage 4 (stride 32)


class Positions(NamedTuple):
    """What retention knows about positions: sine and cosine [height width head_dim], log decay rates [heads]."""

    sin: Tensor
    cos: Tensor
    decay: Tensor


def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotary encoding of [... height width head_dim]: pair (x0, x1) becomes (x0 cos - x1 sin, x1 cos + x0 sin)."""
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    even, odd = wide[..., 0::2], wide[..., 1::2]
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)


def axis_bias(decay: Tensor, size: int) -> Tensor:
    """Log decay rates [heads] times the distances along one axis: [heads size size]."""
    index = torch.arange(size, device=decay.device)
    return decay[:, None, None] * (index[:, None] - index).abs()


def manhattan_bias(decay: Tensor, height: int, width: int) -> Tensor:
    """Log decay rates [heads] times the Manhattan distances on a grid: [heads height*width height*width]."""
    index = torch.arange(height * width, device=decay.device)
    row, column = index // width, index % width
    return decay[:, None, None] * ((row[:, None] - row).abs() + (column[:, None] - column).abs())


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v, each [... positions channels]; k comes scaled, the softmax is in float32 at least."""
    logits = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) + bias
    return logits.softmax(dim=-1).to(v.dtype) @ v


def full_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Every position attends to every other; q, k, v and the result are [batch heads height width head_dim]."""
    height, width = q.shape[2:4]
    flat = attend(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3), manhattan_bias(decay, height, width))
    return flat.unflatten(2, (height, width))


def decomposed_attention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """Attention along the width, then along the height of its result; same layout as `full_attention`."""
    height, width = q.shape[2:4]
    across = attend(q, k, v, axis_bias(decay, width)[:, None])
    q, k, across = (x.transpose(2, 3) for x in (q, k, across))
    return attend(q, k, across, axis_bias(decay, height)[:, None]).transpose(2, 3)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drops a residual branch for whole samples and scales the others by 1 / keep."""
    if rate == 0.0 or not training:
        return x
    keep = 1.0 - rate
    return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep) / keep


def mix_tokens(x: Tensor, box: FourInts, scale: int = 1) -> Tensor:
    """Takes `scale` times (top, left, bottom, right) of [batch height width channels] from the batch in reverse."""
    top, left, bottom, right = (scale * side for side in box)
    mixed = x.clone()
    mixed[:, top:bottom, left:right] = x.flip(0)[:, top:bottom, left:right]
    return mixed


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer in upstream's initialisation: std 0.02, cut at +-2 absolute (so nothing is cut), bias zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """A convolution in PyTorch's own initialisation, as all of upstream's: weight, bias within +-1/sqrt(fan_in)."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class DepthwiseConv(nn.Module):
    """Depthwise convolution with bias of [batch height width channels]."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """[batch height width channels] to the same."""
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class RelPos(nn.Module):
    """A stage's constants: rotary angles [head_dim] and log decay rates [heads], stored but not learned.

    They are computed in PyTorch's default type: float32's are upstream's to the bit, roundings included.
    """

    angle: Tensor
    decay: Tensor

    def __init__(self, dim: int, heads: int, start: float, span: float) -> None:
        super().__init__()
        angle = 1.0 / 10000 ** torch.linspace(0, 1, dim // heads // 2)
        decay = torch.log(1 - 2 ** (-start - span * torch.arange(heads, dtype=torch.get_default_dtype()) / heads))
        self.register_buffer("angle", angle.repeat_interleave(2))
        self.register_buffer("decay", decay)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RelPos":
        """Convert, but to nothing narrower than float32; `double()` keeps float32's values, as upstream's would."""

        def convert(constant: Tensor) -> Tensor:
            converted = fn(constant)
            return converted if torch.finfo(converted.dtype).bits >= 32 else constant.to(converted.device)

        return super()._apply(convert, recurse)

    def forward(self, height: int, width: int) -> Positions:
        """Phases are angle times the *flat* index row * width + column."""
        index = torch.arange(height * width, device=self.angle.device, dtype=self.angle.dtype)
        phase = (index[:, None] * self.angle).unflatten(0, (height, width))
        return Positions(phase.sin(), phase.cos(), self.decay)


class Retention(nn.Module):
    """Manhattan self-attention (the paper's MaSA) with local enhancement by a 5x5 depthwise convolution of v."""

    def __init__(self, dim: int, heads: int, decomposed: bool) -> None:
        super().__init__()
        self.heads, self.decomposed = heads, decomposed
        self.q_proj, self.k_proj, self.v_proj = linear(dim, dim), linear(dim, dim), linear(dim, dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.out_proj = linear(dim, dim)

    def split_heads(self, x: Tensor) -> Tensor:
        """[batch height width channels] to [batch heads height width head_dim]."""
        return x.unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """[batch height width channels] to the same."""
        v = self.v_proj(x)
        q = self.split_heads(self.q_proj(x))
        k = self.split_heads(self.k_proj(x))
        k = k * k.shape[-1] ** -0.5
        q, k = (rotate(part, positions.sin, positions.cos) for part in (q, k))
        attention = decomposed_attention if self.decomposed else full_attention
        mixed = attention(q, k, self.split_heads(v), positions.decay)
        return self.out_proj(mixed.permute(0, 2, 3, 1, 4).flatten(-2) + self.lepe(v))


class FeedForward(nn.Module):
    """Two linear layers with exact GELU and a residual 3x3 depthwise convolution between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(dim, hidden), linear(hidden, dim)
        self.dwconv = DepthwiseConv(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch height width channels] to the same."""
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class Block(nn.Module):
    """Conditional position encoding, retention and feed-forward, each on a residual branch."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float,
        decomposed: bool,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_rate, self.scaled = drop_rate, layer_scale is not None
        self.retention_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        self.retention = Retention(dim, heads, decomposed)
        self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = FeedForward(dim, int(dim * mlp_ratio))
        self.pos = DepthwiseConv(dim, 3)
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((1, 1, 1, dim), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((1, 1, 1, dim), layer_scale))

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """[batch height width channels] to the same."""
        x = x + self.pos(x)
        branch = self.retention(self.retention_layer_norm(x), positions)
        x = x + drop_path(self.gamma_1 * branch if self.scaled else branch, self.drop_rate, self.training)
        branch = self.ffn(self.final_layer_norm(x))
        return x + drop_path(self.gamma_2 * branch if self.scaled else branch, self.drop_rate, self.training)


class Downsample(nn.Module):
    """3x3 convolution with stride 2, then BatchNorm; any size, rounded up."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.reduction = conv3x3(dim, outputs, stride=2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[batch height width channels] to [batch ceil(height/2) ceil(width/2) outputs]."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Blocks that share their constants, and the downsampling to the next stage (`downsample_to` channels) if any."""

    def __init__(self, relpos: RelPos, blocks: list[Block], dim: int, downsample_to: int | None = None) -> None:
        super().__init__()
        self.Relpos = relpos  # upstream's spelling, part of the parameter names
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if downsample_to is None else Downsample(dim, downsample_to)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[batch height width channels] to the blocks' output and what the next stage gets (the last: the same)."""
        positions = self.Relpos(*x.shape[1:3])
        for block in self.blocks:
            x = block(x, positions)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """The stem, as `proj`: four 3x3 convolutions, each with BatchNorm, GELU between them, none at the end."""

    def __init__(self, dim: int, channels: int = 3) -> None:
        super().__init__()
        half = dim // 2
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((channels, half, 2), (half, half, 1), (half, dim, 2), (dim, dim, 1)):
            layers += [conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """[batch channels height width] to [batch ceil(height/4) ceil(width/4) dim]."""
        return self.proj(images).permute(0, 2, 3, 1)


class RMT(nn.Module):
    """The classifier, starred with `aux_head`, or with `headless` the backbone of detectors and segmentors.

    `aux_tap` says what the aux head reads: stage 4's output ("features"), or what comes after the projection ("proj"),
    its BatchNorm ("norm") or its SiLU ("activation").
    """

    def __init__(
        self,
        *,
        embed_dims: FourInts,
        depths: FourInts,
        num_heads: FourInts,
        mlp_ratios: FourFloats,
        decay_spans: FourFloats,
        decomposed: tuple[bool, bool, bool, bool] = (True, True, True, False),
        layer_scale: tuple[float | None, float | None, float | None, float | None] = (None, None, None, None),
        drop_path: float = 0.0,
        decay_start: float = 2,
        proj_dim: int = 1024,
        num_classes: int = 1000,
        aux_head: bool = False,
        aux_tap: str = "features",
        extra_norms: bool = False,
        pyramid_features: int = 256,
        headless: bool = False,
    ) -> None:
        del pyramid_features  # of detectors and segmentors
        super().__init__()
        if aux_tap not in AUX_TAPS:
            raise ValueError(f"aux_tap must be one of {', '.join(AUX_TAPS)}, not {aux_tap!r}")
        if aux_head and headless:
            raise ValueError("a headless model has no aux_head")
        if extra_norms and not headless:
            raise ValueError("extra_norms belong to headless models")
        self.aux_tap, self.headless = aux_tap, headless
        self.patch_embed = PatchEmbed(embed_dims[0])
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())  # on "meta" there is no value
        self.layers = nn.ModuleList()
        for i, dim in enumerate(embed_dims):
            relpos = RelPos(dim, num_heads[i], decay_start, decay_spans[i])
            options = (dim, num_heads[i], mlp_ratios[i], decomposed[i], layer_scale[i])
            blocks = [Block(*options, next(rates)) for _ in range(depths[i])]
            self.layers.append(Stage(relpos, blocks, dim, embed_dims[i + 1] if i < 3 else None))
        if headless:
            norms = [nn.LayerNorm(dim, eps=1e-5) for dim in embed_dims]  # unlike the blocks' 1e-6
            self.extra_norms = nn.ModuleList(norms) if extra_norms else None
            return
        self.proj = linear(embed_dims[3], proj_dim)
        self.norm = nn.BatchNorm2d(proj_dim)
        self.head = linear(proj_dim, num_classes)
        aux_inputs = embed_dims[3] if aux_tap == "features" else proj_dim
        self.aux_head = linear(aux_inputs, num_classes) if aux_head else None

    def forward(self, images: Tensor, mix_box: FourInts | None = None) -> Tensor | tuple[Tensor, ...]:
        """[batch 3 height width] to logits [batch classes], or the four maps [batch channels height width] if headless.

        A starred model in training gives (logits, token logits [batch height width classes]). Only there `mix_box` may
        be given: (top, left, bottom, right) in tokens of stage 4. What the box holds is swapped between the batch and
        its reverse after the stem, and swapped back in the token logits.
        """
        x = self.patch_embed(images)
        if mix_box is not None:
            if self.headless or self.aux_head is None or not self.training:
                raise ValueError("mix_box needs a model with aux_head in training mode")
            if any(size % STEM_POSITIONS_PER_TOKEN for size in x.shape[1:3]):
                raise ValueError(f"mix_box needs image sides that are multiples of 32, not {tuple(images.shape[2:])}")
            x = mix_tokens(x, mix_box, STEM_POSITIONS_PER_TOKEN)
        maps = []
        for stage in self.layers:
            features, x = stage(x)
            maps.append(features)
        if self.headless:
            if self.extra_norms is not None:
                maps = [norm(features) for norm, features in zip(self.extra_norms, maps, strict=True)]
            return tuple(features.permute(0, 3, 1, 2) for features in maps)
        taps = {"features": x, "proj": self.proj(x)}
        taps["norm"] = self.norm(taps["proj"].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        taps["activation"] = F.silu(taps["norm"])
        logits = self.head(taps["activation"].mean(dim=(1, 2)))
        if self.aux_head is None:
            return logits
        tokens = self.aux_head(taps[self.aux_tap])
        if not self.training:
            return logits + AUX_LOGITS_WEIGHT * tokens.amax(dim=(1, 2))
        return logits, tokens if mix_box is None else mix_tokens(tokens, mix_box)


def _variant(dims: tuple[int, ...], depths: tuple[int, ...], heads: tuple[int, ...], **options: Any) -> dict[str, Any]:
    defaults = {"mlp_ratios": (4, 4, 3, 3), "decay_spans": (4, 4, 6, 6)}
    return {"embed_dims": dims, "depths": depths, "num_heads": heads, **defaults, **options}


_FULL_FROM_STAGE_3 = {"mlp_ratios": (3, 3, 3, 3), "decomposed": (True, True, False, False)}
_SCALED = {"layer_scale": (None, None, 1e-6, 1e-6)}
VARIANTS: dict[str, dict[str, Any]] = {
    "rmt_t": _variant((64, 128, 256, 512), (2, 2, 8, 2), (4, 4, 8, 16), drop_path=0.1, **_FULL_FROM_STAGE_3),
    "rmt_s": _variant((64, 128, 256, 512), (3, 4, 18, 4), (4, 4, 8, 16), drop_path=0.15),
    "rmt_b": _variant(
        (80, 160, 320, 512), (4, 8, 25, 8), (5, 5, 10, 16), decay_spans=(5, 5, 6, 6), drop_path=0.4, **_SCALED
    ),
    "rmt_l": _variant(
        (112, 224, 448, 640), (4, 8, 25, 8), (7, 7, 14, 20), decay_spans=(6, 6, 6, 6), drop_path=0.5, **_SCALED
    ),
}
VARIANTS |= {f"{name}_star": {**VARIANTS[name], "aux_head": True} for name in ("rmt_s", "rmt_b", "rmt_l")}


def build(name: str, **overrides: Any) -> RMT:
    """The model of that name, with its own drop path rate unless another is given, or with other options."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}: choose from {', '.join(VARIANTS)}")
    return RMT(**{**VARIANTS[name], **overrides})
