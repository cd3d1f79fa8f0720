"""The fast path of a training on one NVIDIA GPU: the same mathematics as the plain one, with fewer and larger kernels."""
