"""What is asked of the C library: how the memory of weights is allocated, and how threads wait."""

from __future__ import annotations

import ctypes
import os

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 4 << 20


def return_large_blocks() -> None:
    """Let blocks of 4 MiB and more go back to the system when they are freed.

    Otherwise glibc raises that limit to the largest block it has seen freed, up to 32 MiB, and keeps smaller ones for later
    (mallopt(3), M_MMAP_THRESHOLD): a gigabyte, after the weights of a model have come and gone one by one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def use_huge_pages() -> None:
    """Let torch ask for huge pages for large tensors, unless the environment says otherwise; before its first one.

    A 1.1-billion-parameter export touches 18 GB of fresh memory: 4.4 million faults of small pages, or 2.1 million.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def let_threads_sleep() -> None:
    """Let torch's threads leave their cores while they wait, unless the environment says otherwise; before torch is imported.

    Weights are written beside what torch computes: a thread that spins until the others have caught up takes their time.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
