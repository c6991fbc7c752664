"""The tangents that learn, and your own solver as one.

`automatic` is the contest of the `candidates`. Equations, meshes and students are shelves.
A tangent fitted to values is a `ValueTangent` (`values`). There are three kinds: models in closed form
(`stencil`, `kernel`), a network that learns by steps of Adam (`network`, its passes written out in `passes`),
and an implicit step (`on_mesh`).
"""
