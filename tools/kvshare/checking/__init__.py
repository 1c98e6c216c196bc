"""What a check is, and how its outcome is shown.

Checks stand in causal order, a cause before its symptoms: the first `×` is where to begin, and the last
line names it. `‼` is a warning and never changes the exit code. `·` was not checked, with the reason. Exit
codes: 0 proven, 1 a check failed, 2 bad input, 3 could not be judged (ENG-01, CLIENT-01).
"""
