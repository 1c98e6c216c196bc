"""Whether these machines can run the stack: asked before anything of it is up, or of a running one.

Everything is seen from short-lived containers of the engine image on each machine, on the host's network,
with the server's own settings. Each is bounded in time and removed; nothing of the stack is started, no
setting is changed. `not needed` is what this stack does not ask for, e.g. a GPU with DEVICE=cpu. Exit code
0 means ready: nothing failed; `not checked` with nothing red is 3.
"""
