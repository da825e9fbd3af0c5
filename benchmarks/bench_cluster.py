"""How near the cost model of many GPUs comes to torchtitan's published figures.

Two constants are fitted to one figure each: `TRAINING_SHARE` to Llama 3 8B on 64 A100, and
`POWER_LIMITED` to Llama 3.1 8B on 8 H100 of 500 W. All others are held out. Needs no GPU and takes
a second. A ratio is foretold over published: the nearer to 1, the better. `--table` prints the
documentation's tables instead.
"""

from __future__ import annotations

import statistics
import sys

from harness import make_parser, make_row, report
from lmloop.training.cluster import POWER_LIMITED, TRAINING_SHARE, make_cluster
from lmloop.training.layouts import try_layouts
from published import SHAPES, Figure, read_figures

GPU_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
SCALED = {"llama3-1b": (8, 20e9), "llama3-8b": (2, 160e9)}
"""Rows of 8,192 tokens a GPU and step, and twenty tokens a parameter."""
PRICE = 2.5
"""Of an hour of a GPU."""


def main() -> None:
    """Foretell every figure."""
    parser = make_parser(__doc__)
    parser.add_argument("--table", action="store_true", help="8 to 1,024 GPUs, as Markdown")
    arguments = parser.parse_args()
    if arguments.table:
        print_tables()
        return
    figures = read_figures()
    print_fit(figures)
    rows, errors = [], []
    for figure in figures:
        step = figure.foretell()
        error = step.tokens_per_gpu / figure.tokens_per_gpu - 1
        errors += [] if figure.is_fitted else [abs(error)]
        use = "fitted" if figure.is_fitted else "held out"
        print(f"{use:9}{name(figure):62}{error:+7.1%}  {figure.source}", file=sys.stderr)
        rows.append(
            make_row(
                f"cluster.{name(figure).replace(' ', '_')}",
                "tok/s/GPU",
                step.tokens_per_gpu,
                peer_name=f"torchtitan, {use}",
                peer=figure.tokens_per_gpu,
            )
        )
    print(
        f"{len(errors)} held-out figures: median error {statistics.median(errors):.1%}, mean "
        f"{statistics.mean(errors):.1%}, largest {max(errors):.1%}",
        file=sys.stderr,
    )
    print_memory(figures)
    report("bench_cluster", rows, arguments)


def name(figure: Figure) -> str:
    """What a figure is of, in short."""
    layout = figure.layout
    parts = [figure.model, str(layout.gpus), figure.gpu, f"{layout.rows}x{layout.row_tokens}"]
    parts += [f"tp{layout.tensor_parallel}"] if layout.tensor_parallel > 1 else []
    parts += [layout.checkpointing, "float8" if layout.float8 else "bf16"]
    return " ".join([*parts, "compiled" if layout.compiled else "eager"])


def print_fit(figures: list[Figure]) -> None:
    """Each constant from its figure: products take what the rest leaves of the published time."""
    share, power = (figure for figure in figures if figure.is_fitted)
    seconds = share.foretell().seconds
    left = share.layout.step_tokens / share.layout.gpus / share.tokens_per_gpu
    fitted = TRAINING_SHARE * seconds.products / (left - seconds.total + seconds.products)
    print(f"TRAINING_SHARE {fitted:.4f}, in use {TRAINING_SHARE}", file=sys.stderr)
    # Products and attention go with the power.
    seconds = power.foretell().seconds
    left = power.layout.step_tokens / power.layout.gpus / power.tokens_per_gpu
    bound = seconds.products + seconds.attention
    fitted = POWER_LIMITED * bound / (left - seconds.total + bound)
    print(f"POWER_LIMITED {fitted:.4f}, in use {POWER_LIMITED}", file=sys.stderr)


def print_memory(figures: list[Figure]) -> None:
    """Nothing of it is fitted."""
    for figure in figures:
        if figure.memory_gib is not None:
            ours = figure.foretell().memory / 2**30
            print(
                f"memory   {name(figure):62}{ours / figure.memory_gib - 1:+7.1%}  "
                f"{ours:.1f} GiB foretold, {figure.memory_gib} published",
                file=sys.stderr,
            )


def print_tables() -> None:
    """Each GPU has as much to do, however many there are: what is lost is exchange."""
    for model, (rows, tokens) in SCALED.items():
        print(f"\n{model}\n")
        print("| GPUs | layout | s a step | exchange | tokens/s a GPU | MFU | GB | hours | cost |")
        print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for gpus in GPU_COUNTS:
            cluster = make_cluster("h100", gpus=gpus)
            best = try_layouts(
                SHAPES[model], cluster, batch_rows=rows * gpus, row_tokens=8192, tensor_parallel=1
            )[0].step
            layout, seconds = best.layout, best.seconds
            print(
                f"| {gpus:,} | {layout.replicas} × {layout.shards}, {layout.checkpointing} "
                f"| {seconds.total:.2f} | {seconds.exchange / seconds.total:.1%} "
                f"| {best.tokens_per_gpu:,.0f} | {best.mfu:.0%} | {best.memory / 1e9:.0f} "
                f"| {24 * best.days(tokens):,.1f} | {best.cost(tokens, price=PRICE):,.0f} |"
            )


if __name__ == "__main__":
    main()
