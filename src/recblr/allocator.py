"""Memory that a process frees and soon needs again."""

import ctypes
import platform


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the rest of the process.

    As it is, glibc gives large blocks back to the system at once, and every new tensor is fresh pages,
    which take longer to come by than to fill: training on a CPU is 10 to 15% slower so. For a process
    that trains or measures, not for one that others share. Elsewhere than on glibc nothing is done.
    """
    if platform.libc_ver()[0] == "glibc":
        library, trim_threshold, mmap_max = ctypes.CDLL(None), -1, -4  # of malloc.h
        library.mallopt(trim_threshold, -1)
        library.mallopt(mmap_max, 0)
