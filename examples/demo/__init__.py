"""The parts of the demo; `demo.main` is the top one.

One process looks on and prints; each side runs in a process of its own, so that what walpool replaces in CrewAI never
touches the other side, and so do the count of the rows and the recall after the restart.
"""
