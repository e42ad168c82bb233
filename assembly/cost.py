"""What a run costs in floating-point operations, before it starts or while it runs."""

from optim.ensemble import OptimizerSet


def run_flops(flops_per_token: int, seq_len: int, global_batch: int, optimizer: OptimizerSet, steps: int) -> int:
    """Returns the FLOPs of a run's first `steps` steps, on all ranks together.

    Those of forward and backward passes, of curvature's passes, and of the optimizer's own matrix products and
    factorisations; by the convention of model/flops.py, so nothing for operations per number, for activations that are
    recomputed, or for evaluation. A step that is skipped counts as one that is done. It is a function of the step
    alone: a run that continues, or branches from another, counts as one that was never interrupted.

    flops_per_token: of a forward and backward pass. seq_len: tokens per sequence. global_batch: sequences per step.
    """
    sequences = steps * global_batch + sum(estimator.passes(steps) for estimator in optimizer.estimators)
    return sequences * seq_len * flops_per_token + round(optimizer.flops(steps))
