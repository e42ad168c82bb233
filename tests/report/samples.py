"""Results with a bit of everything, for the tests of reports."""

import itertools
import math
from dataclasses import replace

from report.results import (
    Arm,
    Axis,
    Check,
    Figure,
    Measure,
    ProtocolResult,
    Published,
    Results,
    Run,
    Series,
    Source,
    Table,
)

NASTY = "</script><script>document.title='owned'</script> | `pipe` <b>β₂ = .99</b> $x$ & “Ünï” 优化"
FLOPS, SECONDS = "FLOPs, curvature passes and the optimizer included", "seconds in training steps"
STEPS = [float(step) for step in range(0, 1001, 50)]


def curve(arm: str, seed: int) -> dict[str, list[float | None]]:
    """A made-up loss curve; the candidate is a little lower and a little slower."""
    gain, cost = {"adamw": (1.0, 1.0), "sophiag": (1.03, 1.06), "lion": (0.96, 0.97)}[arm]
    loss: list[float | None] = [
        4.2 + 4.1 * math.exp(-gain * s / 220) + 0.03 * math.sin(s / 70 + 2 * seed) for s in STEPS
    ]
    return {
        "step": list(STEPS),
        "tokens": [s * 2048 for s in STEPS],
        "flops": [s * 5.3e10 * cost for s in STEPS],
        "seconds": [s * 0.13 * cost for s in STEPS],
        "val/loss": loss,
    }


def lines() -> Figure:
    figure = Figure(
        "loss-curves",
        "Validation loss of every full run",
        "lines",
        Axis("steps"),
        Axis("val/loss (nats per token)"),
        series=[],
        alternatives={"tokens": [], FLOPS: [], SECONDS: []},
        caption="Final comparison, three seeds per arm; the same data in the same order.",
        hline=4.21,
        hline_label="AdamW, end",
    )
    labels = {"adamw": "AdamW", "sophiag": "SophiaG", "lion": "Lion"}
    for arm, seed in itertools.product(labels, (0, 1, 2)):
        points = curve(arm, seed)
        ys = list(points["val/loss"])
        if (arm, seed) == ("lion", 2):
            ys[9:] = [None] * (len(ys) - 9)  # diverged
        figure.series.append(Series(labels[arm], list(STEPS), ys, arm=arm))
        for label, key in (("tokens", "tokens"), (FLOPS, "flops"), (SECONDS, "seconds")):
            figure.alternatives[label].append([x for x in points[key] if x is not None])
    return figure


def fitted() -> Figure:
    xs, names = [250.0, 500.0, 750.0, 1000.0], {"adamw": "AdamW", "sophiag": "SophiaG"}
    series = []
    for arm, shift in (("adamw", 0.0), ("sophiag", -0.05)):
        ys: list[float | None] = [4.2 + 30 * x**-0.6 + shift for x in xs]
        low, high = ([None if y is None else y + side * 0.04 for y in ys] for side in (-1, 1))
        series.append(Series(names[arm], list(xs), ys, low, high, arm=arm, dashed=arm == "adamw"))
    return Figure(
        "fitted-curve",
        "Final loss of shortened runs",
        "lines",
        Axis("steps of the run", log=True),
        Axis("val/loss (nats per token)", log=True),
        series,
    )


def bars() -> Figure:
    names = {"adamw": ("AdamW", 8.0), "sophiag": ("SophiaG", 8.0), "lion": ("Lion <i>", 4.0)}
    series = [Series(label, [label], [size], arm=arm) for arm, (label, size) in names.items()]
    return Figure("state-bytes", "Optimizer state", "bars", Axis("arm"), Axis("bytes per parameter"), series)


def points() -> Figure:
    rates = [5e-4, 1e-3, 2e-3, 4e-3]
    series = []
    for arm, label, best in (("adamw", "AdamW", 2e-3), ("sophiag", "SophiaG", 1e-3), ("lion", "Lion", 5e-4)):
        ys: list[float | None] = [4.2 + 0.1 * abs(math.log2(rate / best)) for rate in rates]
        low, high = ([None if y is None else y + side * 0.05 for y in ys] for side in (-1, 1))
        series.append(Series(label, list(rates), ys, low, high, arm=arm))
    series[-1].y[-1] = series[-1].low[-1] = series[-1].high[-1] = None  # type: ignore[index]  # it diverged there
    x, y = Axis("peak lr", log=True), Axis("val/loss (nats per token)")
    return Figure("loss-over-lr", f"Loss over learning rate {NASTY}", "points", x, y, series, caption=NASTY)


