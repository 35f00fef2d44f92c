"""A web page for trying a model: `rmt demo`. Imports gradio."""

from rmt_jax.demo.page import build_page, serve

__all__ = ["build_page", "serve"]
