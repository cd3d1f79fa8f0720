"""Room on the disk: what takes it, what may go, the trash, and archives that travel to another machine."""