def run(arm: str, seed: int, status: str = "finished") -> Run:
    final = curve(arm, seed)["val/loss"][-1]
    return Run(
        name=f"{arm}-{seed}-3f9a",
        arm=arm,
        protocol="tuned",
        purpose="full budget",
        seed=seed,
        steps=1000,
        status=status,
        overrides=[f"optim={arm}", f"seed={seed}", "schedule.warmup_steps=50"],
        config_hash="3f9ac01b22d84e55aa01",
        loss=final if status == "finished" else None,
        seconds=131.25,
        flops=5.3e13,
        peak_bytes=1.4e9,
        clipped_share=0.125,
        diagnostics={"optim/win_rate": 0.41} if arm == "sophiag" else {},
        commit="8f76b3fe77aa00112233",
    )


def evidence() -> Figure:
    """Ours, filled and with an interval, beside what others measured, hollow."""
    ours = Series("SophiaG, ours", [3.3e5, 2.6e6], [1.08, None], [1.02, None], [1.15, 0.5], arm="sophiag")
    theirs = Series("SophiaG, Wen et al.", [1.3e8, 1.3e8, 5.2e8], [0.93, 1.03, 1.04], arm="sophiag", hollow=True)
    theirs.labels = ["130M, 1x Chinchilla", "130M, 8x Chinchilla", f"520M {NASTY}"]
    return Figure(
        "evidence",
        "SophiaG's speed-up over AdamW, by size of the model",
        "points",
        Axis("parameters of the model", log=True),
        Axis("speed-up in steps", log=True),
        [ours, theirs],
        hline=2.0,
        hline_label="claimed",
    )


def measures() -> list[Measure]:
    return [
        Measure(
            "speed_up_steps", "speed-up in steps, fitted curve", "x", 1.0834, 1.0212, 1.1519, 3, 0.031,
            claimed=2.0, least=1.75, no_effect=1.0, log_scale=True, verdict="weaker than claimed",
        ),
        Measure(
            "speed_up_flops", "speed-up in FLOPs", "x", 1.9612, 1.7831, 2.1571, 3, 0.049,
            claimed=2.0, least=1.75, no_effect=1.0, log_scale=True, verdict="reproduced",
        ),
        Measure(
            "half_budget", "loss at half budget minus baseline's at full", "nats per token", 0.0421, 0.0301, 0.0541, 3,
            0.0049, claimed=0.0, no_effect=0.21, verdict="weaker than claimed",
        ),
        Measure(
            "speed_up_seconds", f"speed-up in seconds {NASTY}", "x", None, None, 0.5, 3, claimed=2.0, least=1.75,
            no_effect=1.0, log_scale=True, verdict="no effect or worse", censored="<", note="outside what was run",
        ),
        Measure("overhead", "step time over AdamW's", "%", 6.1, 4.9, 7.3, 3, claimed=5.0, no_effect=0.0),
        Measure("seconds", "speed-up in seconds at half budget", "x", None, note="never reached the baseline's loss"),
    ]  # fmt: skip


