"""The app: tools, grader, cards and gateway behind HTTP."""
