"""Floor 4: the command line. `commands` says what can be asked, the other files do it; `wayfield.cli` is the
entrance.
"""
