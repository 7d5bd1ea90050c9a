"""The table of targets, as Markdown and JSON."""

import dataclasses
import json
import os
import platform
import sys


@dataclasses.dataclass
class Row:
    """One target. `met` is None where there is nothing to hold the figure to, or it was not measured."""

    what: str
    target: str
    ours: str
    peer: str = ""
    ratio: str = ""
    met: bool | None = None


def cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine():
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }


def ms(times):
    return f"{times.wall:.2f} ms ({times.cpu:.2f} cpu)"


def below(what, limit, ours, peer_name, peer):
    """A row that asks ours to take at most `limit` of a peer's time; None asks nothing."""
    ratio = ours.over(peer)
    # On a quiet machine the two agree; on a busy one either may be luck.
    worst = max(ratio["wall"], ratio["paired_wall"])
    return Row(
        what,
        "" if limit is None else f"≤ {limit:.2f} ×",
        ms(ours),
        f"{peer_name} {ms(peer)}",
        f"{ratio['wall']:.3f} wall, {ratio['cpu']:.3f} cpu, {ratio['paired_wall']:.3f} by round",
        None if limit is None else worst <= limit,
    )


def markdown(rows, about, facts, notes):
    verdict = {True: "yes", False: "**no**", None: "–"}
    text = [
        f"{about['cpu']}, {about['cores']} cores, load {about['load_before']:.2f} at the start.",
        "",
        "| what | target | ours | peer | ratio | met |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        text.append(f"| {row.what} | {row.target} | {row.ours} | {row.peer} | {row.ratio} | {verdict[row.met]} |")
    if facts:
        text += ["", "Sides:"] + [f"- {name}: {fact}" for name, fact in facts.items()]
    if notes:
        text += ["", "Notes:"] + [f"- {note}" for note in notes]
    return "\n".join(text)


def write_json(path, rows, about, facts, notes, raw):
    document = {"machine": about, "rows": [dataclasses.asdict(row) for row in rows], "sides": facts, "notes": notes}
    document["raw"] = raw
    whole = f"{path}.part"
    with open(whole, "w") as file:
        json.dump(document, file, indent=1, default=lambda value: dataclasses.asdict(value))
        file.write("\n")
    os.replace(whole, path)
    print(f"wrote {path}", file=sys.stderr)
