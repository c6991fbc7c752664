"""`HostedRun` and `CallRecord`: the record of the runs of a hosted program."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from blackbox.adapters.hosted.boxes import chosen
from blackbox.errors import NoRowLeftError


class CallRecord:
    """The arrays seen and given in a call, for the rows of a run; they are attributes, by their names.

    Seen arrays have one entry more than given ones where a run was ended while the call waited.

    Attributes:
        mask: which entries of the seen arrays belong to a row's run, `(rows, entries)` bool; other entries
            are zeros. It is True to the end in a row that failed, whose arrays are NaN.
        seen_names: the names of the arrays that are seen.
    """

    def __init__(self, seen: dict[str, Tensor], given: dict[str, Tensor], mask: Tensor) -> None:
        self._arrays, self.mask, self.seen_names = {**seen, **given}, mask, tuple(seen)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["_arrays"][name]
        except KeyError:
            raise AttributeError(f"expected one of {', '.join(self)}, or mask, got {name!r}") from None

    def __getitem__(self, name: str) -> Tensor:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__.get("_arrays", ()))


class HostedRun:
    """The record of the runs of some cases; each call's `CallRecord` is an attribute, by its name.

    Where all rows failed, so that none shows how long a call's arrays are, access to them raises
    `NoRowLeftError`.

    Attributes:
        outputs: the results of runs at their ends, by name, `(rows, *shape)`; zeros in rows that have not
            ended, NaN in rows that failed.
        ended: which rows have reached their own end, `(rows,)` bool.
    """

    def __init__(
        self,
        records: dict[str, CallRecord],
        outputs: dict[str, Tensor],
        ended: Tensor,
        lost: dict[str, str],
        tell_zeros: Callable[[], None] | None,
    ) -> None:
        self._records, self._outputs, self.ended, self._tell_zeros = records, outputs, ended, tell_zeros
        self._lost = lost  # why calls have no record where rows failed, by their names

    @property
    def outputs(self) -> dict[str, Tensor]:
        """The results at the ends; a warning says once that rows have not ended."""
        if self._tell_zeros is not None:
            self._tell_zeros()
        return self._outputs

    def __getattr__(self, name: str) -> CallRecord:
        try:
            return self.__dict__["_records"][name]
        except KeyError:
            self._refuse_lost(name)
            names = ", ".join(self.__dict__.get("_records", ()))
            raise AttributeError(f"expected a call, one of {names}, outputs or ended, got {name!r}") from None

    def __getitem__(self, name: str) -> CallRecord:
        self._refuse_lost(name)
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        if not self._records:
            self._refuse_lost(next(iter(self._lost), ""))
        return iter(self._records)

    def _refuse_lost(self, name: str) -> None:
        reasons = self.__dict__.get("_lost", {})
        if name in reasons:
            raise NoRowLeftError(reasons[name]) from None


class Rounds:
    """The arrays seen and given in a call, round by round, over all rows."""

    def __init__(self, seen: list[str], given: list[str]) -> None:
        self.seen: dict[str, list[Tensor]] = {name: [] for name in seen}
        self.given: dict[str, list[Tensor]] = {name: [] for name in given}
        self.masks: list[Tensor] = []

    def record(self, failed: Tensor) -> CallRecord:
        """Make the record: each row's entries one behind the other, and zeros behind the last.

        Args:
            failed: `(rows,)` bool, rows whose last entry is NaN: the others may have had no call since.
        """
        mask = torch.stack(self.masks, dim=1)
        order = None
        if not bool((mask[:, 1:] <= mask[:, :-1]).all()):  # rows ask in different rounds
            order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)
            mask = mask.gather(1, order)
        count = int(mask.sum(dim=1).max())

        def entries(arrays: list[Tensor]) -> Tensor:
            stacked = torch.stack(arrays, dim=1)
            mask_of_entries = torch.stack(self.masks[: len(arrays)], dim=1)
            stacked = _entries_where(mask_of_entries, stacked)
            if order is not None:
                place = torch.argsort(mask_of_entries.int(), dim=1, descending=True, stable=True)
                stacked = stacked[torch.arange(len(stacked), device=place.device)[:, None], place]
            stacked = stacked[:, :count]
            if not bool(failed.any()):
                return stacked
            return torch.cat([stacked[:, :-1], lost_rows(failed, stacked[:, -1])[:, None]], dim=1)

        arrays_seen = {name: entries(arrays) for name, arrays in self.seen.items()}
        arrays_given = {name: entries(arrays) for name, arrays in self.given.items() if arrays}
        return CallRecord(arrays_seen, arrays_given, mask[:, :count])


def _entries_where(mask: Tensor, stacked: Tensor) -> Tensor:
    """Entries of rows where the mask is, else zeros."""
    if bool(mask.all()):
        return stacked
    return torch.where(mask.reshape(*mask.shape, *[1] * (stacked.ndim - 2)), stacked, 0.0)


def lost_rows(failed: Tensor, array: Tensor) -> Tensor:
    """NaN in the rows that failed; whole numbers stay, which have none."""
    if not array.is_floating_point():
        return array
    return chosen(failed, torch.full_like(array, float("nan")), array)
