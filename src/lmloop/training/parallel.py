"""Many processes as one run, through torch.distributed; no other file knows of it.

Takes: a process's place as torchrun tells it. Gives: `ManyRanks`, whose sums are in the same order
on every run with as many ranks: a run is as exact as in one process. Text and numbers travel as
tensors, never as pickles.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from lmloop.config import Place
from lmloop.errors import LmloopError, LostRankError, TrainingError
from lmloop.training.ranks import Ranks
from lmloop.training.stopping import end_undisturbed

MEETING = timedelta(minutes=5)
"""How long the first waits for the last."""
STEP = timedelta(minutes=10)
"""How long ranks wait for each other within a step."""
STAGE = timedelta(days=30)
"""How long they wait for what the first does alone: text made ready, a validation, a save."""
ROLL_CALL_SECONDS = 5.0
"""How long a rank may take to answer whether it lives."""
LISTEN_SECONDS = 0.5
TEXT_BYTES = 512

Done = TypeVar("Done")


class ManyRanks(Ranks):
    """This process among others; gloo for tensors of the CPU, NCCL for those of CUDA."""

    def __init__(self, place: Place, store: Store) -> None:
        """`store` is where the ranks have met."""
        self.rank, self.size, self._store = place.rank, place.size, store
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(place.local_rank)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=STEP
        )
        self._patient = dist.new_group(backend="gloo", timeout=STAGE)
        self._over = threading.Event()
        self._listener = threading.Thread(
            target=self._listen, args=(_second_line(store),), daemon=True
        )
        self._listener.start()

    def agree(self, value: float) -> float:
        """See `Ranks`."""
        shared = torch.tensor([value], dtype=torch.float64)
        self.together(lambda: dist.broadcast(shared, src=0, group=self._patient))
        return float(shared)

    def total(self, value: float) -> float:
        """See `Ranks`."""
        shared = torch.tensor([value], dtype=torch.float64)
        self.add_up(shared)
        return float(shared)

    def add_up(self, tensor: Tensor, group: dist.ProcessGroup | None = None) -> None:
        """See `Ranks`; of all ranks, or of those in a group."""
        self.together(lambda: dist.all_reduce(tensor, group=group))

    def share(self, tensor: Tensor) -> None:
        """See `Ranks`; travels as bytes, of whatever type it is."""
        flat = tensor.detach().contiguous().view(-1)
        self.together(lambda: dist.broadcast(flat.view(torch.uint8), src=0))
        if not self.is_first:
            tensor.detach().copy_(flat.view_as(tensor))

    def collect(self, text: str) -> list[str]:
        """See `Ranks`."""
        own = text.encode()[:TEXT_BYTES]
        sent = torch.frombuffer(bytearray(own.ljust(TEXT_BYTES, b"\0")), dtype=torch.uint8)
        got = [torch.empty_like(sent) for _ in range(self.size)]
        self.together(lambda: dist.all_gather(got, sent, group=self._patient))
        return [bytes(each.tolist()).rstrip(b"\0").decode(errors="replace") for each in got]

    def exchange(self, sent: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Give `sent[r]` to rank r, and get what each has sent, `counts[r]` numbers from rank r.

        All is of one type; what comes is flat.
        """
        flat = torch.cat([each.reshape(-1) for each in sent])
        got, sizes = flat.new_empty(sum(counts)), [each.numel() for each in sent]
        self.together(lambda: dist.all_to_all_single(got, flat, list(counts), sizes))
        return list(torch.split(got, list(counts)))

    def together(self, work: Callable[[], Done]) -> Done:
        """Do what all ranks do at once; where one of them is gone, end."""
        try:
            return work()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        return self._end(reason)

    def part_ways(self) -> None:
        """Be no rank any more."""
        self._over.set()
        # A thread that is inside the store when the process ends would abort it.
        self._listener.join(timeout=5)
        dist.destroy_process_group()

    def leave_word(self, error: LmloopError) -> None:
        """Let the others know why this rank will be gone."""
        try:
            self._store.set(f"word/{self.rank}", str(error))
            self._store.set(f"code/{self.rank}", str(error.exit_code))
        except RuntimeError:
            return  # Whoever keeps the store has gone before, and has told why.

    def _end(self, reason: str) -> NoReturn:
        """End because a rank is gone, in its words where it has left some.

        One rank tells, the others raise `SystemExit`.
        """
        try:
            present, words = self._call_roll()
        except RuntimeError:  # The store has gone with its keeper.
            present, words = set(range(1, self.size)), {}
        if words:
            speaker, (word, code) = min(words.items())
            if speaker == 0 or not self.is_first:
                raise SystemExit(code)
            raise TrainingError(f"rank {speaker}: {word}")
        if self.rank != min(present):
            raise SystemExit(LostRankError.exit_code)
        lost = sorted(set(range(self.size)) - present)
        numbers = ", ".join(map(str, lost))
        named = f"ranks {numbers} are lost" if len(lost) > 1 else f"rank {numbers} is lost"
        raise LostRankError(
            f"{named if lost else f'the ranks have lost each other ({reason})'}, and the run has "
            "ended; the same command goes on from the last snapshot"
        )

    def _call_roll(self) -> tuple[set[int], dict[int, tuple[str, int]]]:
        """Which ranks answer, and the last words and exit codes of those that left some."""
        self._store.set("roll", "called")
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        while True:
            if time.monotonic() > deadline:
                self._store.set("counted", "yes")  # Nobody who calls later needs to wait as long.
            is_over = self._store.check(["counted"])
            left = [rank for rank in range(self.size) if self._store.check([f"code/{rank}"])]
            here = {rank for rank in range(self.size) if self._store.check([f"here/{rank}"])}
            if left or is_over or len(here) == self.size:
                return here | {self.rank}, {rank: self._read_word(rank) for rank in left}
            time.sleep(0.05)

    def _read_word(self, rank: int) -> tuple[str, int]:
        """Last words of a rank and its exit code."""
        return self._store.get(f"word/{rank}").decode(), int(self._store.get(f"code/{rank}"))

    def _listen(self, store: Store) -> None:
        """Answer when the roll is called: the rank itself may hang with one that is lost."""
        try:
            while not self._over.wait(LISTEN_SECONDS):
                if store.check(["roll"]):
                    store.set(f"here/{self.rank}", "yes")
                    return
        except RuntimeError:
            return  # The store has gone with its keeper: the run is over.


def _second_line(store: Store) -> Store:
    """A connection of its own for another thread: a waiting call keeps the first to itself."""
    line: Store = store.clone()  # type: ignore[attr-defined]  # the stub does not know of it
    return line


@contextmanager
def join(place: Place) -> Iterator[ManyRanks]:
    """Meet the others and part at the end; see `ranks.join_ranks`."""
    try:
        store, _, _ = next(rendezvous("env://", timeout=MEETING))
        ranks = ManyRanks(place, store)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"rank {place.rank} of {place.size} does not find the others "
            f"({str(error).splitlines()[0]}): start them all with torchrun, see docs/scale.md"
        ) from error
    try:
        yield ranks
    except (LmloopError, SystemExit) as error:
        end_undisturbed()
        if isinstance(error, (LostRankError, SystemExit)):
            raise
        ranks.leave_word(error)
        if ranks.is_first:
            raise
        raise SystemExit(error.exit_code) from error
    finally:
        ranks.part_ways()
