"""Random spellings of every fusion, and random mutations of them that compute something else.

draft, arithmetic, movement, writer   build a graph; each step is written in one of the ways of the exporters
constants, sizes                      the forms in which a constant may stand; sizes that stay open
norms, mlp, rotary, attention, masks  the spellings, one subject a file
cases       a family by name, a seed and an opset give one small graph, and what must be fused in it
batch       many cases as one model: rewritten once, run once before and after
table       what became of them, at the end of pytest's output
"""
