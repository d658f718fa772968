"""The loop of docs/fresh.md: serve, export the events, update the model, swap it in."""

import shutil
from pathlib import Path

from cli.fixtures import Run, answer
from conftest import Tiny
from recblr.recommender import load
from recblr.serving.model import ServedModel
from serving.fixtures import OpenSite, Store


def test_serve_export_update_swap(
    tiny: Tiny, run: Run, file: Store, open_site: OpenSite, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copytree(tiny.artifact, folder / "monday")
    assert run("replay", folder / "monday", "--store", file.name, "--log", tiny.log).code == 0
    site = open_site(folder=folder, model=ServedModel(folder / "monday"))
    last = int(tiny.frame["timestamp"].max()) + 60  # type: ignore[arg-type]
    user, items = "a new user", [tiny.frame["item_id"][0], "a new item", tiny.frame["item_id"][1]]
    for number, item in enumerate(items * 3):
        body = {
            "event_id": f"e{number}", "user_id": user, "item_id": item, "timestamp": last + number
        }  # fmt: skip
        assert site.client.post("/v1/events", json=body).status_code == 200

    assert run("events", "export", "events.parquet", "--store", file.name).code == 0
    result = answer(
        run("update", folder / "monday", "events.parquet", "-o", folder / "tuesday", "--json")
    )
    assert (result["events"], result["known_events"]) == (9, tiny.frame.height)
    assert (result["users"], result["items"]) == (1, 1)
    swapped = site.client.post("/v1/models/swap", json={"name": "tuesday"}).json()
    model = ServedModel(folder / "tuesday")
    assert swapped["model"] == model.hash
    url = f"/v1/users/{user}/recommendations?k=1000&hide_seen=false"
    served = site.client.get(url).json()
    assert served["model"] == model.hash
    assert "a new item" in [row["item_id"] for row in served["items"]]
    offline = load(folder / "tuesday").recommend(users=[user], k=1000, hide_seen=False)
    assert [row["item_id"] for row in served["items"]] == offline["item_id"].to_list()
