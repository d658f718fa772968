"""The API as its document says, by a tool that generates requests from the document."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import SOAK
from recblr.serving.keys import add_key
from serving.fixtures import OpenSite

pytest.importorskip("schemathesis")
# What a schema cannot say: times in the future are refused, and a limit on ids is in bytes.
CONFIG = """
[[operations]]
include-name = "POST /v1/events"
checks.positive_data_acceptance.expected-statuses = ["2xx", 409, 422]
"""
EXAMPLES = 200


@pytest.mark.skipif(not SOAK, reason="needs RECBLR_SOAK and some minutes")
@pytest.mark.parametrize("with_key", [False, True])
def test_all_checks_of_schemathesis(
    open_site: OpenSite, tmp_path: Path, keep: Callable[..., Any], with_key: bool
) -> None:
    header = []
    if with_key:
        header = ["--header", f"Authorization: Bearer {add_key(tmp_path / 'keys', 'shop')}"]
    site = open_site(tmp_path / "keys" if with_key else None)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{site.client.base_url}/openapi.json",
            "--checks=all", f"--max-examples={EXAMPLES}", "--phases=examples,coverage,fuzzing",
            "--no-color", *header,
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": ""}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    summary = done.stdout.partition("= SUMMARY =")[2]
    assert done.returncode == 0, done.stdout[-10_000:]
    (cases,) = [line.split()[0] for line in summary.splitlines() if " generated" in line]
    keep(
        f"schemathesis, {'with' if with_key else 'without'} keys", cases=int(cases.replace(",", ""))
    )
