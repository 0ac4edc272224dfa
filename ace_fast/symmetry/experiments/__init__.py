"""Experiments on breaking symmetry, one module each, for `ace-fast symmetry EXPERIMENT`.

A module defines

    HELP, DESCRIPTION       texts of the command line
    METHODS                 what --methods may name
    OPTIONS                 its settings, as `train.options.Option`
    MEASURES                name of a number of its results -> heading and format of the table
    run(method, seed, config, progress) -> {measure: number}, with progress(text) now and then
"""

from types import ModuleType

from . import autoencoder, ising

EXPERIMENTS: dict[str, ModuleType] = {"autoencoder": autoencoder, "ising": ising}
