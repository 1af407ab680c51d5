"""Kernels for NVIDIA GPUs in Triton. Each means what its namesake in `appliance_kernels.reference` says."""
