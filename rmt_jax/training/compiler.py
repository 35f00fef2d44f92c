"""Options of XLA that measured faster, by platform (docs/performance.md)."""

import functools

import jax

# XLA hands convolutions to a library that takes twice as long for RMT's as XLA itself, and plain products and
# reductions to the same library, which is faster there: named are those that it shall keep. And jax 0.10's drops
# optimization barriers before it fuses: every tap's gradient of a depthwise convolution computed all before it again.
_OPTIONS = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    },
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
    """For `jax.jit`; nothing where this XLA does not know an option, which is experimental and may go."""
    options = _OPTIONS.get(platform, {})
    if options:
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError:
            return {}
    return options
