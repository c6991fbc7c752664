"""By what the library takes another way, under names that tests alone know: sizes, clocks, processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

WHERE = {
    # of a check and of simulators; clocks are functions that give seconds
    "calls_of_a_host": "blackbox.adapters.hosted.host_loop.LONG",  # at which it is said that a run goes on
    "clock_of_rates": "blackbox.wrappers.rate_limited.monotonic",
    "clock_of_retries": "blackbox.wrappers.retrying.monotonic",
    "pause_of_rates": "blackbox.wrappers.rate_limited.pause",
    "pause_of_retries": "blackbox.wrappers.retrying.pause",
    "patience_with_clusters": "blackbox.wrappers.parallel_call.WITHOUT_WORKERS",  # seconds
    "clock_of_checks": "blackbox.conformance.probe.monotonic",
    "clock_of_references": "simulators.wake_flow.reference.monotonic",
    "format_of_references": "simulators.wake_flow.reference_settings.FORMAT",
    "other_processes": "blackbox.conformance.concurrency.in_processes",  # that a check asks a box in
    "version_of_package": "simulators.wake_flow.reference_settings.version",
    # of a run
    "any_process": "tasks.workers.group.any_of",  # says yes
    "clock_of_rows": "tasks.planning.trial.perf_counter",
    "clock_of_steps": "tasks.training.training_loop.perf_counter",
    "clock_of_writes": "tasks.folder.pace.monotonic",
    "find_module": "tasks.command.new.find_spec",
    "first_write": "tasks.folder.pace.SOON",
    "journal_writes": "tasks.folder.journal.EVERY",
    "later_writes": "tasks.folder.pace.OFTEN",
    "remembered_in_steps": "tasks.training.training_loop.LEAST",  # of a call whose answers are kept
    "rows_together": "tasks.rows.recalling.LONG",  # that rows may take which are run together
    "run_carried_out": "tasks.running.start.carry_out",  # begun or taken up again
    "shapes_kept": "tasks.applications.images.shapes_file.WORTH",  # images
    "total_of_processes": "tasks.workers.group.total",
    "versions_of_machine": "tasks.training.stage.versions",
    "window_file_bytes": "tasks.folder.window_files.LARGE",  # beyond, a window lies in a file of its own
    "writes_share": "tasks.folder.pace.SHARE",  # times what a write takes, work lies between two
    # of a step and its models
    "activations_followed": "zo.evaluators.difference.difference_evaluator.LARGE",  # numbers
    "control_groups": "zo.tangents.replay.available_memory.CGROUPS",
    "own_control_groups": "zo.tangents.replay.available_memory.OWN",
    "contest_steps": "zo.tangents.models.automatic.CONTEST",
    "graph_iterations": "zo.tangents.models.mesh.graph.ITERATIONS",
    "grid_class": "zo.tangents.models.grid.grid.GridTangent",  # of the model that a grid gets unasked
    "layers_copied": "zo.evaluators.variant_forward.vmap",  # one for each variant
    "map_class": "zo.tangents.models.maps.behind.OutputMap",
    "map_numbers": "zo.tangents.models.maps.behind.MAP_SIZE",
    "memory_compared": "zo.parameters._words",  # of a tensor
    "patch_cells": "zo.tangents.models.grid.grid.CELLS",  # beyond, models learn on patches
    "patch_edges": "zo.tangents.models.grid.grid.EDGES",  # by the number of axes
    "reach_samples": "zo.tangents.models.grid.reach.SAMPLES",
    "row_cells": "zo.tangents.models.maps.behind.LARGE",
    "selection_turns": "zo.tangents.models.selected.TURNS",  # in which rows are left out
    "rows_at_once": "zo.tangents.models.at_rows.BLOCK",  # numbers
    "updates_of_a_population": "zo.tangents.population.updates.UPDATES",  # of its surrogate
    "many_rows_of_a_population": "zo.tangents.population.updates.MANY",
    "updates_of_a_surrogate": "zo.tangents.surrogate.UPDATES",
    "shown_at_once": "zo.tangents.evidence.predictions.AT_ONCE",  # numbers
    "window_bytes": "zo.tangents.models.row_window.MOST_BYTES",  # of one model
    "windows_bytes": "zo.tangents.gradient.MOST_OF_ROWS",  # of all models
}


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets some of them, by name, until the test ends."""

    def set_to(**sizes: Any) -> None:
        for name, size in sizes.items():
            monkeypatch.setattr(WHERE[name], size)

    return set_to
