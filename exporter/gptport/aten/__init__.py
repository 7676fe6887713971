"""ATen operators as ONNX operators: what is left of a model between the modules that were swapped.

Each module has a group of them. An operator that none of them has stops the export with its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnsupportedModel
from . import elementwise, lookups, reductions, views
from .translator import DTYPES, Translator, symbolic_shape

if TYPE_CHECKING:
    from ..recording import Call

__all__ = ["DTYPES", "TRANSLATIONS", "Translator", "symbolic_shape", "translate"]

TRANSLATIONS = {
    **elementwise.TRANSLATIONS,
    **views.TRANSLATIONS,
    **lookups.TRANSLATIONS,
    **reductions.TRANSLATIONS,
}


def translate(t: Translator, call: Call) -> None:
    """Append the nodes of a call.

    Raises:
        UnsupportedModel: the operator has no translation.
    """
    domain, operator = call.operator.split("::")
    if domain != "aten":
        t.ours(call, domain, operator)
    elif call.operator in TRANSLATIONS:
        results = TRANSLATIONS[call.operator](t, call)
        for ref, value in zip(call.results, results, strict=True):
            t.describe(ref, value)
    else:
        raise UnsupportedModel(
            f"{call.scope or 'the model'} computes {call.operator}, which gptport has no ONNX operator for"
        )
