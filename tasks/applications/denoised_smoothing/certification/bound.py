"""The bound of a smoothed classifier's radius, and the settings that it and a certificate depend on."""

from __future__ import annotations

from dataclasses import dataclass

from blackbox.checks import check_count, check_number, check_positive
from blackbox.errors import ConfigurationError

# Radii of the table; Cohen et al. (2019) and after them all others report these for sigma = .25.
RADII = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Settings:
    """Settings of the randomized smoothing of Cohen, Rosenfeld and Kolter (2019), algorithm 1.

    Attributes:
        sigma: standard deviation of the noise, in the images' units (1 is from black to white).
        n: queries that estimate the probability of the top class, N in the paper.
        n0: queries that choose the top class.
        alpha: the largest probability that a certificate is wrong.
        seed: the seed of the noise.
        block: how many noisy copies are drawn, denoised, and sent to the box together. Noise and the
            denoiser's rounding depend on it, so it is part of the certificate.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    sigma: float
    n: int = 100_000
    n0: int = 100
    alpha: float = 0.001
    seed: int = 0
    block: int = 100

    def __post_init__(self) -> None:
        """Refuse what the algorithm cannot take."""
        check_positive("certification", "sigma", self.sigma)
        for name, least in (("n0", 1), ("n", 1), ("seed", 0), ("block", 1)):
            check_count("certification", name, getattr(self, name), least)
        if self.n < self.n0:
            raise ConfigurationError(
                f"n: expected at least n0 = {self.n0} queries to estimate a probability, got {self.n}. "
                "Raise n (the paper: 100,000), or lower n0 (the paper: 100)."
            )
        check_number("certification", "alpha", self.alpha, above=0, below=1)

    @property
    def radius_cap(self) -> float:
        """The largest radius that N queries can certify at this sigma, all of them for one class."""
        return radius_cap(self.sigma, self.n, self.alpha)

    def cap_warning(self, radii: tuple[float, ...] = RADII) -> str | None:
        """A sentence that names the radii which no image can reach with this N; None if there are none."""
        beyond = [radius for radius in radii if radius > self.radius_cap]
        if not beyond:
            return None
        return (
            f"with N = {self.n:,} queries, sigma = {self.sigma:g} and alpha = {self.alpha:g} no radius above "
            f"{self.radius_cap:.3f} can be certified, whatever the classifier: certified accuracy at "
            f"{', '.join(f'{radius:g}' for radius in beyond)} is 0 by construction. Raise N."
        )


def lower_bound(successes: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: the probability is below it with probability at most alpha.

    It solves P(Binomial(trials, p) >= successes) = alpha for p, which is a quantile of a beta
    distribution (Clopper and Pearson 1934). LowerConfBound(k, n, 1 - alpha) of Cohen et al. (2019).
    """
    if successes == 0:
        return 0.0
    # Not ppf of statsmodels' two-sided interval at 2 alpha, as published: the same number, one import less.
    from scipy import stats  # some seconds, which help and refusals need not wait for

    return float(stats.beta.ppf(alpha, successes, trials - successes + 1))


def radius(sigma: float, probability: float) -> float:
    """The l2 radius sigma Phi^-1(p) of Cohen et al. (2019), theorem 1; 0 where p <= 1/2 certifies nothing.

    In the images' units; `probability` is a lower bound of the top class's.
    """
    if probability <= 0.5:
        return 0.0
    from scipy import stats  # some seconds, which help and refusals need not wait for

    return float(sigma * stats.norm.ppf(probability))


def radius_cap(sigma: float, n: int, alpha: float) -> float:
    """The radius of N queries that all give one class: none larger can be certified with N.

    There the bound is alpha^(1/N), so the cap grows like sigma sqrt(2 log N), ever more slowly.
    """
    return radius(sigma, lower_bound(n, n, alpha))


def vote_is_clear(first: int, second: int, alpha: float) -> bool:
    """Say whether the leading class is the most probable one, wrong with probability at most alpha.

    The two-sided binomial test of the two leading counts against 1/2 (Cohen et al. 2019, PREDICT).
    """
    if first == 0:
        return False
    from scipy import stats  # some seconds, which help and refusals need not wait for

    return bool(stats.binomtest(first, first + second, 0.5).pvalue <= alpha)
