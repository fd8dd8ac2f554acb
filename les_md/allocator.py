"""Keep freed memory in the process: training and MD steps allocate the same large blocks again and again."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to give memory back to the system; returns whether it did (False without glibc).

    By default every large tensor is mapped afresh, and its pages are zeroed by the kernel, at each step. This acts
    on the whole process, so only programs call it, never a library function.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))
