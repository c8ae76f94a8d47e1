"""GatedMLP: y = (act(x Wg + bg) * (x Wu + bu)) Wd + bd, the feed-forward block of Llama (Shazeer, arXiv:2002.05202)."""

OPERATOR = "GatedMLP"
