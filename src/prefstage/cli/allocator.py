"""How the process of a command gets its memory: in huge pages, and kept once it has them."""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def tune_allocator() -> None:
    """Ask PyTorch for huge pages, and glibc to keep freed memory, unless the environment says else.

    This concerns the whole process, and so is for commands alone: a library that is imported
    leaves such choices to the program.
    """
    # PyTorch reads this at its first allocation. A training step allocates hundreds of MiB again
    # and again, and the kernel hands out and clears every page: 512 times fewer of 2 MiB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    # By itself glibc maps every large block anew and gives it back when it is freed, so that each
    # layer faults its pages in: up to a tenth of the time. mallopt(3): blocks up to 32 MiB come
    # from the heap, and its free end stays, up to 2 GiB.
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
