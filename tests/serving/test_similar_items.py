"""GET /v1/items/{item_id}/similar gives what Python gives."""

import pytest

from recblr.recommender import load
from recblr.serving.model import ServedModel
from recblr.similar import Similarity
from serving.fixtures import Site


@pytest.mark.parametrize("by", ["model", "memory"])
def test_similar_items(site: Site, a: ServedModel, by: Similarity) -> None:
    item = str(a.item_ids[3])
    answer = site.client.get(f"/v1/items/{item}/similar", params={"k": 5, "by": by})
    assert (answer.status_code, answer.headers["x-model"]) == (200, a.hash)
    body = answer.json()
    assert (body["model"], body["item_id"]) == (a.hash, item)
    expected = load(a.path, "cpu").similar_items([item], 5, by)
    assert [row["item_id"] for row in body["items"]] == expected["similar_item_id"].to_list()
    assert [row["score"] for row in body["items"]] == pytest.approx(
        expected["score"].to_list(), abs=1e-6
    )
    titles = {row["item_id"]: row["title"] for row in body["items"] if "title" in row}
    shown = {str(a.item_ids[0])} & {row["item_id"] for row in body["items"]}
    assert titles == dict.fromkeys(shown, "A title")


def test_refusals(site: Site, a: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/v1/items/{a.item_ids[3]}/similar"
    assert len(site.client.get(path).json()["items"]) == 10
    for url, status, message in (
        ("/v1/items/a%2Fb/similar", 404, "item 'a/b' is not in the log of the model"),
        (f"/v1/items/{'x' * 257}/similar", 422, "item_id: must have 1 to 256 bytes"),
        (f"{path}?k=0", 422, "k: "),
        (f"{path}?k=1001", 422, "k: "),
        (f"{path}?by=x", 422, "by: Invalid enum value 'x'"),
        (f"{path}?by=model&by=memory", 422, "by: is given twice"),
        (f"{path}?deny=1", 422, "no parameter 'deny'; there are k, by"),
    ):
        answer = site.client.get(url)
        assert (answer.status_code, message in answer.json()["error"]) == (status, True), (
            answer.text
        )
    assert site.client.post(path).status_code == 405
    monkeypatch.setattr(a, "memory", None)
    answer = site.client.get(f"{path}?by=memory")
    assert (answer.status_code, "no memory of transitions" in answer.text) == (422, True)
