"""Amounts of memory as people read them."""

from __future__ import annotations


def size(num_bytes: int) -> str:
    """`14.96 GiB`, or in MiB below one GiB."""
    if abs(num_bytes) >= 2**30:
        return f"{num_bytes / 2**30:.2f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB"
