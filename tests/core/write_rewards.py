"""Write rewards into a ledger, telling each one after it was written. Run as a process.

write_rewards.py LEDGER COUNT SHIFT...: one child process for each shift.
"""

import os
import sys
from pathlib import Path

from prefstage.core.ledger import Ledger


def write(path: Path, count: int, shift: int) -> None:
    with Ledger(path) as ledger:
        for number in range(shift, shift + count):
            ledger.put("rewards", ("judge", "prompt", str(number)), (float(number),))
            os.write(1, f"{number}\n".encode())  # whole lines, also among several writers


path, count, *shifts = Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:])
if len(shifts) == 1:
    write(path, count, shifts[0])
else:
    children = []
    for shift in shifts:
        if (child := os.fork()) == 0:
            write(path, count, shift)
            os._exit(0)
        children.append(child)
    sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
