"""Black boxes that ship with the project: the PhiFlow wake flow, and small systems to try methods on.

Import what you need from its own module: PhiFlow takes seconds, the small systems nothing beyond torch.
"""

import blackbox_coupling  # noqa: F401  which names files that are in the way of a package
