"""What all interactives share: their script, their controls, their state in Python."""

__all__ = ["Interactive", "choice", "number", "whole"]

import re
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets

FOLDER = Path(__file__).parent
IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)


@cache
def bundle(name: str) -> str:
    """Join an ES module and those that it imports, each once, to one without imports."""
    joined, order = {}, []

    def visit(module: str) -> None:
        if module in joined:
            return
        text = (FOLDER / f"{module}.js").read_text(encoding="utf-8")
        joined[module] = IMPORT.sub("", text)
        for needed in IMPORT.findall(text):
            visit(needed)
        order.append(module)

    visit(name)
    helpers = [re.sub("^export (?!default)", "", joined[part], flags=re.M) for part in order[:-1]]
    return "\n".join([*helpers, joined[name]])


class _Control:
    """A trait that a control on the page moves."""

    def validate(self, obj, value):
        try:
            value = super().validate(obj, value)
        except traitlets.TraitError:
            raise traitlets.TraitError(f"Invalid {self.name}={value!r}. Use {self.rule}.") from None
        return value


class _Number(_Control, traitlets.Float):
    @property
    def rule(self) -> str:
        return f"a number from {self.min:g} to {self.max:g}"


class _Whole(_Control, traitlets.Int):
    @property
    def rule(self) -> str:
        return f"a whole number from {self.min} to {self.max}"


class _Choice(_Control, traitlets.Enum):
    @property
    def rule(self) -> str:
        return " or ".join(repr(value) for value in self.values or ())


def number(
    value: float, low: float, high: float, label: str, *, step: float = 0.01, unit="", log=False
) -> traitlets.Float:
    """Return a trait with a slider for a real number; a logarithmic one keeps three digits."""
    control = dict(label=label, value=value, min=low, max=high, step=step, unit=unit, log=log)
    return _Number(value, min=low, max=high, help=label).tag(sync=True, control=control)


def whole(value: int, low: int, high: int, label: str, *, step: int = 1, unit="") -> traitlets.Int:
    """Return a trait with a slider for a whole number."""
    control = dict(label=label, value=value, min=low, max=high, step=step, unit=unit, log=False)
    return _Whole(value, min=low, max=high, help=label).tag(sync=True, control=control)


def choice(value: str, options: dict[str, str], label: str) -> traitlets.Enum:
    """Return a trait with a menu; ``options`` gives each value its words."""
    control = dict(label=label, value=value, options=list(options.items()))
    return _Choice(list(options), value, help=label).tag(sync=True, control=control)


class Interactive(anywidget.AnyWidget):
    """An interactive figure. Traits with a control are its state.

    Subclasses name their ES module and give ``numbers``: what the module computes, by fedlib.

    Args:
        **state: values of its controls; the others keep their defaults.

    Raises:
        TypeError: if it has no such control.
        TraitError: if a value is out of its control's range.
    """

    _css = (FOLDER / "panel.css").read_text(encoding="utf-8")
    controls: Any = traitlets.List(help="what the page builds sliders and menus from").tag(
        sync=True
    )

    def __init_subclass__(cls, module: str | None = None, **options) -> None:
        if module:  # none for the classes that traitlets makes when a trait is added
            cls._esm = bundle(module)
        super().__init_subclass__(**options)

    def __init__(self, **state) -> None:
        known = self.names()
        for name in state:
            if name not in known:
                raise TypeError(
                    f"Invalid {name}={state[name]!r}: {type(self).__name__} has no such control. "
                    f"Use {', '.join(known)}."
                )
        controls = [{"name": name} | self.traits()[name].metadata["control"] for name in known]
        super().__init__(controls=controls, **state)

    @classmethod
    def names(cls) -> list[str]:
        """Names of the controls, in their order on the page."""
        traits = cls.class_traits(control=lambda control: control is not None)
        order = [name for base in reversed(cls.__mro__) for name in vars(base)]
        return sorted(traits, key=order.index)

    @property
    def state(self) -> dict:
        """The value of every control."""
        return {name: getattr(self, name) for name in self.names()}

    def numbers(self) -> dict:
        """Compute with fedlib what the page computes in JavaScript from the same state."""
        raise NotImplementedError

    def __repr__(self) -> str:
        defaults = self.trait_defaults()
        moved = [f"{k}={v!r}" for k, v in self.state.items() if v != defaults[k]]
        return f"{type(self).__name__}({', '.join(moved)})"
