"""How a step's pieces are evaluated: by this process, by a group of processes, and with a journal."""
