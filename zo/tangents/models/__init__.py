"""The tangents that learn, and your own solver as one.

`automatic` is the contest of the `candidates`. Equations, meshes, particles and students are shelves.
A tangent fitted to values is a `ValueTangent` (`values`), of which there are three kinds: with a closed form
(`stencil`, `kernel`), a network that learns by steps of Adam (`network`, its passes written out in `passes`),
an implicit step (`on_mesh`).
"""
