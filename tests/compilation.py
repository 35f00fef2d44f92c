"""Compilation as most tests want it: quick, for they run a program once, and compiling it is what takes their time.

What users run is compiled in full by `python -m tests.parity`.
"""

import jax

from rmt_jax.ops import formulations

# XLA's older generator of code for CPUs takes two thirds of the time. JAX 0.11 has it no more, and its processes end
# where they are asked for it.
_OLDER_GENERATOR = jax.__version_info__ < (0, 11)

# LLVM does not optimise.
QUICK_FLAGS = "--xla_backend_optimization_level=0"
if _OLDER_GENERATOR:
    QUICK_FLAGS += " --xla_cpu_use_fusion_emitters=false"

# For `jax.jit`, where programs of different shapes are to give the same bits, as they do with the newer one.
SAME_BITS = {"xla_cpu_use_fusion_emitters": True} if _OLDER_GENERATOR else {}

# For `jax.jit`, where large maps are computed on: the gradients of a RetinaNet took 171 s compiled quickly, so 72.
IN_FULL = {"xla_backend_optimization_level": 3}

# One operation where a CPU by itself gets one for each tap of a kernel: a third of the time. Few tests are about the
# formulation; that all give the same is what those of tests/ops show, and upstream's numbers are reached with the ones
# that users get (test_parity.py, test_torch_parity.py).
QUICK_FORMULATIONS = {"depthwise": "convolution", "sums": "reduction", "reuse": "by_compiler"}

# All of it for processes that tests start.
QUICK_ENVIRONMENT = {
    "XLA_FLAGS": QUICK_FLAGS,
    formulations.ENVIRONMENT_VARIABLE: ",".join(f"{key}={value}" for key, value in QUICK_FORMULATIONS.items()),
}
