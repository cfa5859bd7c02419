"""kdtrain plan FILE: stages, space, networks and an upper bound of the cost; starts nothing."""

import argparse
import os
from pathlib import Path

from kdtrain.cli.common import add_address, add_data, guarded, read_sweep, sweep_parser
from kdtrain.errors import printable


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0 if the plan is printed, else 2."""
    parser = sweep_parser("plan", "Prints a sweep's stages, space, networks and cost; starts nothing.")
    add_data(parser)
    add_address(parser)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: plan(chosen))


def plan(chosen: argparse.Namespace) -> int:
    """Print the plan of the parsed options."""
    sweep = read_sweep(chosen)
    from kdtrain.study.inputs import require_fitting_data
    from kdtrain.study.plan import plan as plan_text
    from kdtrain.study.warm_start import check_warm_start

    absent = check_warm_start(sweep)
    require_fitting_data(sweep, chosen.data)
    cluster = None
    if chosen.address is not None:
        from kdtrain.cli.display import quiet

        with quiet(Path(os.devnull)):
            from kdtrain.executors.ray_cluster import cluster_nodes

            cluster = cluster_nodes(chosen.address)
    print(plan_text(sweep, chosen.data, cluster))
    for note in absent:
        print(f"note: {printable(note)}")
    return 0
