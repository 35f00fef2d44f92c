"""`rmt benchmark compile`: what passes before the first step is over."""

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rmt_jax.cli.output import Console, say

if TYPE_CHECKING:
    from rmt_jax.training.config import Config


def measure_start(config: "Config", title: str) -> dict[str, Any]:
    """Measure and print what passes before the first step of a recipe is over, and what the host does for a step."""
    from rmt_jax.training.speed import dispatch_seconds, model_of, train_candidate

    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "from rmt_jax import create_model, load_pretrained"], check=True)
    rows = {"import rmt_jax with models and weights, in a process of its own": time.perf_counter() - started}
    started = time.perf_counter()
    model = model_of(config)
    rows["draw the weights"] = time.perf_counter() - started
    ours = train_candidate(config, model)
    rows |= {
        "trace the training step": ours.compilation.trace,
        "compile it": ours.compilation.compile,
        "run it for the first time": ours.compilation.first_run,
    }
    dispatch = dispatch_seconds(ours.work)
    table = Table(title=f"Start of {title}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", style="cyan", no_wrap=True)
    table.add_column("seconds", justify="right")
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.2f}")
    Console().print(table)
    say(f"Each further step keeps the host for {dispatch * 1e3:.1f} ms.")
    return {"seconds": rows, "dispatch_seconds": dispatch}
