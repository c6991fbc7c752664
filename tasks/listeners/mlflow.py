"""`MLflow`: a callback that hands metrics and results to MLflow, one MLflow run for each method and seed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from hashlib import sha256
from time import time
from typing import Any
from urllib.parse import urlsplit

from blackbox.extras import import_extra
from tasks.configuration import flat
from tasks.errors import ConfigurationError
from tasks.folder.result import Result
from tasks.folder.run import Run, stage_name
from tasks.listeners.callbacks import Callback
from tasks.problem.trained import TrainingOutcome

_HELD = 200  # metrics that are kept until they are sent together
_LONGEST = 500  # letters of a parameter's value
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class MLflow(Callback):
    """Parameters, metrics and results of a run in MLflow: `tasks.run(problem, callbacks=[tasks.MLflow()])`.

    An experiment has the problem's name. A method and seed is an MLflow run, which goes on where a run that
    was stopped goes on; the steps since its last checkpoint are then in it twice, with equal values. Metrics
    are sent at validations and whenever there are many; `metrics.jsonl` in the run's folder has them all
    the same. What is not finite is left out, and so are parameters that are None.

        tasks.MLflow()  # MLFLOW_TRACKING_URI, or MLflow's default, today mlflow.db in the current folder
        tasks.MLflow("sqlite:////data/runs.db")  # a database of your own
        tasks.MLflow("http://localhost:5000")  # a server, such as one that `mlflow server` starts

    The extra `mlflow` brings MLflow's small package and what its databases need. Its pages (`mlflow ui`,
    `mlflow server`) come with the whole one, `pip install mlflow`, also in another environment.

    A server that does not answer when a stage begins gets nothing of that stage. What one that goes away
    later has not taken is sent at the stage's end. It is asked twice more before it is given up, which
    takes 5 s, unless `MLFLOW_HTTP_REQUEST_MAX_RETRIES` is set: MLflow's own seven times take four minutes,
    in which nothing trains.

    Args:
        uri: Where the tracking server or store is; MLflow's own default (`MLFLOW_TRACKING_URI`) if None. A
            folder, "file:///data/mlruns", is taken by older versions of MLflow, and by today's only with
            `MLFLOW_ALLOW_FILE_STORE=true` in the environment.
        experiment: Its name in MLflow; the problem's if None.

    Raises:
        MissingExtraError: MLflow is not installed, or what its databases need is not.
        ConfigurationError: The installed MLflow takes no such store.
    """

    def __init__(self, uri: str | None = None, *, experiment: str | None = None) -> None:
        self._mlflow = import_extra("tasks.MLflow", "mlflow", "mlflow")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self._entities = import_extra("tasks.MLflow", "mlflow.entities", "mlflow")
        self._refuse_store(self._mlflow.get_tracking_uri() if uri is None else str(uri))
        self._uri, self._experiment = uri, experiment
        self._away = False  # since a sending failed
        self._cached_client: Any = None
        self._ids: dict[str, str] = {}
        self._queues: dict[str, list[Any]] = {}

    def on_start(self, run: Run, stage: str, step: int, steps: int) -> None:
        """The MLflow run of the stage, found again or made."""
        run_id = self._find(run, stage)
        if run_id is None:
            settings = {name: value for name, value in flat(run.config).items() if value is not None}
            settings |= {"steps": steps, "preset": run.preset}
            tags = {"blackbox.folder": str(run.path.resolve()), "blackbox.stage": stage}
            tags["blackbox.key"] = _key(run, stage)
            entry = self._client.create_run(self._number(run), run_name=f"{run.path.name} {stage}", tags=tags)
            run_id = entry.info.run_id
            entities = [self._entities.Param(name, str(value)[:_LONGEST]) for name, value in settings.items()]
            self._client.log_batch(run_id, params=entities)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._ids[stage], self._queues[stage], self._away = run_id, [], False  # it has just answered
        if step:
            self._recall(run, stage)

    def on_step(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Keep a step's metrics, and send what was kept where it is much."""
        self._keep(stage, step, metrics)
        if len(self._queues[stage]) >= _HELD and not self._away:
            self._send(stage)

    def on_validation(self, stage: str, step: int, value: float) -> None:
        """Send everything so far."""
        self._keep(stage, step, {"validation": value})
        if not self._away:  # to try takes minutes each time
            self._send(stage)

    def on_end(self, stage: str, outcome: TrainingOutcome) -> None:
        """Send the rest, with the validation that chose the weights."""
        best = outcome.best_validation
        if best is not None:
            self._keep(stage, outcome.best_step or 0, {"best validation": best})
        self._send(stage)
        self._client.set_terminated(self._ids[stage])

    def on_result(self, run: Run, result: Result) -> None:
        """The figures of the table, each as a metric of its method and seed."""
        for row in result.table:
            stage = stage_name(row.seed, row.method)
            run_id = self._ids.get(stage) or self._find(run, stage)
            if run_id is not None:
                self._ids[stage] = run_id
                figures = {row.metric: row.value, "seconds of training": row.seconds, **row.extra}
                figures |= {f"failed rows of {name}": count for name, count in row.failed.items()}
                figures.pop("validation", None)  # the best one, which is there under that name
                self._keep(stage, int(row.extra.get("steps") or 0), figures)
                self._send(stage)

    @property
    def _client(self) -> Any:
        if self._cached_client is None:
            self._cached_client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        return self._cached_client

    def _number(self, run: Run) -> str:
        """The experiment's, made if it is new."""
        name = self._experiment or run.task
        experiment = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if experiment is None else experiment.experiment_id

    def _find(self, run: Run, stage: str) -> str | None:
        query = f"tags.`blackbox.key` = '{_key(run, stage)}'"
        runs = self._client.search_runs([self._number(run)], query, max_results=1)
        return runs[0].info.run_id if runs else None

    def _recall(self, run: Run, stage: str) -> None:
        """Keep the metrics of earlier steps that were not sent before the run stopped."""
        sent = self._client.get_metric_history(self._ids[stage], "loss")
        last = max((metric.step for metric in sent), default=-1)
        for line in run.metrics(stage):
            if line["step"] > last:
                self._keep(stage, line["step"], {name: line[name] for name in line if name != "step"})

    def _keep(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        now = int(1000 * time())
        for name, value in metrics.items():
            if isinstance(value, int | float) and math.isfinite(value):
                allowed = "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
                self._queues.setdefault(stage, []).append(
                    self._entities.Metric(allowed, float(value), now, step)
                )

    def _send(self, stage: str) -> None:
        lines, self._away = self._queues[stage], True
        while lines:
            self._client.log_batch(self._ids[stage], metrics=lines[:1000])  # what MLflow takes at a time
            del lines[:1000]
        self._away = False

    def _refuse_store(self, uri: str) -> None:
        """Refuse a store that the installed MLflow cannot write to; nothing is asked of it."""
        scheme = urlsplit(uri).scheme.partition("+")[0]
        if scheme in _DATABASES:
            for module in ("sqlalchemy", "alembic"):
                import_extra(f"tasks.MLflow({uri!r})", module, "mlflow")
        settings = import_extra("tasks.MLflow", "mlflow.environment_variables", "mlflow")
        allowed = getattr(settings, "MLFLOW_ALLOW_FILE_STORE", None)  # older versions take every folder
        if scheme in ("", "file") and allowed is not None and not allowed.get():
            raise ConfigurationError(
                f"tasks.MLflow: expected a database or a server, got the folder {uri!r}, which MLflow "
                f"{self._mlflow.__version__} refuses. Give 'sqlite:///mlflow.db' or 'http://...', or set "
                "MLFLOW_ALLOW_FILE_STORE=true in the environment."
            )


def _key(run: Run, stage: str) -> str:
    """A name of folder and stage that any filter of MLflow takes, which has no way to write both quotes."""
    return sha256(f"{run.path.resolve()}\n{stage}".encode(errors="surrogateescape")).hexdigest()
