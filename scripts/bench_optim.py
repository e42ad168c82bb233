"""ms and bytes of an optimizer's step, compared with torch's fused AdamW and the minimum that memory traffic needs.

An optimizer is an option of configs/optim, with overrides after a colon (soap:roles.matrix.one_sided=true), or a class
in a file of yours (sophia.py:SophiaG) with its default settings. The minimum is the time to read parameter, gradient
and state once and to write parameter and state once, at the bandwidth of an in-place addition, which is also measured.

--parallel N ... measures each optimizer on N ranks of one thread each (one GPU each if there are any) instead, under
DDP and under FSDP2, and in one process. It reports the largest figures of any rank: the share of the arithmetic (for
matrix methods what the owner of a matrix is assigned), the CPU time of a step, which unlike wall time does not depend
on the number of cores, and bytes; each as a fraction of that of one process.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs import compose, plug_in
from data import Batch
from files.paths import expanded
from model import LanguageModel
from optim.build import build
from optim.ensemble import OptimizerSet, curvature_of
from optim.memory import state_bytes
from optim.sharding import is_sharded, local
from scripts.benchmarking import (
    SCRIPT,
    Round,
    a_count,
    a_count_or_0,
    in_words,
    interleaved,
    median_and_spread,
    module_in,
    report,
)
from trainer import DDP, FSDP2, Single, environment
from trainer.allocator import tune_allocator
from trainer.parallel import Strategy

BASELINE = {"_target_": "torch.optim.AdamW", "lr": 1e-4, "fused": True}
TRAFFIC_BYTES = 3 << 28  # of an addition of two tensors of 256 MiB: two reads, one write
VOCAB_SIZE = {"nano": 4096, "micro": 4096}
DEFAULT_VOCAB_SIZE = 50257
COMMAS = re.compile(r",(?![^\[{]*[\]}])")  # outside of brackets
PLACEMENTS = {"ddp": DDP, "fsdp2": FSDP2}
RankFigures = Sequence[Mapping[str, float]]  # by rank
FRACTIONS = ("arithmetic", "cpu_seconds", "state_bytes", "held_bytes")  # reported as fractions of those of one process


def make_round(settings: Mapping[str, Any]) -> Round:
    """Returns a function for `steps` steps of an optimizer with fixed gradients, or as many additions (bandwidth)."""
    if settings["tuned_allocator"]:
        tune_allocator()
    device = environment.pick_device("auto")
    environment.set_precision_of_products(environment.pick_precision("auto", device), device)
    torch.manual_seed(0)
    step = _addition(device) if settings["optim"] is None else _optimizer_step(settings, device)

    def run() -> None:
        for _ in range(settings["steps"]):
            step()
        environment.synchronize(device)

    return run


def _addition(device: torch.device) -> Round:
    a, b = (torch.ones(TRAFFIC_BYTES // 12, device=device) for _ in range(2))
    return lambda: (a.add_(b), None)[1]


def _optimizer_step(settings: Mapping[str, Any], device: torch.device) -> Round:
    model = plug_in(settings["model"]).to(device)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-2
    optimizer = optimizer_of(json.loads(settings["optim"]), dict(model.named_parameters()), model.roles())
    return partial(optimizer.step, is_finite=torch.tensor(True, device=device))  # as train.py does


def optimizer_of(
    node: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    roles: Mapping[str, str],
    group: dist.ProcessGroup | None = None,
) -> OptimizerSet:
    """Builds the optimizer of a node from optimizer_node, for parameters with gradients."""
    if "file" in node:
        foreign = _class_in(node["file"], node["class"])(parameters.values())
        return OptimizerSet([foreign], {p: name for name, p in parameters.items()})
    ours = build(node, parameters, roles, seed=0, global_batch=1 << 20, group=group)
    _give_curvature(ours)
    return ours


def _give_curvature(optimizer: OptimizerSet) -> None:
    """Gives the optimizer a first curvature estimate, without which it may refuse to step."""
    for each in filter(curvature_of, optimizer.optimizers):
        taking: Any = each
        taking.update_curvature({p: p.grad.square() for p in optimizer.names if p.grad is not None})


def _class_in(file: str, name: str) -> Any:
    if not Path(file).is_file():
        raise ValueError(f"--optim {file}:{name}: there is no Python file {file}")
    module = module_in(Path(file))
    if not hasattr(module, name):
        raise ValueError(f"--optim {file}:{name}: the file has no class {name}")
    return getattr(module, name)


def optimizer_node(text: str) -> dict[str, Any]:
    """Returns what --optim names: a node for optim.build, or {"file", "class"}."""
    name, _, rest = text.partition(":")
    if name.endswith(".py"):
        name = str(expanded(name, "--optim"))
        _class_in(name, rest)
        return {"file": str(Path(name).resolve()), "class": rest}
    overrides = [f"optim.{override}" for override in COMMAS.split(rest) if override]
    return dict(compose([f"optim={name}", *overrides]).optim)


def run(arguments: argparse.Namespace) -> None:
    """Measures and reports steps."""
    named = {text: optimizer_node(text) for text in arguments.optim}
    shapes = {name: model_settings(name) for name in arguments.model}
    if arguments.parallel:
        _run_parallel(arguments, named, shapes)
    else:
        _run_alone(arguments, {"torch AdamW, fused": BASELINE} | named, shapes)


def model_settings(name: str) -> dict[str, Any]:
    """Returns an option of configs/model, with a vocabulary size."""
    return {**compose([f"model={name}"]).model, "vocab_size": VOCAB_SIZE.get(name, DEFAULT_VOCAB_SIZE)}


def _run_alone(arguments: argparse.Namespace, nodes: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    rows, results = [], []
    for name, shape in shapes.items():
        with torch.device("meta"):
            model = plug_in(shape)
        common = {
            "benchmark": "optim",
            "model": shape,
            "warmup": arguments.warmup,
            "steps": arguments.steps,
            "tuned_allocator": not arguments.default_allocator,
        }
        variants = {text: {**common, "optim": json.dumps(found)} for text, found in nodes.items()}
        seconds = interleaved(SCRIPT, {"addition": {**common, "optim": None}, **variants}, arguments.rounds)
        bandwidth = arguments.steps * TRAFFIC_BYTES / median_and_spread(seconds.pop("addition"))[0]
        for text, found in seconds.items():
            row, result = _figures(model, nodes[text], [each / arguments.steps for each in found], bandwidth)
            ratio = in_words(found, seconds["torch AdamW, fused"])
            rows.append({"model": name, "optimizer": text, **row, "x fused AdamW": ratio})
            results.append({"model": name, "optimizer": text, **result})
    report("optimizer step", rows, results, arguments.json)


def _figures(
    model: LanguageModel, node: Mapping[str, Any], seconds: list[float], bandwidth: float
) -> tuple[dict[str, str], dict[str, Any]]:
    """The row of the table, and of the JSON file. seconds: per step, of every round; bandwidth: bytes per second."""
    parameters = dict(model.named_parameters())
    n_parameters = sum(p.numel() for p in parameters.values())
    state = None if "file" in node else state_bytes(node, parameters, model.roles())
    floor = None if state is None else (3 * 4 * n_parameters + 2 * state) / bandwidth
    median, spread = median_and_spread(seconds)
    row = {
        "state MB (B/param)": "n/a" if state is None else f"{state / 1e6:,.1f} ({state / n_parameters:.2f})",
        "ms per step": f"{median * 1e3:,.1f} ± {spread:.0%}",
        "floor ms": "n/a" if floor is None else f"{floor * 1e3:,.1f}",
    }
    return row, {"state_bytes": state, "floor_seconds": floor, "seconds": seconds}


def _run_parallel(arguments: argparse.Namespace, nodes: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Measures every placement on every number of ranks; every round runs all in turn, in new processes."""
    worlds = [("single", 1), *((how, n) for n in _world_sizes(arguments.parallel) for how in PLACEMENTS)]
    common = {"warmup": arguments.warmup, "steps": arguments.steps, "tuned_allocator": not arguments.default_allocator}
    rows, results = [], []
    for name, shape in shapes.items():
        settings = {**common, "model": shape, "optim": nodes}
        found: dict[tuple[str, int], list[dict[str, RankFigures]]] = {world: [] for world in worlds}
        for _ in range(arguments.rounds):
            for world in worlds:
                found[world].append(_on_ranks(settings, *world))
        for text in nodes:
            of_text = {world: [each[text] for each in rounds if text in each] for world, rounds in found.items()}
            for (how, n), rounds in of_text.items():
                facts = {"model": name, "optimizer": text, "ranks": n, "placement": how}
                row, result = _parallel_figures(rounds, of_text["single", 1])
                rows.append({**{key: str(fact) for key, fact in facts.items()}, **row})
                results.append({**facts, **result})
    report("optimizer step across ranks, (fraction of one process's)", rows, results, arguments.json)


