"""How many nodes a layer has in the graph that each exporter writes."""

from __future__ import annotations

import json

from benchmarks import graph
from benchmarks.decode import RACES, Race, job, prepare
from benchmarks.environment import OURS
from benchmarks.results import Contestant, Result

GRAPHS = {OURS: "model/1/model.onnx", "genai": "model.onnx", "exporters": "decode.onnx"}
AIM = 12  # nodes a layer, at most


def compared() -> list[Race]:
    """The races whose graphs can be counted: those against another exporter to ONNX."""
    return [race for race in RACES if race.peers.keys() & GRAPHS.keys()]


def run(race: Race, peers: list[str], threads: int) -> Result:
    """Count the nodes of the graphs that gptport and those of `peers` that write one make of the model of `race`."""
    config = json.loads((job(race, OURS, threads).checkpoint / "config.json").read_text(encoding="utf-8"))
    layers = config.get("num_hidden_layers") or config["n_layer"]
    contestants = [_counted(race, name, layers, threads) for name in GRAPHS if name == OURS or name in peers]
    ours = contestants[0].values[0]
    return Result(
        name=race.name.replace("decode", "nodes", 1),
        title=f"Nodes of the graph of {race.checkpoint} {race.variant}",
        unit="nodes a layer",
        more_is_better=False,
        contestants=tuple(contestants),
        notes=(f"the aim of at most {AIM} nodes a layer is {'reached' if ours <= AIM else 'missed'}",),
    )


def _counted(race: Race, name: str, layers: int, threads: int) -> Contestant:
    asked = job(race, name, threads)
    prepare(asked, name)
    counts = graph.operators(asked.folder / GRAPHS[name])
    each = graph.per_layer(counts, layers)
    most = ", ".join(
        f"{count // layers} {operator}" for operator, count in counts.most_common() if count >= layers
    )
    return Contestant(name, (each,), 0, remark=f"{counts.total()} in all; a layer: {most}")
