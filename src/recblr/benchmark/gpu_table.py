"""What ``recblr bench gpu`` prints at its end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST = 60  # lines
WIDTH = 110  # characters of a line


def summarize(folder: Path, kind: str) -> list[str]:
    """The results in a folder as at most 60 lines."""

    def read(name: str) -> dict[str, Any]:
        path = folder / f"{name}-{kind}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    state = read("steps")
    versions = ", ".join(f"{name} {version}" for name, version in state["versions"].items())
    lines = [f"{state.get('gpu', state['hardware'])}; {versions}; commit {state['commit']}"]
    for name, step in state["steps"].items():
        lines.append(
            f"{step['status']:<11}{step['seconds']:6.0f} s  {name}  {step.get('note', '')}"
        )
    if exam := read("exam"):
        lines.append(f"tests: {exam['passed']} passed, {len(exam['failed'])} failed")
        lines += [f"  {test}" for test in exam["failed"][:5]]
    lines += [*_kernels(read("ops")), *_training(read("train"))]
    if steps := read("step").get("steps"):
        lines.append("event after " + ", ".join(
            f"{row['history']:,}: {row['median']:.0f} µs" for row in steps
        ))  # fmt: skip
    if rows := read("length").get("rows"):
        first, last = rows[0], rows[-1]
        lines.append("layer, ns an event: " + ", ".join(
            f"{row['recblr']['event_ns']:.2f} at {row['length']:,}" for row in (first, last)
        ))  # fmt: skip
    records = read("runs").get("records", {})
    lines.append(f"runs and costs: {len(records)}")
    lines += [_record(name, record) for name, record in records.items()]
    if len(lines) > LONGEST:
        lines[LONGEST - 1 :] = [f"and {len(lines) - LONGEST + 1} more lines in {folder}"]
    return [line.rstrip()[:WIDTH] for line in lines]


def _kernels(ops: dict[str, Any]) -> Iterator[str]:
    if "copy_gb_per_s" in ops:
        yield (
            f"kernels: {ops['forward_share']:.0%} forward and {ops['backward_share']:.0%} backward "
            f"of a copy's {ops['copy_gb_per_s']:,.0f} GB/s"
        )
    if "rows" in ops:
        yield f"  {'ns an element':<36}{'forward':>9}{'both':>9}  times slower"
    lengths = [{"name": f"fused, T = {row['length']:,}", **row} for row in ops.get("lengths", ())]
    for row in (*ops.get("rows", ()), *lengths):
        figures = row.get("gate", "ok")
        if figures == "ok":
            times = f"{row['forward_ns']:9.3g}{row['both_ns']:9.3g}"
            figures = f"{times}{row['times_slower']:14.3g}"
        yield f"  {row['name']:<36}{figures}"


def _training(train: dict[str, Any]) -> Iterator[str]:
    for key in ("all_positions", "prefixes"):
        if epoch := train.get(key):
            yield (
                f"epoch of {key.replace('_', ' ')}: {epoch['epoch_seconds']:.3g} s, "
                f"{epoch['times_products']:.1f} times its products"
            )
            yield "  " + ", ".join(f"{part} {share:.0%}" for part, share in epoch["parts"].items())
    if "evaluation_seconds" in train:
        yield f"evaluation, both protocols: {train['evaluation_seconds']:.3g} s"
    if run := train.get("run"):
        yield f"whole run: {run['seconds']:.1f} s, {run['epochs']} epochs{_accuracy(run['metrics'])}"


def _record(name: str, record: dict[str, Any]) -> str:
    if "ranks" in record:
        metrics = {test["protocol"]["seen"]: test["metrics"] for test in record["test"]}
        return f"  {name}: {record['seconds']:.0f} s{_accuracy(metrics)}"
    if "epoch_seconds" in record:
        return f"  {name}: {record['epoch_seconds']:.3g} s an epoch"
    return f"  {name}"


def _accuracy(metrics: dict[str, dict[str, float]]) -> str:
    values = " / ".join(f"{metrics[seen]['NDCG@10']:.4f}" for seen in ("unmasked", "masked"))
    return f", NDCG@10 {values}"
