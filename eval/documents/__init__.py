"""The documents of a run: `selection` decides which tasks are asked, `offline`, `harness` and `ruler` load them,
`prepared` holds them with their requests, `subset` hands some of them to lm-eval.
"""
