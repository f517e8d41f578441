"""Write rewards into a store, telling each one after it was written. Run as a process."""

import sys
from pathlib import Path

from prefstage.judging import JudgmentStore

path, count, shift = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with JudgmentStore(path) as store:
    for number in range(shift, shift + count):
        store.put_reward("judge", (), str(number), float(number))
        print(number, flush=True)
