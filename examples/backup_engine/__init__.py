"""The parts of the backup engine; backup_engine.py beside this folder starts it."""
