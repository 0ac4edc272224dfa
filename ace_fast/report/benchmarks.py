"""The benchmark report: rows of result files as one page, and its summary as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape

from . import deciders, languages, operators, page, rows, units, workloads
from .chart import Bar, Bars, Chart
from .page import Section
from .rows import Row

TITLE = "ace_fast benchmarks"
LEAD = (
    "Approximately equivariant networks on fused kernels, timed against the originals in eager PyTorch, under "
    "torch.compile, and against the libraries of the field. Every version is compared with float64 on the very "
    "tensors that are timed, all versions run in turn in one process, and a ratio inside the measured noise is none."
)
_PROJECTION = ("None of these cases was measured on this device: their times follow from counted bytes and flops, the "
               "compiled kernels and the data sheet.")
TEXTS = {  # anchor of a section -> (heading, what it shows)
    "failures": ("What failed", "These rows have an error and therefore no time."),
    "steps": ("Training steps", "One optimiser step: forward, loss, backward, optimiser, dual step. Bars lead to the "
              "command that measures them; whiskers are the 20 and 80 % quantiles."),
    "layers": ("Layers", "One layer by itself, forward and backward unless the case says forward."),
    "products": ("Products of the field", "Tensor products that other libraries publish benchmarks of, at the same "
                 "sizes: how many times longer each takes than ace_fast."),
    "scaling": ("Scaling", "Throughput, time and memory as the problem grows, both axes logarithmic."),
    "roofline": ("Roofline", "What the operators achieve, against what the machine's measured copy bandwidth and "
                 "arithmetic allow. Small cases stay in cache and may lie above the slope."),
    "deciders": ("Deciders of symmetry", "One network, its gated branches owned by each decider in turn; whiskers are "
                 "a standard deviation over the seeds, of times the middle 60 %."),
    "languages": ("Triton or CUDA", "Which GPU language each fused operator takes by itself where both are there, "
                  "and what the other one needs for the same case. docs/performance.md has the reasons."),
    "errors": ("Errors", "The largest error of outputs, loss and gradients against float64, relative to the largest "
               "element of each tensor."),
    "reproduce": ("How to measure again", "In a checkout; an installation has <code>ace-fast bench</code> in place of "
                  "<code>python -m bench</code>. A click on a command selects it."),
}
_ABOUT = ("cores", "cpu_capability", "python", "torch", "cuda", "triton", "e3nn")


def write(found: Sequence[Row]) -> str:
    """The page of a list of rows."""
    keys = rows.devices(found)
    of = {name: [row for row in found if rows.device(row) == name] for name in keys}
    every = lambda make: [part for name, members in of.items() for part in make(members, keys[name])]  # noqa: E731
    top = "\n".join(_about(name, members, keys[name]) for name, members in of.items())
    return page.page(TITLE, LEAD, _sections(found, keys, every), top, _choices(found, keys), _foot(found))


def _sections(found: Sequence[Row], keys: dict[str, str], every) -> list[Section]:
    """The sections of TEXTS with their contents; `every` collects what a function makes of each device's rows."""
    bodies = {
        "failures": _failures(found, keys),
        "steps": _workloads(found, keys, every, layers=False),
        "layers": _workloads(found, keys, every, layers=True),
        "products": page.cards(every(operators.products))
        + _fold("All products", operators.products_table(found, keys)),
        "scaling": page.cards(every(workloads.scaling) + every(operators.scaling)),
        "roofline": page.cards(every(operators.roofline), "wide") + operators.rates_table(found, keys)
        + _fold("All operators", operators.operators_table(found, keys)),
        "deciders": deciders.section(every),
        "languages": languages.table(found, keys),
        "errors": page.cards(every(operators.exactness)) + operators.errors_table(found, keys),
        "reproduce": _commands(found, keys),
    }
    return [Section(anchor, *TEXTS[anchor], body) for anchor, body in bodies.items()]


def _choices(found: Sequence[Row], keys: dict[str, str]) -> list[tuple[str, str, str]]:
    projected = {rows.device(row) for row in found if row.get("projected")}
    shown = [(key, name, "projections" if name in projected else "") for name, key in keys.items()]
    return [*shown, ("all", "All devices", "together")] if len(keys) > 1 else []


