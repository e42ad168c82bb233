"""Seconds of preparing a corpus, and of a batch, beside nanoGPT's ways; both get the same tokenizer and documents.

The corpus is Python files of this machine. nanoGPT's way of preparing: `datasets` maps tiktoken's encode_ordinary over
the rows of an Arrow file, on as many processes as there are cores, and a memory map is filled from 1024 shards of the
result. Its Arrow file is made before the clock starts; ours reads the text files. Its way of a batch: the memory map is
opened anew, and every random window is copied to int64 by itself. The tokenizer is trained before, on a clock of its
own.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from configs import compose, plug_in
from data import TokenDataset, TokenizerFile, TokenLoader, prepare, read_tokenizer
from data.metadata import shard_name
from data.sampling import sample
from data.shards import read_meta
from data.source import Source
from data.text import readable_documents
from data.tokenizers import TOKENIZER_FILE, BytePairs
from scripts.benchmarking import SCRIPT, Round, a_count, in_words, interleaved, median_and_spread, report

N_SHARDS = 1024  # of nanoGPT's prepare.py
OURS, PEERS = "ours", "nanoGPT's way"


def run(arguments: argparse.Namespace) -> None:
    """Measures and reports the training of the tokenizer, preparations, and batches."""
    config = compose(["data=pysource", f"data.source.megabytes={arguments.megabytes}"])
    source = plug_in(config.data.source)
    with TemporaryDirectory(dir=arguments.folder) as folder:
        started = time.perf_counter()
        tokenizer = plug_in(config.data.tokenizer).fit(
            lambda n: sample(source.units(), lambda u: readable_documents(source.documents(u)), n)
        )
        training = time.perf_counter() - started
        (Path(folder) / TOKENIZER_FILE).write_text(json.dumps(tokenizer.to_json()))
        common = {"benchmark": "data", "megabytes": arguments.megabytes, "folder": folder}
        preparation = {name: {**common, "what": "preparation", "way": name, "warmup": 0} for name in (OURS, PEERS)}
        prepared = interleaved(SCRIPT, preparation, arguments.rounds)
        counts = {name: int((Path(folder) / name).read_text()) for name in preparation}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the two ways made other numbers of tokens, so their work was not the same: {counts}")
        shape = {"batch": arguments.batch, "block_size": arguments.block_size, "batches": arguments.batches}
        loading = {name: {**common, **shape, "what": "batches", "way": name, "warmup": 1} for name in (OURS, PEERS)}
        loaded = interleaved(SCRIPT, loading, arguments.rounds)
    n_tokens = counts[OURS]
    rows = [{"what": "training the tokenizer", "way": OURS, "seconds": f"{training:.1f}", "tokens/s": "", "x": ""}]
    rows += [_row("preparation", way, found, prepared[OURS], n_tokens) for way, found in prepared.items()]
    a_batch = {way: [seconds / arguments.batches for seconds in found] for way, found in loaded.items()}
    per_batch = arguments.batch * arguments.block_size
    rows += [_row("a batch", way, found, a_batch[OURS], per_batch) for way, found in a_batch.items()]
    results: list[dict[str, Any]] = [
        {"what": "training the tokenizer", "seconds": [training]},
        *({"what": "preparation", "way": way, "tokens": n_tokens, "seconds": each} for way, each in prepared.items()),
        *({"what": "a batch", "way": way, **shape, "seconds": each} for way, each in a_batch.items()),
    ]
    title = f"data: {arguments.megabytes} MB of Python, {tokenizer.vocab_size:,} ids, {os.cpu_count()} cores"
    report(title, rows, results, arguments.json)


def make_round(settings: Mapping[str, Any]) -> Round:
    """Returns a function that prepares the corpus once, or reads a number of batches, in one of the two ways."""
    folder, is_ours = Path(settings["folder"]), settings["way"] == OURS
    if settings["what"] == "preparation":
        source = plug_in(compose(["data=pysource", f"data.source.megabytes={settings['megabytes']}"]).data.source)
        return _our_preparation(source, folder) if is_ours else _peers_preparation(source, folder)
    place = next(path.parent for path in folder.glob("*/dataset.json"))
    return (_our_batches if is_ours else _peers_batches)(place, settings)


def _our_preparation(source: Source, folder: Path) -> Round:
    settings = {"val_fraction": 0.05, "split_seed": 2357, "shard_tokens": 100_000_000, "workers": None}
    tokenizer = TokenizerFile(str(folder / TOKENIZER_FILE))

    def run() -> None:
        for old in folder.glob("*/dataset.json"):
            old.unlink()  # what it describes is made anew
        path = prepare(source, tokenizer, folder, console=False, **settings)  # type: ignore[arg-type]  # by name
        splits = read_meta(path)["splits"]
        _note(folder, OURS, sum(splits[split]["n_tokens"] for split in ("train", "val")))

    return run


def _peers_preparation(source: Source, folder: Path) -> Round:
    import datasets
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]  # ships no types

    datasets.disable_progress_bars()
    found = read_tokenizer(folder / TOKENIZER_FILE)
    assert isinstance(found, BytePairs)
    ranks = {token: rank for rank, token in enumerate(found.tokens)}
    encoding = tiktoken.Encoding(
        "same", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<eot>": found.eot}
    )
    eot, place = found.eot, folder / "peer"
    rows = [text for unit in source.units() for text in readable_documents(source.documents(unit)) if text is not None]
    datasets.Dataset.from_dict({"text": rows}).save_to_disk(place / "rows")

    def encoded(row: Mapping[str, str]) -> dict[str, Any]:
        ids = [*encoding.encode_ordinary(row["text"]), eot]
        return {"ids": ids, "len": len(ids)}

    def run() -> None:
        halves = datasets.load_from_disk(place / "rows").train_test_split(test_size=0.05, seed=2357)
        n_tokens = 0
        for split, name in (("train", "train"), ("val", "test")):
            tokens = halves[name].map(
                encoded, remove_columns=["text"], num_proc=os.cpu_count(), load_from_cache_file=False
            )
            n_tokens += _write(tokens, place / f"{split}.bin")
        _note(folder, PEERS, n_tokens)

    return run


def _write(tokens: Any, file: Path) -> int:
    """Fills a memory map with the rows' tokens, shard by shard; returns how many there are."""
    n_tokens, end = int(np.sum(tokens["len"])), 0
    into = np.memmap(file, np.uint16, "w+", shape=(n_tokens,))
    n_shards = min(N_SHARDS, len(tokens))  # an empty shard cannot be concatenated
    for index in range(n_shards):
        shard = tokens.shard(n_shards, index, contiguous=True).with_format("numpy")
        piece = np.concatenate(shard["ids"])
        into[end : end + len(piece)] = piece
        end += len(piece)
    into.flush()
    return n_tokens


