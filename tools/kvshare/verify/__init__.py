"""How reuse is proven.

Each prompt is random token ids from a seed: whole chunks plus a tail shorter than vLLM's smallest block, so
that every leg but the cold ones computes just that tail. In this order:

| leg | sent to | its KV must come from |
|---|---|---|
| control | decode, a prompt that nobody holds | nowhere: all computed, and no transfer at the owner |
| reference | prefill, first time | nowhere: all computed |
| (wait) | | the count of keys at the controller, or of objects stored, rises by the chunks of the prompt |
| same split | prefill, again | prefill's own prefix cache |
| peer | decode | prefill, over the network |

The first prompt warms up: its times count in no median and its pull's is shown apart, its answer and its
ledger are checked like all others. With `--deep` follows what the checks of that category name; every prompt
of theirs is new as well.
"""
