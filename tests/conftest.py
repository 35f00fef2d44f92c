"""One session for all tests: eight virtual CPU devices, products in full float32, quick compilation."""

import os

import jax

# LLVM does not optimise: most tests run a program once, and compiling it is what takes their time. What users run is
# compiled in full by `python -m tests.parity`.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"

# Read when the backend starts, at the first computation.
devices = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_COMPILATION} {devices}".strip()

jax.config.update("jax_default_matmul_precision", "highest")
