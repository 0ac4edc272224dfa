"""The tasks that can be trained, one module each. The loop, run folders, reports and the command line are shared.

A task module defines

    TITLE, HELP, DESCRIPTION, DATA_HELP   texts of the report and of the command line
    OPTIONS, PRESETS, PRESET_HELP         its settings; check(config) where they must fit together
    BEST                                  min or max: which value of its measure on validation data is the best
    CURVES                                whether a finished run's best checkpoint is measured once more, with curves
    EQUIVARIANCE                          what the equivariance error is, as the label of its axis
    RELAXATIONS                           what --relaxation may be
    BRANCHED                              which of its models have branches, where not all
    for_data(given)                       settings for `ace-fast data`
    load(config, split, quiet)            the data of "train", "valid" or "test"
    facts(data)                           what model and predictions need to know of the training data, as JSON
    any_facts(config)                     facts of data that nobody has read, with which a model can be built
    build_model(config, facts)            with get_gammas(), set_equivariance(flag), relaxed and probe()
    shards(config, split), parts(config, split), written(config)
                                          where the data may lie in shards (tasks/sharded.py): those of a split opened
                                          and checked, what is written into them, and what they must have in common
                                          with a run
    LEAST                                 samples that a batch must have, where that is more than 1
    Training(config, facts, data)         .batches (as `Batcher`: an iterable with len, shard, split, weight, last,
                                          state_dict and load_state_dict) and .loss(model, batch), the mean over the
                                          batch's samples; .inputs() where the config says `recalibrate`;
                                          .turned(batch), each sample turned by its own random element of the group,
                                          where RELAXATIONS has remul
    Evaluation(config, facts, valid, test)
                                          .fixed (what every measurement repeats), .probe(model) (the outputs whose
                                          equivariance is measured), .measure(model) with the keys "valid", "test" and
                                          "equivariance"; .curves(model) where CURVES
    Predictor(config, facts, model)       predict(...) and answer(file)
    summary(latest, facts)                its results in words, as (what, value)
    plots(rows, result)                   its charts, for report.html and report.png
"""

from types import ModuleType

from . import md17, mocap, modelnet, nbody, qm9

TASKS: dict[str, ModuleType] = {"nbody": nbody, "modelnet": modelnet, "qm9": qm9, "mocap": mocap, "md17": md17}


def find(name: str) -> ModuleType:
    """The module of a task.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"train: task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]