def _world_sizes(wanted: Sequence[int]) -> list[int]:
    """The numbers of ranks above 1, once each. Raises: ValueError: if this machine cannot start so many."""
    for n in wanted:
        if n < 1:
            raise ValueError(f"--parallel {n}: a number of processes is at least 1")
        if torch.cuda.is_available() and n > (devices := torch.cuda.device_count()):
            raise ValueError(f"--parallel {n}: every rank needs a GPU of its own, and this machine has {devices}")
    return sorted(set(wanted) - {1})


def _on_ranks(settings: Mapping[str, Any], placement: str, n: int) -> dict[str, RankFigures]:
    """The figures of n ranks by optimizer, without optimizers that the placement does not allow; see measure_rank."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
        asked = json.dumps({**settings, "placement": placement, "file": str(file)})
        ended = subprocess.run([*launcher, str(SCRIPT), "rank", asked], env={**os.environ, "OMP_NUM_THREADS": "1"})
        if ended.returncode or not file.is_file():
            raise RuntimeError(f"{placement} on {n} ranks ended early; its own message stands above")
        found: dict[str, RankFigures] = json.loads(file.read_text())
        return found


def measure_rank(settings: Mapping[str, Any]) -> None:
    """Runs on each rank: measures steps of its share; the main rank writes the figures of all to a file."""
    if settings["tuned_allocator"]:
        tune_allocator()
    strategy = _open_strategy(settings["placement"])
    gathered = {}
    for text, node in settings["optim"].items():
        try:
            gathered[text] = strategy.ranks.gather(_rank_figures(strategy, node, settings))
        except ValueError as error:  # on all ranks: the placement does not allow this optimizer
            if strategy.is_main:
                print(f"{text} under {settings['placement']}: {error}", file=sys.stderr)
    if strategy.is_main:
        Path(settings["file"]).write_text(json.dumps(gathered))
    strategy.close()


def _rank_figures(strategy: Strategy, node: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, float]:
    torch.manual_seed(0)
    model = plug_in(settings["model"])
    roles = model.roles()
    strategy.prepare(model, model.blocks)
    _fill_gradients(strategy, model)
    optimizer = optimizer_of(node, dict(model.named_parameters()), roles, strategy.group)
    for _ in range(settings["warmup"] * settings["steps"]):
        optimizer.step()
    strategy.synchronize()
    strategy.ranks.barrier()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(settings["steps"]):
        optimizer.step()
    strategy.synchronize()
    return {
        "cpu_seconds": (time.process_time() - cpu) / settings["steps"],
        "wall_seconds": (time.perf_counter() - wall) / settings["steps"],
        "arithmetic": _arithmetic(optimizer, strategy.rank),
        **_bytes(model, optimizer),
    }


def _open_strategy(placement: str) -> Strategy:
    device = environment.pick_device("auto")
    if placement == "single":
        return Single(device=device, precision="fp32", compiled=False)
    found: Strategy = PLACEMENTS[placement](device=device, precision="fp32", compiled=False, timeout_seconds=3600)
    return found


def _fill_gradients(strategy: Strategy, model: LanguageModel) -> None:
    """Sets gradients of fixed random numbers; those of full parameters are the same on all ranks."""
    row = torch.zeros(1, 8, dtype=torch.int64, device=strategy.device)
    strategy.forward_backward([Batch(row, row, range(1))], lambda m, batch: m(batch.inputs, batch.targets), 1)
    for n, p in enumerate(model.parameters()):
        assert p.grad is not None
        torch.manual_seed(n * strategy.world_size + (strategy.rank if is_sharded(p) else 0))
        local(p.grad).normal_(std=1e-2)


def _arithmetic(optimizer: OptimizerSet, rank: int) -> float:
    """The rank's arithmetic of a step: the cost that Owners assign; without owners, the numbers that it updates."""
    own, everything = 0.0, 0.0
    for member in optimizer.members:
        owners = member.owners()
        params = [p for group in member.param_groups for p in group["params"]]
        own += sum(local(p).numel() for p in params) if owners is None else owners.loads[rank]
        everything += sum(p.numel() for p in params) if owners is None else sum(owners.loads)
    return own / everything


