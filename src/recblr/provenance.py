"""What a measured figure stands beside."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance(command: str, device: str = "cuda") -> dict[str, Any]:
    """Command, date, commit, hardware and versions; with the GPU and CUDA's version where one is, and
    is the kind of ``device`` that was worked on."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    gpu = {}
    if device == "cuda" and torch.cuda.is_available():
        gpu["gpu"] = torch.cuda.get_device_name()
        versions["cuda"] = str(torch.version.cuda)
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
    """Of the package, None unless it lies in its own repository; "-dirty" where its own files differ
    from the commit, whatever results lie beside them."""
    package = Path(__file__).resolve().parent
    if not (package.parents[1] / ".git").exists():  # installed, perhaps within another repository
        return None

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    try:
        commit = git("rev-parse", "--short", "HEAD").stdout.strip()
        dirty = commit and git("diff", "--quiet", "HEAD", "--", ".").returncode
    except FileNotFoundError:  # no git
        return None
    return f"{commit}-dirty" if dirty else commit or None
