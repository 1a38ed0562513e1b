"""The tiny base model that the project makes: it searches, lists, reads and copies, and it has a teacher's bad habits to lose."""
