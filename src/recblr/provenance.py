"""The origin of a measured figure: command, commit, hardware and versions."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


def provenance(command: str, device: str = "cuda") -> dict[str, Any]:
    """Command, date, commit, hardware and versions, as JSON values.

    ``device`` is the kind of device that was used, "cpu" or "cuda"; GPU and CUDA are recorded for the
    latter.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    gpu = {}
    if device == "cuda" and torch.cuda.is_available():
        gpu["gpu"] = torch.cuda.get_device_name()
        versions["cuda"] = str(torch.version.cuda)
        if find_spec("triton"):
            versions["triton"] = version("triton")
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _commit(),
        "hardware": names[0] if names else platform.processor(),
        **gpu,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _commit() -> str | None:
    """The commit of the package, with "-dirty" if its files differ from it; None if it is installed."""
    package = Path(__file__).resolve().parent
    if not (package.parents[1] / ".git").exists():  # perhaps inside another repository
        return None

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        commit = git("rev-parse", "--short", "HEAD").stdout.strip()
        dirty = commit and git("diff", "--quiet", "HEAD", "--", ".").returncode
    except OSError:  # git is not installed
        return None
    return f"{commit}-dirty" if dirty else commit or None
