"""Other programs' logs of a run, by one line of the recipe: TensorBoard, MLflow, Weights & Biases.

Takes: lines of a run's journal. Gives: the same figures as files below the home, which those
programs show. Nothing leaves the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lmloop.config import keep_trackers_local
from lmloop.errors import MissingExtraError
from lmloop.progress import Watch

FIGURES = {
    "loss": "train/loss",
    "bpb": "train/bits_per_byte",
    "norm": "train/gradient_norm",
    "factor": "train/rate_factor",
    "tokens_per_second": "speed/tokens_per_second",
    "peak_share": "speed/share_of_peak",
    "validation_bpb": "validation/bits_per_byte",
    "validation_loss": "validation/loss",
}
"""What of a journal's line is shown, and under which name."""
PROJECT = "lmloop"


@contextmanager
def open_trackers(names: Sequence[str], *, home: Path, run: str, name: str) -> Iterator[Watch]:
    """A watch that tells every tracker named of the run `run` of the recipe `name`.

    Raises `MissingExtraError` before any step.
    """
    keep_trackers_local()
    with ExitStack() as stack:
        watches = [stack.enter_context(_OPENERS[each](home / each, run, name)) for each in names]

        def watch(entry: Mapping[str, Any]) -> None:
            for each in watches:
                each(entry)

        yield watch


@contextmanager
def _open_tensorboard(folder: Path, run: str, name: str) -> Iterator[Watch]:
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(package="tensorboard", extra="track") from error
    from torch.utils.tensorboard import SummaryWriter

    writers: list[SummaryWriter] = []

    def watch(entry: Mapping[str, Any]) -> None:
        step = entry["step"]
        if not writers:
            # What an earlier process wrote of this step and those behind it is done again.
            writers.append(SummaryWriter(str(folder / run), purge_step=step))
        for key, value in _figures(entry).items():
            writers[0].add_scalar(key, value, step)
        for number, said in enumerate(entry.get("samples", ())):
            writers[0].add_text(f"samples/{number}", _join(said), step)

    try:
        yield watch
    finally:
        for writer in writers:
            writer.close()


@contextmanager
def _open_mlflow(folder: Path, run: str, name: str) -> Iterator[Watch]:
    try:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtraError(package="mlflow-skinny", extra="track") from error
    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name(name)
    place = client.create_experiment(name) if experiment is None else experiment.experiment_id
    # A run that goes on after a kill is the same one: it is known by its tag.
    found = client.search_runs([place], f"tags.`lmloop.run` = '{run}'")
    tags = {"lmloop.run": run}
    number = (found[0] if found else client.create_run(place, run_name=run, tags=tags)).info.run_id
    client.update_run(number, status="RUNNING")
    ending = "FAILED"

    def watch(entry: Mapping[str, Any]) -> None:
        step, moment = entry["step"], int(1000 * entry["seconds"])
        metrics = [Metric(key, value, moment, step) for key, value in _figures(entry).items()]
        client.log_batch(number, metrics=metrics)
        if entry.get("samples"):
            text = "\n\n".join(map(_join, entry["samples"]))
            client.log_text(number, text, f"samples/step-{step:08d}.txt")

    try:
        yield watch
        ending = "FINISHED"
    finally:
        client.set_terminated(number, ending)


@contextmanager
def _open_wandb(folder: Path, run: str, name: str) -> Iterator[Watch]:
    try:
        import wandb
    except ImportError as error:
        raise MissingExtraError(package="wandb", extra="track") from error
    folder.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        disable_job_creation=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
    )
    written = wandb.init(
        project=PROJECT,
        id=run,
        name=f"{name} {run}",
        dir=str(folder),
        mode="offline",
        resume="allow",
        settings=quiet,
    )
    # Its own steps only grow; those of a run that goes back to a snapshot do not.
    written.define_metric("*", step_metric="step")
    exit_code = 1

    def watch(entry: Mapping[str, Any]) -> None:
        said = {
            f"samples/{number}": _join(each) for number, each in enumerate(entry.get("samples", ()))
        }
        written.log({"step": entry["step"], **_figures(entry), **said})

    try:
        yield watch
        exit_code = 0
    finally:
        written.finish(exit_code=exit_code)


def _figures(entry: Mapping[str, Any]) -> dict[str, float]:
    return {name: entry[key] for key, name in FIGURES.items() if entry.get(key) is not None}


def _join(said: Mapping[str, str]) -> str:
    return f"{said['prompt']} {said['text']}"


_OPENERS: Mapping[str, Callable[[Path, str, str], AbstractContextManager[Watch]]] = {
    "tensorboard": _open_tensorboard,
    "mlflow": _open_mlflow,
    "wandb": _open_wandb,
}
