"""The tangents that learn, and your own solver as one.

What is exported lies in `automatic`, `graph`, `grid`, `kernel`, `mesh`, `mlp`, `model`,
`particles`, `stencil` and `student`; all else is a part of these. A tangent fitted to values is a
`ValueTangent` (`values`), of which there are three kinds: with a closed form (`stencil`, `kernel`), a network
that learns by steps of Adam (`network`, its passes written out in `passes`), an implicit step (`on_mesh`).
"""
