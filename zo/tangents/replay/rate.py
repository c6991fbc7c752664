"""`suggested_rate`: a learning rate with which few steps of Adam go as far as many usually do."""

from __future__ import annotations

from blackbox.checks import check_count, check_positive

# decision 126:
FARTHER = 10.0  # times the way that the usual steps go
HIGHEST = 8.0  # times the usual rate: beyond it first order diverges on some problems


def suggested_rate(usual_rate: float, *, usual_steps: int, steps: int) -> float:
    """The learning rate of Adam for another number of optimiser steps than usual.

        steps = windows * (1 + 12)  # with replays each window is followed by some twelve further steps
        rate = zo.suggested_rate(1e-3, usual_steps=400, steps=steps)

    A step of Adam moves a weight by about its learning rate, whatever the gradient's size. So all steps
    together go some `steps * rate` far, and where they are few, because rows are, they end before the loss is
    low. The rate is such that steps times rate are ten times the usual product, but within the usual rate
    and eight times that: beyond it single batches decide, and where steps are many the usual rate does. It is
    meant for a rate that falls to zero over the training. On half of the benchmarks' corrections a rate as
    high ends far above the usual one, so compare the two on validation data; see docs/howto/spend_rows.md.

    Args:
        usual_rate: The rate that a training usually has.
        usual_steps: The optimiser steps that it usually has, in batches of the same size: with a quarter of
            the rows in a batch, four times as many.
        steps: The optimiser steps that there will be, replays included.

    Raises:
        ConfigurationError: A number is not above 0, or steps are no whole numbers.
    """
    check_positive("suggested_rate", "usual_rate", usual_rate)
    check_count("suggested_rate", "usual_steps", usual_steps)
    check_count("suggested_rate", "steps", steps)
    return usual_rate * min(HIGHEST, max(1.0, FARTHER * usual_steps / steps))
