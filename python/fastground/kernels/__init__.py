"""The Triton kernels; the modules lie in the repository's top-level kernels/ folder."""
