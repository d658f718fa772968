"""What a study is, and how it is written: a page in Markdown and JSON, a picture, the index of all."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from recblr.errors import InputError
from recblr.files import new_file

Record = dict[str, Any]
"""A measurement as it is kept, with its provenance."""
Line = dict[str, Any]
"""A line of a table, by column."""
Missing = Mapping[tuple[str, str], str]
"""By data set and row, why it is not measured, or which of its measurements failed."""
INDEX = "# The paper's tables and figures"
FORMATS = {"percent": "+.1f", "ahead": "+.4f", "p": ".2g"}  # of columns


@dataclass(frozen=True)
class Report:
    """The results of a study; ``data`` is all of them as JSON values, ``picture`` draws to a path."""

    headline: str  # the main figure, for the index
    table: str
    sentences: Sequence[str]  # one a data set
    data: Mapping[str, Any]
    records: Sequence[Record]
    details: str = ""
    picture: Callable[..., None] | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table or figure of the paper, or a question that it leaves open.

    Attributes:
        title: the heading of its page.
        notes: on its page, how the figures are made.
        rows: by name, a model and its settings as on the command line.
        datasets: by name, what is particular to each.
        published: the paper's figures by data set, row and metric.
        remarks: on data sets, such as the order of their events.
    """

    title: str
    notes: str = ""
    rows: Mapping[str, Sequence[str]]
    datasets: Mapping[str, Any]
    published: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)

    def small(self) -> Self:
        """The same study of simulated data, which takes seconds."""
        return replace(self, datasets={"simulated": ()}, published={}, remarks={})

    def measurements(self, seeds: Sequence[int], device: str) -> Sequence[Any]:
        """Every :class:`Measurement`; ``device`` is "cpu" or "cuda"."""
        raise NotImplementedError

    def report(self, folder: Path, seeds: Sequence[int], missing: Missing) -> Report:
        """The results of the measurements in ``folder``; InputError if they do not fit together."""
        raise NotImplementedError


@dataclass(frozen=True)
class Page:
    """A page that was written: its JSON, and its text for the terminal."""

    content: Record
    text: str


def write(
    name: str, command: str, study: Study, report: Report, missing: Missing, folder: Path
) -> Page:
    """Write ``<name>.md``, ``<name>.json`` and ``<name>.png`` to ``folder``."""
    title, measured = study.title, measured_on(report.records)
    reasons = [{"dataset": key[0], "row": key[1], "why": missing[key]} for key in missing]
    content = {
        "study": name, "title": title, "command": command, "headline": report.headline,
        "verdict": " ".join(report.sentences), "measured": measured, "not_measured": reasons,
        **report.data,
    }  # fmt: skip
    write_record(folder / f"{name}.json", content)
    (folder / f"{name}.png").unlink(missing_ok=True)
    if report.picture:
        report.picture(path=folder / f"{name}.png")
    image = f"![{title}]({name}.png)" if report.picture else ""
    sentences = "\n".join(f"- {sentence}" for sentence in report.sentences)
    made = f"Command: `{command}`. {measured}".strip()
    page = [f"# {title}", report.table, image, sentences, "## How it was made", made,
            study.notes.strip(), report.details]  # fmt: skip
    replace_file(folder / f"{name}.md", "\n\n".join(filter(None, page)) + "\n")
    return Page(content, "\n\n".join(filter(None, [title, report.table, sentences, made])))


def write_index(names: Iterable[str], folder: Path, index: Path) -> None:
    """Write a line for each study: its page, command and main figure."""
    lines = []
    for name in names:
        page = read_record(folder / f"{name}.json") or {"headline": "not run"}
        link = Path(os.path.relpath(folder / f"{name}.md", index.parent)).as_posix()
        study = f"[{page['title']}]({link})" if "title" in page else ""
        command = f"`{page.get('command', f'recblr reproduce {name}')}`"
        lines.append({"study": study, "command": command, "result": page["headline"]})
    about = "Each command makes the missing measurements, and writes its page and this one."
    replace_file(index, f"{INDEX}\n\n{table([*lines[0]], lines)}\n\n{about}\n")


def check_folder(folder: Path, index: Path, name: str, command: str) -> None:
    """Refuse, before long work, to write a page over another file: InputError."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{folder}: this folder cannot be written; choose another with -o")
    if index.exists() and not index.read_text(errors="replace").startswith(INDEX):
        raise InputError(f"{index} is not an index of studies; choose another folder with -o")
    other = (read_record(folder / f"{name}.json") or {}).get("command", command)
    if other != command:
        wrong = f"{folder / name}.json is of {other!r}, not of {command!r}"
        raise InputError(f"{wrong}; choose another folder with -o")


def read_record(path: Path) -> Record | None:
    """A JSON object; None where there is no such file. InputError if the file holds something else."""
    try:
        record = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it") from error
    if not isinstance(record, dict | None):
        raise InputError(f"{path}: holds no JSON object; delete it")
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object that :func:`read_record` reads."""
    replace_file(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write a file in one step, as another process may be writing the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as new:
        new.write_text(text)


def measured_on(records: Sequence[Record]) -> str:
    """The dates, hardware, versions of torch and commits of the records."""
    dates = sorted({record["date"][:10] for record in records})
    period = dates if len(dates) < 3 else [f"{dates[0]} to {dates[-1]}"]
    machines = {r[kind] for r in records for kind in ("hardware", "gpu") if kind in r}
    versions = {f"torch {record['versions']['torch']}" for record in records}
    commits = sorted({record["commit"] or "unknown" for record in records})
    about = ", ".join([*period, *sorted(machines), *sorted(versions)])
    word = "commit" if len(commits) == 1 else "commits"
    return f"{about}; {word} {', '.join(commits)}." if records else ""


def table(columns: dict[str, str] | Sequence[str], lines: Sequence[Line]) -> str:
    """A Markdown table, aligned in plain text too; ``columns`` are keys of the lines, or headings by
    key, and those without any text are left out."""
    head = {key: key.replace("_", " ") for key in columns}
    head |= columns if isinstance(columns, dict) else {}
    padded = []
    for key in head:
        texts = [head[key], *(_text(key, line.get(key)) for line in lines)]
        if any(texts[1:]):
            width = max(3, *map(len, texts))
            title, *rest = (text.ljust(width) for text in texts)
            padded.append([title, "-" * width, *rest])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*padded, strict=True))


def _text(key: str, value: Any) -> str:
    """A value as text: an interval by its ends, a number without exponent and needless digits."""
    if isinstance(value, list):
        return " to ".join(_text(key, end) for end in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    if isinstance(value, float):
        digits = 0 if value >= 1000 else 1 if value >= 10 else 2 if value >= 1 else 4
        return f"{value:{FORMATS.get(key, f',.{digits}f')}}"
    return f"{value:,}" if isinstance(value, int) else value or ""
