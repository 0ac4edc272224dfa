"""By which numbers each gamma is stepped: the default rule, groups of gammas with others, the warm-up."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from ..kernels.dual_update import Rule
from ..kernels.dual_update.op import check_rule
from .gammas import one_of

MODES = ("equality", "resilient")
STEPS = ("sgd", "adam")
_NUMBERS = ("lr", "dual_lr", "slack_lr", "rho", "epsilon", "augmentation")
_WORDS = {"mode": ("resilient", MODES), "gamma_optimizer": ("adam", STEPS), "dual_optimizer": ("dual_adam", STEPS)}

Groups = Mapping[str, Mapping[str, object]]


class Rules:
    """The rules of all gammas.

    Args:
        rule: of the gammas that are in no group.
        groups: {pattern of names, as a shell's: {"mode", "lr", ...: value}}; a gamma belongs to the first that fits.
        names: of the gammas.
        warmup: steps over which the constraints come in.

    Raises:
        ValueError: a pattern that fits no gamma, an unknown key, a number out of range.
    """

    def __init__(self, rule: Rule, groups: Groups | None, names: list[str], warmup: int):
        if groups is not None and not isinstance(groups, Mapping):
            raise ValueError("ACE: groups must be a dict such as {'layers.0.*': {'mode': 'resilient'}}, got a "
                             f"{type(groups).__name__}")
        self.rule, self.warmup = rule, warmup
        self.changes = [{}, *(fields(pattern, given) for pattern, given in (groups or {}).items())]
        self.groups = {pattern: dict(given) for pattern, given in (groups or {}).items()}
        patterns = list(self.groups)
        self.places = [next((i for i, p in enumerate(patterns, 1) if fnmatchcase(name, p)), 0) for name in names]
        for i, pattern in enumerate(patterns, 1):
            if i not in self.places:
                fits = any(fnmatchcase(name, pattern) for name in names)
                raise ValueError(f"ACE: groups[{pattern!r}] must name gammas, got none"
                                 + (" that an earlier group does not have" if fits else f"; there are {names}"))
        for kind in self.all():
            check_rule(kind, "ACE")

    def all(self) -> list[Rule]:
        """The default rule, then those of the groups."""
        return [self.rule._replace(**change) for change in self.changes]

    def at(self, steps: int) -> list[Rule]:
        """All rules after `steps` steps: in the warm-up the constraints have only begun to push."""
        part = min(1.0, (steps + 1) / self.warmup) if self.warmup else 1.0
        if part == 1:
            return self.all()
        return [r._replace(dual_lr=part * r.dual_lr, augmentation=part * r.augmentation) for r in self.all()]

    def numbers(self, steps: int) -> list[float]:
        """The rules one after the other as `dual_step` takes them, after `steps` steps."""
        return [float(value) for rule in self.at(steps) for value in rule]

    def of(self, gate: int) -> Rule:
        """The rule of the gamma with this place among the names."""
        return self.rule._replace(**self.changes[self.places[gate]])

    def may_return(self, gate: int) -> bool:
        """Whether its constraint is an inequality: then a branch that was switched off may come back."""
        rule = self.of(gate)
        return rule.resilient or rule.epsilon > 0


def check_counts(**counts: int) -> None:
    """Raises ValueError where one is no positive number of steps; the warm-up may be 0."""
    for name, count in counts.items():
        zero = name == "warmup"
        if not isinstance(count, int) or isinstance(count, bool) or count < 1 - zero:
            raise ValueError(f"ACE: {name} must be a {'' if zero else 'positive '}number of steps, got {count!r}")


def fields(pattern: str, given: Mapping[str, object]) -> dict[str, object]:
    """What a group changes of a `Rule`."""
    if not isinstance(given, Mapping):
        raise ValueError(f"ACE: groups[{pattern!r}] must be a dict such as {{'mode': 'resilient'}}, got {given!r}")
    found: dict[str, object] = {}
    for key, value in given.items():
        if key in _WORDS:
            field, allowed = _WORDS[key]
            one_of(f"groups[{pattern!r}][{key!r}]", value, allowed)
            found[field] = value == allowed[1]
        elif key not in _NUMBERS:
            raise ValueError(f"ACE: groups[{pattern!r}] must have keys of {[*_WORDS, *_NUMBERS]}, got {key!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"ACE: groups[{pattern!r}][{key!r}] must be a number, got {value!r}")
        else:
            found[key] = float(value)
    if "lr" in found:
        found.setdefault("slack_lr", found["lr"])
    return found


def parse_groups(text: str) -> dict[str, dict[str, object]]:
    """Groups from one line, "layers.0.*: mode=resilient epsilon=0.1; layers.3.*: epsilon=0.05".

    Raises:
        ValueError: a group without pattern, or a setting without "=".
    """
    found: dict[str, dict[str, object]] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        pattern, colon, settings = part.partition(":")
        pairs = [setting.partition("=") for setting in settings.split()]
        if not (colon and pattern.strip() and pairs and all(sign and value for _, sign, value in pairs)):
            raise ValueError("ACE: groups must be like 'layers.0.*: mode=resilient epsilon=0.1; ...', got "
                             f"{part!r}")
        found[pattern.strip()] = {key: value if key in _WORDS else _number(part, value) for key, _, value in pairs}
    return found


def _number(part: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"ACE: groups must have numbers, got {value!r} in {part!r}") from error
