"""Numerical proof that a rewritten model, or one rewritten match, computes the same function.

`model.validate` compares two whole models, `match.MatchVerifier` one match before it is spliced in, `bisect.guilty`
finds the fusion to blame. They share the inputs (`interface`, `feeds`), the sessions and the comparison (`compare`).
"""
