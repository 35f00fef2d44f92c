"""The tests' PyTorch model in three forms, ready to be timed beside ours: the same weights, pictures and work."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rmt_jax.convert.verify import load_reference
from rmt_jax.models import RUN_TIME_FIELDS, RMTConfig

EAGER, CHANNELS_LAST, COMPILED = "torch eager", "torch channels-last", "torch compiled"


class TorchModel:
    """The PyTorch model of an architecture, with weights and a batch of pictures.

    Args:
        config: the architecture.
        weights: upstream's names and layouts, see `names.to_torch`.
        images: [batch height width 3] normalised floats.
        bfloat16: compute under autocast.
        gpu: on the GPU; otherwise on all cores.

    Raises:
        ImportError: no PyTorch, or an installation without the tests.
        ValueError: weights that are missing, or that the model does not have.
    """

    def __init__(
        self, config: RMTConfig, weights: Mapping[str, np.ndarray], images: np.ndarray, *, bfloat16: bool, gpu: bool
    ):
        self._reference = load_reference()
        import torch

        self._fields = {name: value for name, value in vars(config).items() if name not in RUN_TIME_FIELDS}
        self._weights = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        self._images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        self._bfloat16, self._device = bfloat16, "cuda" if gpu else "cpu"

    def logits(self) -> np.ndarray:
        """[1 classes] of the first picture in float32, in evaluation mode."""
        import torch

        with torch.no_grad():
            found = self._build(EAGER).eval()(self._images[:1].to(self._device))
        return np.asarray(found.cpu())

    def forms(self, *, train: bool, weight_decay: float, ema_decay: float) -> tuple[dict[str, Any], dict[str, str]]:
        """({form: function that starts the work, see `finish`}, {form that does not work: why}).

        The work is the forward pass in evaluation mode, or with `train` forward, cross entropy with soft targets,
        backward, AdamW and the moving average.
        """
        working, failures = {}, {}
        for form in (EAGER, CHANNELS_LAST, COMPILED):
            start = self._training_step(form, weight_decay, ema_decay) if train else self._forward(form)
            try:
                start()
                self.finish()
            except Exception as error:  # whatever the compiler of PyTorch raises
                if form != COMPILED:
                    raise
                failures[form] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            else:
                working[form] = start
        return working, failures

    def finish(self) -> None:
        """Wait until everything that was started is done."""
        import torch

        if self._device == "cuda":
            torch.cuda.synchronize()

    def _build(self, form: str) -> Any:
        import torch

        model = self._reference.RMT(**self._fields)
        found = model.load_state_dict(self._weights, strict=False)
        missing = [key for key in found.missing_keys if "Relpos" not in key and "num_batches_tracked" not in key]
        if missing or found.unexpected_keys:
            raise ValueError(f"The PyTorch model has other weights: {missing + found.unexpected_keys}")
        layout = torch.channels_last if form == CHANNELS_LAST else torch.contiguous_format
        return model.to(self._device, memory_format=layout)

    def _inputs(self, form: str) -> Any:
        import torch

        images = self._images.to(self._device)
        return images.to(memory_format=torch.channels_last) if form == CHANNELS_LAST else images

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self._device, dtype=torch.bfloat16) if self._bfloat16 else contextlib.nullcontext()

    def _forward(self, form: str) -> Callable[[], None]:
        import torch

        model, images = self._build(form).eval(), self._inputs(form)
        function = torch.compile(model) if form == COMPILED else model

        def start() -> None:
            with torch.inference_mode(), self._autocast():
                function(images)

        return start

    def _training_step(self, form: str, weight_decay: float, ema_decay: float) -> Callable[[], None]:
        import torch

        model, images = self._build(form).train(), self._inputs(form)
        function = torch.compile(model) if form == COMPILED else model
        targets = torch.softmax(torch.randn(len(images), self._fields["num_classes"], device=self._device), dim=-1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=weight_decay, fused=True)
        learned = list(model.parameters()) + [b for b in model.buffers() if b.is_floating_point()]
        average = [value.detach().clone() for value in learned]

        def start() -> None:
            with self._autocast():
                logits = function(images)
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(logits.float(), targets).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, learned, 1 - ema_decay)

        return start