def _bytes(model: LanguageModel, optimizer: OptimizerSet) -> dict[str, float]:
    """The bytes of memory that this rank holds between steps."""
    parameters = list(model.parameters())
    state = [tensor for tensor in optimizer.save_state()[0].values() if tensor.ndim]
    held = {
        "parameter_bytes": _storage_bytes(parameters),
        "gradient_bytes": _storage_bytes(p.grad for p in parameters if p.grad is not None),
        "state_bytes": _storage_bytes(state),
    }
    return {**held, "held_bytes": sum(held.values())}


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of the storages of the local tensors, padding included; a shared storage counts once."""
    storages = [local(tensor.detach()).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _of_fullest(rounds: Sequence[RankFigures]) -> dict[str, float]:
    """The median over rounds of the largest figure of any rank."""
    return {key: statistics.median(max(rank[key] for rank in ranks) for ranks in rounds) for key in rounds[0][0]}


def _parallel_figures(
    rounds: Sequence[RankFigures], of_single: Sequence[RankFigures]
) -> tuple[dict[str, str], dict[str, Any]]:
    """The row of the printed table, and of the JSON file; n/a where the optimizer is not allowed."""
    columns = ("arithmetic", "CPU ms per step", "wall ms", "state MB", "with parameters and gradients")
    if not (rounds and of_single):
        return dict.fromkeys(columns, "n/a"), {"fullest": None, "fractions": None, "rounds": []}
    fullest, single = _of_fullest(rounds), _of_fullest(of_single)
    fractions = {key: fullest[key] / single[key] for key in FRACTIONS}
    _, spread = median_and_spread([max(rank["cpu_seconds"] for rank in ranks) for ranks in rounds])
    cells = (
        f"{fractions['arithmetic']:.3f}",
        f"{fullest['cpu_seconds'] * 1e3:,.1f} ± {spread:.0%} ({fractions['cpu_seconds']:.2f})",
        f"{fullest['wall_seconds'] * 1e3:,.1f}",
        *(f"{fullest[key] / 1e6:,.1f} ({fractions[key]:.3f})" for key in ("state_bytes", "held_bytes")),
    )
    result = {"fullest": fullest, "fractions": fractions, "rounds": list(rounds)}
    return dict(zip(columns, cells, strict=True)), result


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py optim`."""
    command.add_argument("--optim", nargs="+", default=["adamw_ours", "sophiag"], help="see the top of bench_optim.py")
    command.add_argument("--model", nargs="+", default=["gpt2_small"])
    command.add_argument("--steps", type=a_count, default=10, help="per round; 10 have a refresh in each")
    command.add_argument("--rounds", type=a_count, default=7)
    command.add_argument("--warmup", type=a_count_or_0, default=1, help="rounds")
    command.add_argument("--default-allocator", action="store_true")
    command.add_argument("--parallel", nargs="+", type=int, metavar="N", help="ranks; see the top of bench_optim.py")
