"""One session for all tests: eight virtual CPU devices, products in full float32."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax

jax.config.update("jax_default_matmul_precision", "highest")
