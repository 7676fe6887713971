"""report.html: what an export, or a package, made and measured, as one page that needs nothing else."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from rich.filesize import decimal

from ..dialects import onnxruntime as dialect
from . import charts
from .layer_picture import picture
from .numbers import change, number, share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..foreign_layers import ForeignLayers
    from ..graph import Lowering
    from ..manifest import Manifest
    from ..precision import Precision
    from ..spec import ModelSpec
    from ..verify import Parity

FILE_NAME = "report.html"


@dataclass(frozen=True)
class Facts:
    """All that the page says.

    Attributes:
        manifest: of the version, as it is before the page is a file of it.
        spec: what the checkpoint is.
        lowering: how the graph came to be.
        parity: how close it is to the checkpoint.
        precision: what that had to be.
        command: what made it, as it was typed.
        unread: what the checkpoint has beside the model's parameters, in words.
    """

    manifest: Manifest
    spec: ModelSpec
    lowering: Lowering
    parity: Parity
    precision: Precision
    command: str
    unread: str


@dataclass(frozen=True)
class PackagedFacts:
    """All that the page of a graph that another exporter wrote says.

    Attributes:
        manifest, spec, parity, precision, command: as of `Facts`; the parity is to the original graph.
        graph: the file's name, as it was.
        layers: what is known of the graph.
    """

    manifest: Manifest
    spec: ModelSpec
    parity: Parity
    precision: Precision
    command: str
    graph: str
    layers: ForeignLayers


def page(facts: Facts) -> str:
    """The page of an export."""
    return _rendered("page.html", _said(facts))


def packaged(facts: PackagedFacts) -> str:
    """The page of a graph that was packaged; what only a checkpoint tells is left out."""
    return _rendered("packaged.html", _said_of_packaged(facts))


def _rendered(template: str, said: dict[str, Any]) -> str:
    """What a page lacks is an error, and every text is escaped."""
    here = resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (here / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": decimal, "number": number, "share": share, "change": change}
    style = (here / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, **said) + "\n"


def _said_of_parity(facts: Facts | PackagedFacts) -> dict[str, Any]:
    """What both templates speak of."""
    parity = facts.parity
    allowed = facts.precision.tolerance * parity.max_abs_logit
    return {
        "manifest": facts.manifest,
        "spec": facts.spec,
        "cache_shapes": _shapes(facts.manifest),
        "parity": parity,
        "precision": facts.precision,
        "command": facts.command,
        "allowed": allowed,
        "quantiles": [(q, float(np.quantile(parity.differences, q))) for q in (0.5, 0.9, 0.99)],
        "by_position": charts.by_position(parity.differences, parity.row_tokens, allowed),
    }


def _shapes(manifest: Manifest) -> str:
    """The heads of keys and values, of a layer or of those that differ."""
    counts = Counter(manifest.cache_shapes[::2])
    said = [f"{heads}, {width} wide" for heads, width in counts]
    if len(said) > 1:
        said = [f"{each} in {n} layer{'s' * (n > 1)}" for each, n in zip(said, counts.values(), strict=True)]
    return "; ".join(said)


def _said_of_packaged(facts: PackagedFacts) -> dict[str, Any]:
    layers = facts.layers
    shares = [(f"part{i}", each.bytes / layers.bytes) for i, each in enumerate(layers.sizes)]
    tied = "head" not in {each.part for each in layers.sizes}
    names = {"embedding": "embedding, head (tied)"} if tied else {}
    return {
        **_said_of_parity(facts),
        "graph": facts.graph,
        "layers": layers,
        "compared": "the graph without its cache" if facts.manifest.kv_cache.grows else "the original graph",
        "nodes": layers.operators.total(),
        "inside": layers.inside.total(),
        "sizes": [
            (class_, names.get(each.part, each.part), each, share)
            for (class_, share), each in zip(shares, layers.sizes, strict=True)
        ],
        "bar": charts.stacked(shares),
        "layer": picture(layers.layer) if layers.layer else None,
        "operators": [(name, layers.inside[name], count) for name, count in layers.operators.most_common()],
    }


def _said(facts: Facts) -> dict[str, Any]:
    """What the template of an export speaks of."""
    parity, lowering = facts.parity, facts.lowering
    total = lowering.bytes
    tied = "head" not in {each.part for each in lowering.sizes}
    names = {"embedding": "embedding, head (tied)"} if tied else {}
    return {
        **_said_of_parity(facts),
        "lowering": lowering,
        "unread": facts.unread,
        "by_layer": charts.by_layer(
            [each.median for each in parity.layers], [each.largest for each in parity.layers]
        )
        if parity.layers
        else None,
        "sizes": [
            (f"part{i}", names.get(each.part, each.part), each, each.bytes / total)
            for i, each in enumerate(lowering.sizes)
        ],
        "bar": charts.stacked([(f"part{i}", each.bytes / total) for i, each in enumerate(lowering.sizes)]),
        "rewrites": _rewrites(lowering),
        "idle": [name for name, places in lowering.changes.items() if not places],
        "operators": _operators(lowering),
        "before": picture(lowering.before),
        "after": picture(lowering.after),
    }


def _rewrites(lowering: Lowering) -> list[tuple[str, str, int, str, int]]:
    """(pass, what it is for, places, how the layer changed, its nodes afterwards) for each that changed something."""
    rows = []
    now: Mapping[str, int] = lowering.before.operators
    for each in lowering.rewrites:
        then, now = now, dict(each.operators)
        if each.places:
            gone = [f"−{n} {op}" for op in then if (n := then[op] - now.get(op, 0)) > 0]
            new = [f"+{n} {op}" for op in now if (n := now[op] - then.get(op, 0)) > 0]
            rows.append(
                (each.name, _purpose(each.name), each.places, ", ".join(gone + new), sum(now.values()))
            )
    return rows


def _purpose(name: str) -> str:
    """The first line of what a pass says of itself."""
    rewrite = next(each for each in dialect.PASSES if each.__name__ == name)
    module = sys.modules[rewrite.__module__]
    said = inspect.getdoc(rewrite if module is dialect else module) or ""
    return said.splitlines()[0].replace("`", "")


def _operators(lowering: Lowering) -> list[tuple[str, int, int]]:
    """(operator, nodes of the layer before, after)."""
    before, after = lowering.before.operators, lowering.after.operators
    return [(op, before[op], after[op]) for op in dict.fromkeys([*before, *after])]