def checks() -> list[Check]:
    """Eleven, of which nine pass, one fails and one could not be found out."""
    return [
        Check("R1", "target within what the candidate ran", "no number is censored", "1 of 3 is", False),
        Check("R2", "noise of the seeds at T", "sd ≤ 0.1 of L(T/2) - L(T)", "AdamW 0.006, SophiaG 0.041", True),
        Check("R3", "rates bracketed at T", "both neighbours worse by 2 sd", "AdamW, SophiaG, Lion: both", True),
        Check("R4", "baseline as good as the best known", "within 2 sd of 3.021", "3.024, sd 0.002", True),
        Check("R5", "warm-up long enough", "doubled: change ≤ 0.1 unit", "0.09, 0.04, 0.02", True),
        Check("R5b", "short runs end below the long run", "every arm, mean over seeds", "-0.03, -0.05, -0.01", True),
        Check("R6", "candidate works as it should at T", "win rate 0.1 to 0.5", "0.15", True),
        Check("R7", "baseline under a bigram table", "by ≥ 0.3 nats", "0.41 nats", True),
        Check("R8", "tokens per parameter, epochs", "≥ 10, ≤ 4", "15.1, 0.5", True),
        Check("R10", "another batch size, same verdict", "verdict at 4 times the batch", "not run", None, "micro only"),
        Check("R11", "power if the claim is true", "≥ 0.8", "0.93", True),
    ]


def published() -> list[Published]:
    paper, setting = "arXiv:2509.02046", "130M, C4, 2.6B tokens"
    steps, slower = "speed-up in steps", "Sophia's authors, issue 46"
    return [
        Published("Wen et al. 2025, 8x Chinchilla", paper, "authors' files", setting, steps, 1.03, "sophiag", unit="x"),
        Published(slower, "Liuhong99/Sophia issue #46", "thread", f"125M {NASTY}", "loss", -0.034, "sophiag", 1.25e8),
        Published("Someone", "a talk", "unverified", "none given", steps, 1.5, "sophiag", None, 1.2, 1.9, "x"),
    ]


def rich() -> Results:
    """A claim's results with a bit of everything."""
    runs = [run(arm, seed) for arm in ("adamw", "sophiag", "lion") for seed in (0, 1, 2)]
    runs[-1] = run("lion", 2, "diverged")
    tuned = {"tuned": ["optim.lr=2e-3", "optim.weight_decay=0.1"]}
    return Results(
        claim="sophia_2x",
        title="Sophia needs half of AdamW's steps",
        scale="nano",
        date="2025-11-21",
        command="python scripts/reproduce.py claim=sophia_2x scale=nano",
        source=Source(
            "Liu et al. 2023, arXiv 2305.14342",
            "https://arxiv.org/abs/2305.14342",
            "Sophia achieves the same loss as AdamW in 50 % of the steps.",
            "GPT-2 125M to 770M on OpenWebText, 480 x 1024 tokens a step",
            ["the seed of the paper's curves"],
        ),
        contrary=["Issue #46 of the authors' repository: SophiaG at 100k steps 2.897, AdamW at 200k 2.863.", NASTY],
        rule="Reproduced if the interval lies above the middle of no effect and claim and reaches the claim.",
        verdict="weaker than claimed",
        sentence="1 of 4 parts is reproduced, 2 are weaker than claimed, and 1 has no effect.",
        tuning="Tuning alone: AdamW 1.6 times as fast as with the paper's settings.",
        checks=checks(),
        key_figure="evidence",
        published=published(),
        protocols=[
            ProtocolResult(
                "paper", "The paper's settings.", "undecided", "Too few seeds.", 4, [replace(measures()[0], n=2)]
            ),
            ProtocolResult("tuned", f"Equal tuning. {NASTY}", "weaker than claimed", "Two are.", None, measures()),
        ],
        difference="With the paper's settings both arms were worse by 0.3 nats.",
        arms=[
            Arm("adamw", "AdamW", "baseline", {"paper": ["optim.lr=6e-4"], **tuned}, "8 trials, lr 2e-3 was best"),
            Arm("sophiag", "SophiaG", "candidate", tuned, NASTY),
            Arm("lion", "Lion", "other", tuned),
        ],
        runs=runs,
        curves={each.name: curve(each.arm, each.seed) for each in runs},
        figures=[evidence(), lines(), fitted(), bars(), points()],
        tables=[Table("Memory, measured", ["arm", "peak", NASTY], [["AdamW", "1.30 GiB", "a|b"]], "One device.")],
        environment={"device": "Intel Xeon, 2 threads", "packages": {"torch": "2.13.0"}, "threads": 2},
        data={"train": "sha256:0f3c", "val": "sha256:77aa"},
        notes=["Shared with other work, so seconds are rough.", NASTY],
    )
