"""`python -m ace_fast`: what runs here, and why what does not run does not."""

from rich.console import Console
from rich.table import Table


def main() -> None:
    import torch

    from . import backend, native
    from .train.run import device_name, versions

    console = Console()
    facts = Table(show_header=False, box=None)
    for name, value in versions().items():
        facts.add_row(name, value)
    facts.add_row("processor", device_name("cpu"))
    facts.add_row("threads", str(torch.get_num_threads()))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts.add_row("GPUs", ", ".join(gpus) or "none")
    facts.add_row("native library", native.load() or _library(native))
    facts.add_row("CUDA library", native.load_cuda() or ("emulated" if native.EMULATED else "loaded"))
    console.print(facts)
    for device in ("cpu", *(["cuda"] if gpus else [])):
        console.print(_operators(device, backend.available(device)))


def _library(native) -> str:
    """The file that native.load() took."""
    files = (native.LIB / f"libace_fast_{isa}.so" for isa in native.instruction_sets())
    return str(next(file for file in files if file.exists()))


def _operators(device: str, found: dict[str, dict[str, str]]) -> Table:
    """One row per operator; below, every reason once."""
    names = list(dict.fromkeys(name for backends in found.values() for name in backends))
    table = Table("operator", *names, title=f"operators on {device}")
    reasons: dict[str, str] = {}
    for op, backends in found.items():
        cells = []
        for name in names:
            reason = backends.get(name, "not written for this operator")
            reasons |= {name: reason} if reason and name in backends else {}
            cells.append("[green]yes" if not reason else "[yellow]no" if name in backends else "-")
        table.add_row(op, *cells)
    if reasons:
        table.caption = "\n".join(f"{name}: {reason}" for name, reason in reasons.items())
        table.caption_justify = "left"
    return table


if __name__ == "__main__":
    main()