def _about(name: str, members: Sequence[Row], key: str) -> str:
    """The device, its versions, and its training steps as numbers."""
    values = {k: list(dict.fromkeys(str(row[k]) for row in members if row.get(k) is not None)) for k in _ABOUT}
    words = [f"{k.replace('cpu_capability', 'instructions')} {' and '.join(v)}" for k, v in values.items() if v]
    revisions = dict.fromkeys(str(row["revision"]) for row in members if row.get("revision"))
    words += [f"revision {', '.join(revisions)}"] if revisions else []
    projected = all(row.get("projected") for row in members)
    warning = f"<p><strong>A projection.</strong> {_PROJECTION}</p>" if projected else ""
    return (f'<section data-device="{key}" aria-label="{escape(name)}"><h2>{escape(name)}</h2>{warning}'
            f'<p class="facts">{escape(" · ".join(words))}</p>{workloads.tiles(members, key)}</section>')


def _workloads(found: Sequence[Row], keys: dict[str, str], every, layers: bool) -> str:
    """Cards of training steps or of layers, and their table."""
    def make(members: Sequence[Row], key: str) -> list[str]:
        return [workloads.card(row, key) for row in workloads.of_kind(members, layers)]

    label = "All layers" if layers else "All training steps"
    table = workloads.table(workloads.of_kind(found, layers), keys, label)
    return page.cards(every(make), "wide") + _fold(label, table)


def _fold(summary: str, inside: str) -> str:
    return page.folded(summary, inside) if inside else ""


def _failures(found: Sequence[Row], keys: dict[str, str]) -> str:
    failed = [row for row in found if row.get("error")]
    lines = [(workloads.attributes(row, keys),
              [workloads.link(row, _named(row)), page.Cell(rows.device(row)),
               page.Cell(str(row["error"]), kind="long wrong")]) for row in failed]
    return page.table(("case", "device", "error"), lines, "Rows that failed", left=3) if lines else ""


def _named(row: Row) -> str:
    names = ("workload", "protocol", "op", "case", "backend", "direction")
    return " ".join(str(row[name]) for name in names if row.get(name))


def _commands(found: Sequence[Row], keys: dict[str, str]) -> str:
    """Every command once, with where and at which revision it was run."""
    once: dict[str, Row] = {}
    for row in found:
        once.setdefault(rows.anchor(row), row)
    items = []
    for anchor, row in once.items():
        about = ", ".join(filter(None, (rows.device(row), f"torch {row['torch']}" if row.get("torch") else "",
                                        f"revision {row['revision']}" if row.get("revision") else "", row["file"])))
        items.append(f'<div id="{anchor}" tabindex="-1" data-device="{keys[rows.device(row)]}">'
                     f"<dt>{escape(_named(row))}</dt><dd><code>{escape(rows.command(row))}</code>{escape(about)}</dd></div>")
    return page.folded(f"{len(items)} commands", f'<dl class="how">{"".join(items)}</dl>')


def _foot(found: Sequence[Row]) -> str:
    files = list(dict.fromkeys(row["file"] for row in found))
    named = ", ".join(files) if len(files) < 4 else f"{len(files)} files"
    return f"{len(found)} rows from {escape(named)}. Drawn by <code>ace-fast report</code>."


def picture(found: Sequence[Row]) -> tuple[str, list[Chart], str]:
    """(title, charts, words below) of the summary as a PNG: the times of every first case of a training step."""
    charts: list[Chart] = []
    for name in rows.devices(found):
        first: dict[str, Row] = {}
        for row in workloads.steps(found):
            if rows.device(row) == name:
                first.setdefault(workloads.title(row), row)
        charts += [_picture_of(title, name, row) for title, row in first.items()]
    if not charts:
        charts = [_speedups(found)]
    return TITLE, charts[:12], f"{len(found)} rows; errors, memory, products and roofline are on the page"


def _picture_of(title: str, name: str, row: Row) -> Bars:
    bars = []
    for version, bar in zip(rows.versions(row), workloads.time_bars(row).bars, strict=True):
        ratio = workloads.speedup(row, "eager", version) if version in ("fast", "graph") else None
        said = f"{bar.shown}, {units.compared(ratio, row.get('noise'))}" if ratio else bar.shown
        bars.append(replace(bar, shown=said, note=bar.note if bar.value is None else ""))
    return Bars(f"{title}, {row['case']}\n{name}", bars)


def _speedups(found: Sequence[Row]) -> Bars:
    """Operators or products alone: the fastest dozen against plain PyTorch."""
    timed = [(row["speedup"], row) for row in found if row.get("speedup")]
    timed.sort(key=lambda pair: -pair[0])
    return Bars("Times faster than plain PyTorch",
                [Bar(_named(row)[:40], ratio, units.ratio(ratio), "ours") for ratio, row in timed[:12]])
