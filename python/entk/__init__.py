"""Exact empirical neural tangent kernels in bounded memory."""