def _note(folder: Path, way: str, n_tokens: int) -> None:
    (folder / way).write_text(str(n_tokens))


def _our_batches(place: Path, settings: Mapping[str, Any]) -> Round:
    sizes = {"global_batch": settings["batch"], "micro_batch": settings["batch"]}
    loader = TokenLoader(
        TokenDataset.open(place, "train"), seq_len=settings["block_size"], seed=1337, device="cpu", **sizes
    )
    first = 0

    def run() -> None:
        nonlocal first
        for step in range(first, first + settings["batches"]):
            loader.batches(step)
        first += settings["batches"]

    return run


def _peers_batches(place: Path, settings: Mapping[str, Any]) -> Round:
    file, T = place / shard_name("train", 0), settings["block_size"]

    def window(tokens: np.ndarray, start: int) -> torch.Tensor:
        return torch.from_numpy(tokens[start : start + T].astype(np.int64))

    def run() -> None:
        for _ in range(settings["batches"]):
            tokens = np.memmap(file, np.uint16, "r")
            places = torch.randint(len(tokens) - T, (settings["batch"],)).tolist()
            torch.stack([window(tokens, start) for start in places])
            torch.stack([window(tokens, start + 1) for start in places])

    return run


def _row(what: str, way: str, seconds: list[float], ours: list[float], n_tokens: int) -> dict[str, str]:
    median, spread = median_and_spread(seconds)
    shown = f"{median:.1f}" if median >= 1 else f"{median * 1e3:.3f} ms"
    return {
        "what": what,
        "way": way,
        "seconds": f"{shown} ± {spread:.0%}",
        "tokens/s": f"{n_tokens / median:,.0f}",
        "x": in_words(seconds, ours),
    }


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench.py data`."""
    command.add_argument("--megabytes", type=a_count, default=100, help="of text")
    command.add_argument("--batch", type=a_count, default=8, help="sequences")
    command.add_argument("--block-size", type=a_count, default=256, help="tokens of a sequence")
    command.add_argument("--batches", type=a_count, default=200, help="per round")
    command.add_argument("--rounds", type=a_count, default=6)
    command.add_argument("--folder", default=None, help="on the disk to be measured; what is written there is deleted")
