"""Settings found to work for a data set, one TOML file each; how they were found: docs/log.md."""

import sys
from pathlib import Path
from typing import Any

from recblr.config import near, read_toml
from recblr.errors import InputError


def read_preset(config: str | None, log: str) -> dict[str, Any]:
    """Settings from a TOML file or a preset; without either, those of the data set ``log``."""
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("*.toml"))
    if config is None:
        if log not in names or Path(log).exists():
            return {}
        print(f"recblr: using the preset of {log}", file=sys.stderr)
        config = log
    elif config not in names or Path(config).exists():
        if not config.endswith(".toml"):
            raise InputError(f"--config {config}: no TOML file and no preset{near(config, names)}")
        return read_toml(Path(config))
    return read_toml(folder / f"{config}.toml")
