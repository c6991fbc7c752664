"""Closures on fields: how large a dither is, and when a map on the span of outputs is none."""

import math

import pytest
import torch

from blackbox import ArraySpec
from zo.tangents.excitation.dither_state import GROWN, DitherState
from zo.tangents.excitation.gain import DitherResponse, Excited
from zo.tangents.excitation.size import KNOWN, DitheredRows, NextSize
from zo.tangents.models.maps.output_map import OutputMap
from zo.tangents.record.pairs import CallPairs
from zo.tangents.tangent import IdentityTangent

ROWS, SIDE = 128, 16


def shown(response, on_grid=True):
    """Answers that miss by white noise of size 1, and respond to the dither by so much, rows x cells."""
    generator = torch.Generator().manual_seed(0)
    added, error = torch.randn(2, ROWS, SIDE * SIDE, generator=generator, dtype=torch.float64)
    change = torch.full((ROWS,), float(SIDE * SIDE), dtype=torch.float64)
    missed, nothing = error + response * added, torch.zeros_like(added)
    by_gain = nothing[:, :0]
    if on_grid:
        field, term = (ArraySpec(name, (SIDE, SIDE)) for name in ("field", "term"))
        both = torch.cat([nothing, added], dim=1)
        rows = CallPairs((field, term), (field,), both, missed)
        tangent = Excited(IdentityTangent())
        tangent.saw(rows, [DitherResponse(both, both, missed, nothing)])
        squares = tangent.gain.squares(both, both)
        assert squares is not None
        by_gain = torch.stack([square.sum(dim=1) for square in squares], dim=1)
    return DitheredRows(added, missed, nothing, change, by_gain, on_grid)


@pytest.mark.parametrize("response, wanted", [(0.0, 0.5), (0.05, 0.5), (0.15, 0.2), (0.4, 0.2)])
def test_a_dither_on_a_field_goes_to_a_fifth_of_what_outputs_change_by(response, wanted):
    """49 numbers of a kernel are known by all rows and cells; what does not stand out may be a half."""
    expected = math.sqrt(wanted**2 / (response**2 + 49 / (ROWS * SIDE * SIDE)))
    assert shown(response).verdict().times == pytest.approx(expected, rel=0.2)


def test_cell_by_cell_all_of_it_is_chance():
    """Of more numbers than rows: the dither stays as it is."""
    assert shown(0.0, on_grid=False).verdict().times == 1.0


def test_a_dither_without_any_response_grows():
    """A box that gives the very same answers has a gain of zero, and chance has no part in it either."""
    rows = shown(0.0)
    silent = rows._replace(by_gain=torch.zeros_like(rows.by_gain))
    small = DitherState(factor=0.1)
    assert small.followed(silent.verdict()).factor == pytest.approx(0.1 * GROWN)


def test_by_chance_hardly_any_response_is_known_before_its_time():
    """Of rows that were foretold by noise as large as they are; eleven rows are too few for any."""
    missed, noise = torch.randn(
        2, 2000, 12, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    nothing = torch.zeros_like(missed[0])

    def known(missed, response):
        return DitheredRows(nothing, missed, response, nothing[:, 0], nothing[:, :0]).known_by_now()

    assert sum(known(*rows) for rows in zip(missed, noise, strict=True)) < 20
    near = missed + 0.1 * noise
    assert sum(known(*rows) for rows in zip(missed, near, strict=True)) > 1980
    assert not any(known(its[:10], own[:10]) for its, own in zip(missed, near, strict=True))


@pytest.mark.parametrize("size", [0.05, 0.1, 0.3])
def test_by_chance_hardly_any_response_stands_out(size):
    """Of 2,000 times 16 rows one in two hundred where nothing is there; nearly all where it is."""
    generator = torch.Generator().manual_seed(0)
    missed, other = torch.randn(2, 2000, 16, 3, generator=generator, dtype=torch.float64)
    added, change = missed[0, :, :1], torch.ones(16, dtype=torch.float64)

    def known(missed, response):
        return DitheredRows(added, missed, response, change, added[:, :0]).verdict().known > KNOWN

    assert sum(known(*rows) for rows in zip(missed, size * other, strict=True)) < 10
    there = size * (missed + 0.5 * other)
    assert sum(known(*rows) for rows in zip(there, size * missed, strict=True)) > 1990


@pytest.mark.parametrize("response", [0.1, 0.4])
def test_a_dither_whose_response_is_known_goes_to_a_fifth_and_grows_no_more(response):
    rows = shown(response)
    verdict = rows._replace(response=response * rows.added).verdict()
    assert verdict.known > 0.8
    assert verdict.times == pytest.approx(min(1.0, 0.2 / response), rel=0.1)


def test_a_dither_is_never_wider_than_the_spread_of_its_input():
    state = DitherState(factor=0.3)
    for response in (0.0, 0.0, 0.01, 0.1):
        state = state.followed(NextSize(known=0.0, times=8.0, response=response, change=1.0))
        assert state.factor == 1.0


def test_a_response_is_waited_for_until_it_is_known_or_in_vain():
    free = DitherState()
    assert not free.waits
    waiting = free.judged({1: torch.ones(2)}, begins=True)
    assert waiting.waits and waiting.factor == 0.1
    for _ in range(2):
        waiting = waiting.looked(3, known=False)
        assert waiting.waits
    assert [waiting.looked(3, known=known).phase for known in (True, False)] == ["known", "guessed"]
    known = waiting.looked(3, known=True)
    assert not known.waits and not known.judged({0: torch.ones(2)}, begins=True).waits
    assert waiting.judged({}, begins=False).waits is False  # nothing is dithered


def fitted(rank, rows=64, size=48, error=1e-2):
    """A map behind a model that misses by so much, of outputs in a space of so many directions."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0]
    y = torch.randn(rows, rank, generator=generator, dtype=torch.float64) @ basis.T
    x = y + error * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    behind = OutputMap()
    alone = behind.fit(x, y, torch.ones(size, dtype=torch.float64))
    return behind, basis, alone


def test_a_constraint_of_the_box_is_kept():
    behind, basis, alone = fitted(rank=6)
    change = torch.eye(48, dtype=torch.float64)
    outside = change - basis @ basis.T
    assert not alone and float(behind.pushed(outside).norm()) < 0.1 * float(outside.norm())


def test_where_outputs_leave_the_span_of_the_rows_no_map_is_put_behind():
    assert fitted(rank=48, rows=40, error=0.075)[2]
