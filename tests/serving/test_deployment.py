"""The examples of deployment: nginx runs, the unit is valid, the Dockerfile's lines fit the package."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from recblr.serving.keys import add_key
from recblr.serving.model import ServedModel
from recblr.serving.settings import ServerSettings, read_settings
from serving.fixtures import OpenSite
from serving.server_process import free_port, needs_nginx, running_nginx

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def behind_nginx(open_site: OpenSite, tmp_path: Path) -> Iterator[httpx.Client]:
    """The server of the example, with its port, certificate and folders replaced."""
    key = add_key(tmp_path / "keys", "shop")
    site = open_site(tmp_path / "keys", settings=ServerSettings(path_prefix="/shop"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=shop.example",
         "-keyout", tmp_path / "shop.key", "-out", tmp_path / "shop.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    text = (EXAMPLES / "nginx.conf").read_text()
    for old, new in (
        ("127.0.0.1:8000", f"127.0.0.1:{site.address[1]}"), ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/etc/ssl/certs", str(tmp_path)), ("/etc/ssl/private", str(tmp_path)),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    url, headers = f"https://127.0.0.1:{port}/shop/", {"Authorization": f"Bearer {key}"}
    with (
        running_nginx(text, tmp_path, port),
        httpx.Client(base_url=url, headers=headers, verify=False, timeout=60) as client,
    ):
        yield client


@needs_nginx
def test_nginx_with_tls_and_a_path_prefix(behind_nginx: httpx.Client, a: ServedModel) -> None:
    assert "What comes next?" in behind_nginx.get("").text
    event = {"event_id": "a/b", "user_id": "c/d", "item_id": a.item_ids[0], "timestamp": 1}
    answer = behind_nginx.post("v1/events", json=event)
    assert answer.json()["results"][0]["status"] == "accepted"
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])  # nginx has given it
    assert behind_nginx.get("v1/users/c%2Fd").json()["events"] == 1
    assert behind_nginx.delete("v1/events/a%2Fb").json()["events"] == 1
    assert behind_nginx.get("health/ready").status_code == 200
    large = behind_nginx.post(
        "v1/events", content=" " * 1_000_001, headers={"content-type": "application/json"}
    )
    assert large.json()["error"] == "the body has more than 1,000,000 bytes"
    assert httpx.get(behind_nginx.base_url.join("v1/users"), verify=False).status_code == 401


def test_the_unit_of_systemd(tmp_path: Path) -> None:
    text = (EXAMPLES / "recblr.service").read_text()
    assert int(re.findall(r"TimeoutStopSec=(\d+)", text)[0]) > ServerSettings.stop_seconds
    assert int(re.findall(r"LimitNOFILE=(\d+)", text)[0]) > ServerSettings.max_connections + 200
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / "recblr.service"
    unit.write_text(text.replace("/opt/recblr/bin/recblr", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if "recblr.service" in line] == []


def test_the_lines_of_the_dockerfile() -> None:
    text = (EXAMPLES / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.partition(" ") for line in text.splitlines() if not line.startswith("#")]
    for instruction, _, rest in lines:
        if instruction == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
    (variables,) = [rest.split() for instruction, _, rest in lines if instruction == "ENV"]
    environment = dict(variable.split("=") for variable in variables)
    settings = read_settings({}, environment=environment)
    assert settings.keys == "/data/keys.json"
    exposed = [rest for instruction, _, rest in lines if instruction == "EXPOSE"]
    assert exposed == [str(settings.port)]
    start = [json.loads(rest) for name, _, rest in lines if name in ("ENTRYPOINT", "CMD")]
    assert start == [["/opt/recblr/bin/recblr"], ["serve"]]
