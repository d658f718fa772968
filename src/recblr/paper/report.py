"""What a study comes to, as Markdown for people, JSON for programs, and a picture."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recblr.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
"""What is kept of one training run or measurement, with its provenance."""
Why = Mapping[tuple[str, str], str]
"""Why a row of a data set has not been measured, or some of its cells have not, by the two."""
INDEX = "# The paper's tables and figures"


@dataclass(frozen=True)
class Cell:
    """One training run or measurement of a study.

    ``find(folder)`` gives its record, None where there is none yet; ``make(folder, command, device)``
    makes and keeps it.
    """

    dataset: str
    row: str
    name: str  # all that tells it from others
    find: Callable[[Path], Record | None]
    make: Callable[[Path, str, str], Record]


@dataclass(frozen=True)
class Report:
    """``headline`` is our figure and ``verdict`` what it says of the paper, a sentence each;
    ``summary`` and ``details`` are Markdown, ``data`` is all of it as JSON values; ``records`` are
    what it rests on; ``draw`` fills a picture, None where nothing has been measured."""

    headline: str
    verdict: str
    summary: str
    details: str
    data: dict[str, Any]
    records: Sequence[Record]
    draw: "Callable[[Figure], None] | None"


@dataclass(frozen=True)
class Page:
    """What was written: the content of the JSON, and the text without details."""

    content: Record
    text: str


def check_folder(folder: Path, index: Path, name: str, command: str) -> None:
    """Refuse, before long work, to write a study's page over what is not that page.

    Raises:
        InputError: it is in the way, or nothing can be written there.
    """
    there = next(it for it in (folder, *folder.absolute().parents) if it.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{folder}: no folder can be written there; name another with -o")
    if index.exists() and not index.read_text(errors="replace").startswith(INDEX):
        raise InputError(f"{index} is not ours to write over; name another folder with -o")
    page = read_record(folder / f"{name}.json")
    if page is not None and page.get("command") != command:
        raise InputError(
            f"{folder / name}.json is of {page.get('command')!r}, not of {command!r}; name another "
            "folder with -o"
        )


def read_record(path: Path) -> Record | None:
    """A JSON object that was kept, None where there is none.

    Raises:
        InputError: the file holds something else.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no JSON object; delete it")
    return found


def write(name: str, command: str, title: str, report: Report, why: Why, folder: Path) -> Page:
    """Write <name>.md, .json and .png to ``folder``."""
    about = measured_on(report.records)
    content = {
        "study": name,
        "title": title,
        "command": command,
        "headline": report.headline,
        "verdict": report.verdict,
        "measured": about,
        "not_measured": [
            {"dataset": dataset, "row": row, "why": reason}
            for (dataset, row), reason in why.items()
        ],
        **report.data,
    }
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{name}.png"
    picture.unlink(missing_ok=True)
    image = ""
    if report.draw is not None:
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        report.draw(figure)
        figure.savefig(picture, dpi=160)
        image = f"![{title}]({picture.name})"
    made = f"Made by `{content['command']}`. {about}"
    parts = [f"# {title}", report.verdict, image, report.summary, report.details, made]
    replace_file(folder / f"{name}.md", _paragraphs(parts) + "\n")
    replace_file(folder / f"{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return Page(content, _paragraphs([title, report.verdict, report.summary, made]))


def _paragraphs(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def write_index(names: Iterable[str], folder: Path, page: Path) -> None:
    """One line a study: command, our figure, verdict, when and on what, where to read more."""
    rows = []
    for name in names:
        found = read_record(folder / f"{name}.json")
        if found is None:
            rows.append([f"`recblr reproduce {name}`", "", "not run yet", "", ""])
            continue
        link = os.path.relpath(folder / f"{name}.md", page.parent)
        rows.append(
            [f"`{found['command']}`", found["headline"], found["verdict"], found["measured"],
             f"[{found['title']}]({Path(link).as_posix()})"]
        )  # fmt: skip
    head = ["command", "our figure", "verdict", "measured", "more"]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    about = "Each is one command, which makes what is missing and writes its page and this one."
    replace_file(page, f"{INDEX}\n\n{about}\n\n{table}\n")


def measured_on(records: Sequence[Mapping[str, Any]]) -> str:
    """When, on what, and of which commits."""
    if not records:
        return ""
    kinds = {
        *(record["hardware"] for record in records),
        *(record["gpu"] for record in records if "gpu" in record),
    }
    about = [
        *_ends(sorted({record["date"][:10] for record in records})),
        *sorted(kinds),
        *sorted({f"torch {record['versions']['torch']}" for record in records}),
    ]
    commits = sorted({record["commit"] or "unknown" for record in records})
    return f"{', '.join(about)}; commit{'s' * (len(commits) > 1)} {', '.join(commits)}."


def _ends(dates: list[str]) -> list[str]:
    return dates if len(dates) < 3 else [f"{dates[0]} to {dates[-1]}"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in plain text as well."""
    lines = [list(head), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    )  # fmt: skip


def number(value: float | None) -> str:
    """Three digits, no exponent; nothing for what is not known."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def p_value(p: float) -> str:
    """A p as it is written in text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def reason(error: Exception) -> str:
    """What a message says is wrong, without what to do about it and what the system said."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return first.split("; ")[0].split(" (")[0]


def replace_file(path: Path, text: str) -> None:
    """Another process may be writing the same page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text)
    os.replace(new, path)
