"""The recipe in words, for the summary table."""

from rmt_jax.training.config import Config


def describe_augmentation(config: Config) -> str:
    """What happens to training pictures, on the host and on the device."""
    data, augment, mix = config.data, config.data.augment, config.mix
    policy = augment.rand_augment
    parts = {
        f"crops of {_range(augment.crop_scale)} of the area": augment.crop_scale,
        f"flip {augment.flip:g}": augment.flip,
        f"RandAugment {policy.num_ops} x {policy.magnitude:g}": policy.num_ops,
        "ThreeAugment": augment.three_augment,
        f"colour jitter {augment.color_jitter:g}": augment.color_jitter,
        "turns, shifts, sizes": augment.rotate or augment.translate or augment.scale != (1.0, 1.0),
        f"{data.repeats} repeats over {data.repeat_replicas} replicas": data.repeats > 1,
        f"erasing {config.erasing:g}": config.erasing,
        f"mixup {mix.mixup:g}": mix.mixup,
        f"CutMix {mix.cutmix:g}": mix.cutmix,
        "mix-token": mix.mix_token,
        f"in groups of {mix.group}": mix.mixes_pictures or mix.mix_token,
    }
    return ", ".join(text for text, present in parts.items() if present) or "none"


def describe_loss(config: Config) -> str:
    """What is minimised."""
    distill = config.distill
    parts = {
        {"cross_entropy": "cross entropy", "bce": "binary cross entropy"}[config.loss]: True,
        f"labels smoothed by {config.label_smoothing:g}": config.label_smoothing,
        f"token labels of {config.data.token_labels.file}": config.data.token_labels.file,
        f"{distill.kind} distillation from {distill.teacher}, weight {distill.weight:g}": distill.teacher,
    }
    return ", ".join(text for text, present in parts.items() if present)


def _range(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:g}..{pair[1]:g}"
