"""`make crash`: the proof, in six layers, that nothing acknowledged is lost. docs/durability.md says what each shows.

history.py   the history outside the victim, and the validator    layer.py   what every layer takes and gives
victim.py    what runs and is cut                                 controls.py  known faults: each must be caught
strict.py    L1: every crash state of a strict disk (trace.py records, disk.py models)
syscalls.py  L2: a fault at every write-side system call          corrupt.py   L5: flipped, torn and old files
drive.py     L6: a drive over a bad network, modules killed       link.py      the network of that drive
"""
