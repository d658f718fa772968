"""RecBLR on the exact data sets of the paper, several seeds, beside the published row.

    python paper/accuracy.py run beauty      # trains seeds 0, 1, 2 with the preset; finished ones stay
    python paper/accuracy.py table           # the table of what has been run, as Markdown

Results are kept in paper/results/accuracy-<data set>.json. Validation chose the preset and the
epoch; the test part is looked at once a seed.
"""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from recblr.bench.provenance import provenance
from recblr.data import open_log
from recblr.memory import keep_freed_memory
from recblr.presets import read_preset
from recblr.recommender import Recommender

app = typer.Typer(no_args_is_help=True, add_completion=False)
RESULTS = Path(__file__).parent / "results"

# Table 1 of arXiv 2406.12580, row RecBLR: seen items unmasked, D = 64, two layers.
PUBLISHED = {
    "ml-1m": {"HR@10": 0.3285, "NDCG@10": 0.1901, "MRR@10": 0.1478,
              "HR@20": 0.4336, "NDCG@20": 0.2161, "MRR@20": 0.1547},
    "beauty": {"HR@10": 0.0881, "NDCG@10": 0.0446, "MRR@10": 0.0313,
               "HR@20": 0.1243, "NDCG@20": 0.0538, "MRR@20": 0.0338},
    "sports": {"HR@10": 0.0500, "NDCG@10": 0.0238, "MRR@10": 0.0161,
               "HR@20": 0.0735, "NDCG@20": 0.0297, "MRR@20": 0.0175},
}  # fmt: skip


@app.command()
def run(
    dataset: Annotated[str, typer.Argument(help="ml-1m, beauty or sports.")],
    seeds: Annotated[str, typer.Option(help="Separated by commas.")] = "0,1,2",
) -> None:
    """Train and measure the seeds that are not in the results yet."""
    path = RESULTS / f"accuracy-{dataset}.json"
    runs = json.loads(path.read_text()) if path.exists() else []
    keep_freed_memory()
    data = open_log(dataset)
    for seed in map(int, seeds.split(",")):
        if any(run["seed"] == seed for run in runs):
            continue
        settings = read_preset(dataset, dataset)
        settings["train"] = {**settings["train"], "seed": seed}
        recommender = Recommender.configured("recblr", settings).fit(data)
        trained = recommender.trained
        record = {
            "seed": seed,
            **provenance(f"python paper/accuracy.py run {dataset} --seeds {seed}"),
            "settings": settings,
            "epochs": trained.epoch,
            "best_epoch": trained.best_epoch,
            "seconds": round(trained.seconds),
            "validation": trained.validation,
            "test": [evaluation.to_json() for evaluation in recommender.evaluate()],
        }
        # Another process may have added a seed meanwhile.
        runs = json.loads(path.read_text()) if path.exists() else []
        runs = sorted([*runs, record], key=lambda run: run["seed"])
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(runs, indent=1) + "\n")
        print(f"{dataset} seed {seed}: done in {trained.seconds:,.0f} s")


@app.command()
def table() -> None:
    """Print the table of what has been run."""
    print(markdown(read_runs()))


def read_runs() -> dict[str, list[dict[str, Any]]]:
    """The runs of each data set of the paper, by its name."""
    paths = {dataset: RESULTS / f"accuracy-{dataset}.json" for dataset in PUBLISHED}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def markdown(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Mean ± deviation over seeds, the published row below, the masked protocol beside."""
    names = list(PUBLISHED["ml-1m"])
    rows = [["data", "seen items", "run", *names], ["---"] * (3 + len(names))]
    for dataset, published in PUBLISHED.items():
        for number, seen in enumerate(("unmasked", "masked")):
            if done := runs.get(dataset):
                tests = [run["test"][number]["metrics"] for run in done]
                cells = [cell([test[name] for test in tests]) for name in names]
                rows.append([dataset, seen, f"RecBLR, {len(done)} seeds", *cells])
                floor = done[0]["test"][number]["popularity"]
                rows.append([dataset, seen, "popularity", *(cell([floor[name]]) for name in names)])
            if seen == "unmasked":
                cells = [cell([published[name]]) for name in names]
                rows.append([dataset, seen, "published", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def cell(values: list[float]) -> str:
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


if __name__ == "__main__":
    app()
