"""jax.jit that compiles quickly, for programs that run once."""

import functools

import jax

# A quarter of the compile time on CPUs: LLVM does not optimise, and fusions take XLA's older emitters.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
)
