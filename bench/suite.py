"""What a run consists of: the workloads, protocols and operators that were asked for, one after the other, as rows."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from . import (
    machine,
    operators,
    products,
    products_cases,
    protocol_cases,
    protocols,
    results,
    roofline,
    scaling,
    tables,
    workloads,
)
from .results import Row

ROUNDS, QUICK_ROUNDS = 15, 3
QUICK_S = 0.5  # of timing for one operator or protocol with --quick


class Rows(list):
    """Rows that are in the file as soon as they are measured, so that a run that is stopped keeps what it has."""

    def __init__(self, file: Path, quick: bool = False):
        super().__init__()
        self.file, self._about = file, {"quick": True} if quick else {}

    def add(self, row: Row) -> Row:
        self.append(row | self._about)
        results.write(self.file, self)
        return self[-1]


def kinds(a: argparse.Namespace) -> list[str]:
    """What runs: what an option names; workloads, protocols and operators where none does."""
    along = a.scaling is not None  # then --op and --backend say of what
    named = {"roofline": a.roofline, "workloads": a.workload, "protocols": a.protocol,
             "operators": a.operators or not along and (a.op or a.backend), "scaling": along,
             "products": a.suite == "products"}
    return [kind for kind, wanted in named.items() if wanted] or ["workloads", "protocols", "operators"]


def rounds(a: argparse.Namespace) -> int:
    """Timed rounds of a case."""
    return a.repeats or (QUICK_ROUNDS if a.quick else ROUNDS)


def compiled(a: argparse.Namespace) -> bool:
    """Whether there is a torch.compile column: it costs minutes."""
    return not a.quick if a.compile is None else a.compile


def workload_cases(a: argparse.Namespace, device: str) -> Iterator[tuple[str, str]]:
    """(workload, case) in the order in which they run."""
    names = a.workload if a.workload and "all" not in a.workload else workloads.WORKLOADS
    for name in names:
        for case in [a.case] if a.case else workloads.cases(workloads.find(name), device, a.quick):
            yield name, case


def protocol_jobs(a: argparse.Namespace, device: str) -> Iterator[protocols.Case]:
    """The cases of the protocols, the first of each first."""
    names = a.protocol if a.protocol and "all" not in a.protocol else list(protocol_cases.PROTOCOLS)
    return protocols.jobs(names, device, getattr(torch, a.dtype), a.case, a.direction, compiled(a), a.quick)


def operator_jobs(a: argparse.Namespace, device: str) -> Iterator[operators.Job]:
    """The operators' jobs; the reference is a column of the others and runs by itself only when it is asked for."""
    for job in operators.jobs(device, getattr(torch, a.dtype), a.case, a.op, a.backend, quick=a.quick):
        plain = job.backend == "reference" and a.backend != "reference"
        if not plain and a.direction in (None, job.direction):
            yield job


def run(a: argparse.Namespace, device: str, rows: Rows) -> None:
    """Runs what was asked for on one device, with a table for each kind."""
    tables.heading(machine.describe(device))
    wanted, roof = kinds(a), None
    if {"protocols", "operators"} & set(wanted):
        with tables.waiting("measuring the machine"):
            roof = roofline.measure(device, getattr(torch, a.dtype), a.quick)
    for kind in wanted:
        {"roofline": _roofline, "workloads": _workloads, "protocols": _protocols, "operators": _operators,
         "scaling": _scaling, "products": _products}[kind](a, device, rows, roof)


def _roofline(a: argparse.Namespace, device: str, rows: Rows, roof: roofline.Roofline | None) -> None:
    with tables.waiting("measuring the machine"):
        found = [row | machine.describe(device) for row in roofline.rows(device, a.quick)]
    tables.machine_rates([rows.add(row) for row in found])


def _workloads(a: argparse.Namespace, device: str, rows: Rows, roof: roofline.Roofline | None) -> None:
    found = []
    for name, case in workload_cases(a, device):
        with tables.waiting(f"{name} {case} on {device}"):
            row = workloads.run(name, case, device, getattr(torch, a.dtype), rounds(a), compiled(a), a.quick)
        found.append(rows.add(row))
    tables.workloads(found)


def _protocols(a: argparse.Namespace, device: str, rows: Rows, roof: roofline.Roofline) -> None:
    found = []
    for case in protocol_jobs(a, device):
        with tables.waiting(f"{case.protocol} {case.name} on {device}"):
            for row in protocols.measure(case, roof, rounds(a), QUICK_S if a.quick else None, a.quick):
                found.append(rows.add(row))
    tables.protocols(found, roof)


def _products(a: argparse.Namespace, device: str, rows: Rows, roof: roofline.Roofline | None) -> None:
    found = []
    repeats = a.repeats or (QUICK_ROUNDS if a.quick else products.ROUNDS)
    compile_ = device != "cpu" and not a.quick if a.compile is None else a.compile
    for case in products_cases.cases(a.case, a.quick, device):
        with tables.waiting(f"products {case} on {device}"):
            found.append(rows.add(products.run(case, device, getattr(torch, a.dtype), repeats, a.quick, compile_)))
    tables.products(found)


def _operators(a: argparse.Namespace, device: str, rows: Rows, roof: roofline.Roofline) -> None:
    found = []
    for job in operator_jobs(a, device):
        with tables.waiting(repr(job)):
            budget_s = QUICK_S if a.quick else operators.BUDGET_S
            found.append(rows.add(operators.measure(job, roof, rounds(a), budget_s)))
    tables.operators(found, roof, operators.missing(device))


def _scaling(a: argparse.Namespace, device: str, rows: Rows, roof: roofline.Roofline | None) -> None:
    found, about = [], machine.describe(device)
    for family in scaling.families(device, getattr(torch, a.dtype), a.op, a.scaling, a.backend):
        if a.quick:
            family = family._replace(axis=family.axis._replace(sizes=family.axis.sizes[:scaling.FITTED]))
        with tables.waiting(repr(family)):
            made = scaling.measure(family, a.repeats or scaling.ROUNDS, QUICK_S if a.quick else scaling.BUDGET_S)
        found += [rows.add(about | row) for row in made]
    tables.scaling(found)
