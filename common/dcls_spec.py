"""What becomes DCLS in a model, and how: the specification of a surgery, and the convolutions it selects."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from common.dcls import INTERPOLATIONS
from common.errors import did_you_mean

Select = Callable[[str, nn.Conv2d], bool]
"""Takes the name of a convolution and the convolution, and says whether it becomes DCLS."""


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels > 1 and conv.kernel_size != (1, 1)


SELECTION_RULES: dict[str, Callable[[nn.Conv2d], bool]] = {
    "depthwise": _is_depthwise,
    "depthwise_7x7": lambda conv: _is_depthwise(conv) and conv.kernel_size == (7, 7),
    "3x3": lambda conv: conv.kernel_size == (3, 3),
}
"""Which convolutions the study replaces: `depthwise` in ConvNeXt and MetaFormer, `depthwise_7x7` in FastViT
(its 3x3 RepMixer and its strided large kernels stay), `3x3` in ResNet."""

WEIGHT_INITS: dict[str, Callable[[Tensor], object]] = {
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "trunc_normal": lambda weight: nn.init.trunc_normal_(weight, std=0.02),
    "kaiming": lambda weight: None,  # what the layer was made with
}

INITS = ("fresh", "preserve")

MOST_PIXELS = 1023
"""Side of the largest dilated kernel, larger than any image a network sees in practice."""


@dataclass(frozen=True)
class DclsSpec:
    """How a model's convolutions become DCLS layers. Plain data, which a checkpoint keeps."""

    interpolation: str
    """`v0`, `v1`, `max` or `gauss`."""
    dilated_kernel_size: int
    """Side of the dense kernel in pixels."""
    kernel_count: int
    """Elements a kernel has."""
    rule: str | tuple[str, ...] = "depthwise"
    """Which convolutions: a key of `SELECTION_RULES`, a pattern for names of modules such as `stages.3.*`, or several
    names and patterns. `*` stands for any characters, dots included, `?` for one, `[ab]` for one of those."""
    share_positions: bool = True
    """One P (and SIG) for all layers of a stage."""
    weight_init: str = "normal"
    """A key of `WEIGHT_INITS`, for layers that start fresh."""
    init: str = "fresh"
    """`fresh`: new weights, positions near the centre. `preserve`: the function of the convolution, exactly where
    there are as many elements as taps or more (with `gauss` nearly so), else as nearly as can be; see
    `common.preserve`."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("weight_init", self.weight_init, tuple(WEIGHT_INITS)),
            ("init", self.init, INITS),
        ):
            if value not in known:
                raise ValueError(f"DclsSpec.{name} is {value!r}; take one of {', '.join(known)}")
        if isinstance(self.rule, str):
            if self.rule not in SELECTION_RULES and not re.search(r"[.*?[]", self.rule):
                raise ValueError(
                    f"DclsSpec.rule is {self.rule!r}; take one of {', '.join(SELECTION_RULES)}, a pattern for names of "
                    "modules such as stages.3.*, or a list of names"
                )
        elif not self.rule or not all(isinstance(name, str) for name in self.rule):
            raise ValueError(f"DclsSpec.rule is {self.rule!r}; a list holds names of modules or patterns")
        else:
            object.__setattr__(self, "rule", tuple(self.rule))  # JSON and YAML know lists only
        for name, number, most in (
            ("dilated_kernel_size", self.dilated_kernel_size, MOST_PIXELS),
            ("kernel_count", self.kernel_count, MOST_PIXELS**2),
        ):
            if number < 1:
                raise ValueError(f"DclsSpec.{name} is {number}; it must be at least 1")
            if number > most:
                raise ValueError(f"DclsSpec.{name} is {number}; it must be at most {most}")
        if self.init == "preserve" and self.kernel_count > self.dilated_kernel_size**2:
            raise ValueError(
                f"DclsSpec.kernel_count is {self.kernel_count}; to preserve a function there must not be more elements "
                f"than the {self.dilated_kernel_size**2} pixels of the dilated kernel"
            )


def selected_convs(model: nn.Module, spec: DclsSpec, select: Select | None = None) -> dict[str, nn.Conv2d]:
    """The convolutions that a function, or else the spec's rule, selects, by name, in the order of `named_modules`.

    Raises:
        ValueError: there are none, or a name or pattern fits none.
    """
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if select is not None:
        chosen, how = {name for name, conv in convs.items() if select(name, conv)}, "select"
    elif isinstance(spec.rule, str) and spec.rule in SELECTION_RULES:
        chosen, how = {name for name, conv in convs.items() if SELECTION_RULES[spec.rule](conv)}, f"rule {spec.rule!r}"
    else:
        chosen, how = set(), f"rule {spec.rule!r}"
        for pattern in [spec.rule] if isinstance(spec.rule, str) else spec.rule:
            found = [name for name in convs if fnmatchcase(name, pattern)]
            if not found:
                raise ValueError(
                    f"rule: {type(model).__name__} has no convolution called {pattern}; {did_you_mean(pattern, convs)}"
                )
            chosen |= set(found)
    if not chosen:
        raise ValueError(f"{how} selects no convolution of {type(model).__name__}")
    return {name: conv for name, conv in convs.items() if name in chosen}
