"""The command `rmt`: one module a subcommand."""

from rmt_jax.cli.main import main

__all__ = ["main"]
