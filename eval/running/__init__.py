"""The course of a run and the files it leaves: nothing that was finished is lost."""
