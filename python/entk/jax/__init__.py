"""Factors of any JAX function: Flax, Equinox, Haiku or plain, unmodified."""

from entk.jax._factors import factors as factors

__all__ = ["factors"]
