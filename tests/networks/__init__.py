"""The zoo: small networks of the kinds that users train, and of the kinds that an evaluator gets wrong.

Three tables, each a list that tests walk whole: `ORDINARY`, `TREACHEROUS` and `UNSTACKABLE`.
"""

from tests.networks.case import Case, weighted_error
from tests.networks.ordinary import ORDINARY
from tests.networks.treacherous import TREACHEROUS
from tests.networks.unstackable import UNSTACKABLE

__all__ = ["ORDINARY", "TREACHEROUS", "UNSTACKABLE", "Case", "weighted_error"]
