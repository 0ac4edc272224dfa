"""The experiments of docs/reproduction.md: for each the settings of `ace-fast train`, version by version.

A version is one line of an experiment's table: what differs between two of them is all that they say about each other.
Learning rates are the same for all versions of an experiment, and were chosen on validation data of the strict one.
"""

from typing import Any, NamedTuple

Settings = dict[str, Any]

SEEDS = (42, 43, 44)
# The rate was the best of 6e-3, 1e-2 and 2e-2 for the strict model after 12 epochs, on validation data.
_NBODY = {"hidden": 32, "lr": 1e-2, "gate_patience": 200, "threads": 1}


class Experiment(NamedTuple):
    """Runs that belong together.

    Attributes:
        title: a heading.
        task: of `ace-fast train`.
        shared: settings of every run, beside the task's defaults.
        versions: name -> settings of its own.
        seeds: of each version.
        data: the file that `--data` must name; empty: the task finds or makes its data itself.
    """

    title: str
    task: str
    shared: Settings
    versions: dict[str, Settings]
    seeds: tuple[int, ...] = SEEDS
    data: str = ""

    def settings(self, version: str, seed: int) -> Settings:
        """All that a run sets."""
        return self.shared | self.versions[version] | {"seed": seed}


def nbody() -> Experiment:
    """Who decides: nobody (strict), multipliers (ace), a timetable with the Lie-derivative penalty (schedule).

    ace-quick steps gammas and multipliers four times as far: they rest after a third of this training, as in the paper.
    """
    versions = {"strict": {"relaxed": False}, "ace": {}, "ace-quick": {"gamma_lr": 2e-2, "dual_lr": 2e-2},
                "schedule": {"relaxation": "schedule"}}
    return Experiment("N-body: SEGNN strict, with ACE, and with the scheduled relaxation", "nbody",
                      _NBODY | {"epochs": 30, "eval_every": 5}, versions)


def samples() -> Experiment:
    """The error against the number of training trajectories, at nbody's number of steps: its runs are those of 3000."""
    versions = {}
    for count, epochs in ((500, 180), (1000, 90), (9000, 10)):
        own = {"train_samples": count, "epochs": epochs, "eval_every": max(1, epochs // 6)}
        versions |= {f"strict-{count}": own | {"relaxed": False}, f"ace-{count}": own}
    return Experiment("N-body: error against the number of training trajectories", "nbody",
                      _NBODY, versions, SEEDS[:2])


def mocap() -> Experiment:
    """Equality and resilient constraints beside the strict model, on data that have a direction of gravity."""
    versions = {"strict": {"relaxed": False}, "equality": {}, "resilient": {"mode": "resilient"}}
    shared = {"case": "run", "epochs": 40, "eval_every": 5, "lr": 1e-3, "gate_patience": 200, "threads": 1}
    return Experiment("Human motion, run: EGNO strict, equality and resilient", "mocap", shared, versions,
                      data="mocap_run.npz")


# The step sizes are those of `ace-fast train`'s presets, not searched.
_QM9 = {"filter": "table", "train_samples": 0, "eval_samples": 0, "epochs": 20, "eval_every": 5, "warmup": 1.0}


def schnet() -> Experiment:
    """Strict and ACE on U0 and alpha, at batch 128 with the preset's step size scaled to it."""
    versions = {f"{name}-{target}": {"subtract_atomref": target == "U0", "target": target, "relaxed": name == "ace"}
                for target in ("U0", "alpha") for name in ("strict", "ace")}
    return Experiment("QM9: SchNet strict and with ACE", "qm9",
                      {"model": "schnet", **_QM9, "batch_size": 128, "lr_scaling": "sqrt"}, versions, SEEDS[:2],
                      data="qm9.npz")


def segnn() -> Experiment:
    """Strict and ACE on fewer molecules, and three targets."""
    versions = {f"{name}-{target}": {"target": target, "relaxed": name == "ace"}
                for target in ("alpha", "mu", "gap") for name in ("strict", "ace")}
    return Experiment("QM9: SEGNN strict and with ACE", "qm9", {"epochs": 15, "eval_every": 5}, versions, SEEDS[:2],
                      data="qm9.npz")


def dropping() -> Experiment:
    """Strict and ACE where up to 0.875 of every cloud's points are dropped, in training and in the test."""
    versions = {"strict": {"relaxed": False}, "ace": {}}
    return Experiment("Shapes: VN-DGCNN on clouds that lost points", "modelnet",
                      {"num_points": 128, "n_knn": 10, "epochs": 20, "eval_every": 10, "drop": 0.875}, versions,
                      SEEDS[:1], data="shapes40.npz")


def dropping_solids() -> Experiment:
    """The same where it can be learned, ten classes of solids, with the paper's optimiser and rate of the weights.

    ace has the gates of `ace-fast train`, ace-undamped the paper's.
    """
    paper = {"gamma_lr": 0.1, "dual_lr": 1e-4, "augmentation": 0.0, "bound": "none"}
    versions = {"strict": {"relaxed": False}, "ace": {}, "ace-undamped": paper}
    return Experiment("Solids: VN-DGCNN on clouds that lost points", "modelnet",
                      {"num_points": 64, "n_knn": 8, "test_per_class": 32, "epochs": 16, "eval_every": 4, "drop": 0.875,
                       "threads": 1, "optimizer": "sgd", "lr": 0.1}, versions, SEEDS[:2])


def batches_qm9() -> Experiment:
    """Batches up to the whole training set, 7463 molecules, in as many epochs: with the scaled step size, and without.
    """
    sizes = {"sqrt": (128, 512, 2048, 7463), "none": (7463,)}
    versions = {f"{scaling}-{size}": {"lr_scaling": scaling, "batch_size": size}
                for scaling, found in sizes.items() for size in found}
    return Experiment("Large batches: SchNet on QM9", "qm9",
                      {"model": "schnet", "relaxed": False, "target": "U0", "subtract_atomref": True, **_QM9}, versions,
                      SEEDS[:2], data="qm9.npz")


def batches_shapes() -> Experiment:
    """Batches up to the whole training set, 599 clouds less one, in as many epochs, with the scaled step size."""
    versions = {f"sqrt-{size}": {"batch_size": size} for size in (32, 598)}
    return Experiment("Large batches: VN-DGCNN on shapes", "modelnet",
                      {"relaxed": False, "lr_scaling": "sqrt", "num_points": 64, "n_knn": 8, "epochs": 15,
                       "eval_every": 5}, versions, SEEDS[:1], data="shapes40.npz")


EXPERIMENTS: dict[str, Experiment] = {
    make.__name__: make()
    for make in (nbody, samples, mocap, dropping, dropping_solids, schnet, segnn, batches_qm9, batches_shapes)}
